# SPDX-License-Identifier: LGPL-2.1-or-later
"""incage open: a link or a file opens in another cage, and an edited file comes back."""

from __future__ import annotations

import os
import re

from cage_runtime.cli.output import Screen, cell, say
from cage_runtime.errors import CageError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from cage_runtime.cli.client import Peer

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
_WHAT_MAX = 8 * 1024
"""Bytes of a URI, as the mediator takes it."""
_NEW = "edited"
"""What is added to the name of a file that comes back where the original has changed meanwhile."""
_NAMES_MAX = 1000
_CHUNK = 1024 * 1024


def _open_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", metavar="URI|FILE", help="a link, or a regular file in your home directory")
    parser.add_argument("--in", metavar="CAGE", default="", dest="target",
                        help="the cage, or @disposable[:TEMPLATE]; what policy says where it is left out")


def _open(args: argparse.Namespace, screen: Screen) -> int:
    from cage_runtime.cli.client import mediator

    if len(os.fsencode(args.what)) > _WHAT_MAX:  # which no message of the bus takes
        raise UsageError(f"the URI is longer than {_WHAT_MAX} bytes")
    is_uri = _SCHEME.match(args.what) is not None and not os.path.lexists(args.what)
    descriptor = -1 if is_uri else _opened(args.what)
    peer = mediator("open", "so nothing can be opened elsewhere")
    if is_uri:
        peer.call("Uri", "ssa{sv}", args.what, args.target, {}, timeout=None)
        _tell(screen, args, "opened")
        return 0
    original, name = _Original(args.what, descriptor), os.path.basename(args.what)
    session = str(peer.call("File", "ssha{sv}", name, args.target, descriptor, {}, returns="s", timeout=None))
    if not session:
        _tell(screen, args, "opened")
        return 0
    return _wait(peer, session, original, args, screen)


def _opened(path: str) -> int:
    from cage_runtime.cli.beneath import open_source

    return open_source(path)


def _tell(screen: Screen, args: argparse.Namespace, outcome: str, path: str = "") -> None:
    if screen.as_json:
        screen.document({"opened": args.what, "outcome": outcome, "path": path})
    else:
        screen.done(f"{cell(args.what)}: {outcome}" + (f", as {cell(path)}" if path else ""))


def _wait(peer: Peer, session: str, original: _Original, args: argparse.Namespace, screen: Screen) -> int:
    outcome, descriptors = "open", []  # type: tuple[str, list[int]]
    while outcome == "open":
        outcome, descriptors = peer.call("Edited", "sa{sv}", session, {}, returns="sah", timeout=None)
    if outcome != "edited" or len(descriptors) != 1:
        _tell(screen, args, "unchanged")
        return 0
    path = original.replace(descriptors[0])
    if not path:
        _tell(screen, args, "edited")
        return 0
    say(args.program, f'"{cell(args.what)}" has changed meanwhile and is kept; what was edited is "{cell(path)}"')
    _tell(screen, args, "edited", path)
    return 0


class _Original:
    """The file that was opened elsewhere, as it was then."""

    def __init__(self, path: str, descriptor: int) -> None:
        self._path, self._descriptor = path, descriptor
        self._before = _marks(os.fstat(descriptor))

    def replace(self, edited: int) -> str:
        """Put what is open as `edited` where the original is, whole and at one instant; or, where that has changed or
        is not there any more, beside it, and then its path is returned."""
        directory = os.open(os.path.dirname(os.path.abspath(self._path)), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            unnamed = os.open(".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600, dir_fd=directory)
            size = os.fstat(edited).st_size
            _copy(edited, unnamed)
            if os.fstat(unnamed).st_size != size:
                raise CageError(f'the core took what was edited back before all of it was here; "{self._path}" is kept')
            os.fchmod(unnamed, os.fstat(self._descriptor).st_mode & 0o777)
            os.fsync(unnamed)
            name = self._named(unnamed, directory)
            os.fsync(directory)
        except OSError as error:
            raise CageError(f'what was edited cannot be written beside "{self._path}": {error.strerror}') from error
        finally:
            os.close(directory)
        return os.path.join(os.path.dirname(self._path), name) if name else ""

    def _named(self, unnamed: int, directory: int) -> str:
        name = os.path.basename(self._path)
        if self._is_unchanged(name, directory):
            beside = f".{name[:200]}.{os.urandom(8).hex()}"
            os.link(f"/proc/self/fd/{unnamed}", beside, dst_dir_fd=directory)
            os.rename(beside, name, src_dir_fd=directory, dst_dir_fd=directory)
            return ""
        stem, extension = os.path.splitext(name)
        for number in range(1, _NAMES_MAX):
            other = f"{stem} ({_NEW}{f' {number}' if number > 1 else ''}){extension}"
            try:
                os.link(f"/proc/self/fd/{unnamed}", other, dst_dir_fd=directory)
            except FileExistsError:
                continue
            return other
        raise CageError(f'there are {_NAMES_MAX} edited ones of "{self._path}" already')

    def _is_unchanged(self, name: str, directory: int) -> bool:
        try:
            there = os.stat(name, dir_fd=directory, follow_symlinks=False)
        except OSError:
            return False
        return _marks(there) == self._before


def _marks(status: os.stat_result) -> tuple[int, ...]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _copy(source: int, target: int) -> None:
    offset = 0
    while chunk := os.pread(source, _CHUNK, offset):
        offset += len(chunk)
        rest = memoryview(chunk)
        while rest:
            rest = rest[os.write(target, rest):]


VERBS = {"open": (_open_arguments, _open)}
