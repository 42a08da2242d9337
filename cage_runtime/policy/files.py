# SPDX-License-Identifier: LGPL-2.1-or-later
"""Policy files as bytes: no link is followed, and nothing but a regular file is read (M6)."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cage_runtime.errors import PolicySyntaxError
from cage_runtime.model import POLICY_BYTES_MAX

# Without O_NONBLOCK a FIFO of the name would hold up the core.
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_WALK = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, kw_only=True, slots=True)
class File:
    """A policy file that was read."""

    path: Path
    identity: tuple[int, int]
    """Device and inode: what it is, by whatever path."""
    untrusted_text: bytes
    """One byte more than it may have at most."""


def read_policy_file(path: Path) -> File | None:
    """The file; None where it is a link to /dev/null, which disables it.  PolicySyntaxError names it."""
    try:
        return _read(os.open(path, _READ), path, f"{path}:1")
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise PolicySyntaxError(f"{path}:1: cannot be read: {error.strerror}") from error
    if os.readlink(path) == os.devnull:
        return None
    raise PolicySyntaxError(f"{path}:1: a symbolic link; put the file itself here, or to disable it link to /dev/null")


def read_included(path: Path, place: str) -> File:
    """The file that `place` includes; PolicySyntaxError where it is none, or on a way over a link."""
    with _within(path, place) as (directory, name):
        return _read(os.open(name, _READ, dir_fd=directory), path, f"{place}: {path}")


def names_in(path: Path, place: str) -> list[str]:
    """What there is in the directory that `place` includes; PolicySyntaxError likewise."""
    with _within(path, place) as (directory, name):
        descriptor = os.open(name, _READ | os.O_DIRECTORY, dir_fd=directory)
        try:
            return os.listdir(descriptor)
        finally:
            os.close(descriptor)


def _read(descriptor: int, path: Path, where: str) -> File:
    """The file behind the descriptor, which is closed."""
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise PolicySyntaxError(f"{where}: not a regular file")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            text = file.read(POLICY_BYTES_MAX + 1)
    finally:
        os.close(descriptor)
    return File(path=path, identity=(found.st_dev, found.st_ino), untrusted_text=text)


@contextmanager
def _within(path: Path, place: str) -> Iterator[tuple[int, str]]:
    """The directory of an absolute `path`, opened step by step so that none is a link, and the name in it."""
    descriptor = os.open("/", _WALK)
    try:
        for part in path.parts[1:-1]:
            inner = os.open(part, _WALK, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = inner
        yield descriptor, path.name
    except OSError as error:
        raise PolicySyntaxError(f"{place}: {path} cannot be included: {_why(error)}") from error
    finally:
        os.close(descriptor)


def _why(error: OSError) -> str:
    """A link is ELOOP as a file, and no directory on the way to one."""
    if error.errno == errno.ELOOP:
        return "a symbolic link"
    return "a directory on the way is a symbolic link or none" if error.errno == errno.ENOTDIR else str(error.strerror)
