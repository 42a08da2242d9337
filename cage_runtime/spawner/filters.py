# SPDX-License-Identifier: LGPL-2.1-or-later
"""Compiled seccomp filters, kept below RUN for the next program that needs the same one.

A filter is compiled once and found again by a hash of all that makes it: the profiles' texts, the version of
libseccomp, the architecture, and the compiler's own source.  What is found was written by this user, into a directory
that nobody else reaches, and is whole; anything else is as if it were not there, and compiled again.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import stat
from dataclasses import dataclass
from pathlib import Path

import msgspec

from cage_runtime.decoding import decode
from cage_runtime.spawner import syscall

LOG = logging.getLogger(__name__)

FILTERS = "filters"
"""The directory of RUN in which they are kept, root's alone."""
ENTRIES_MAX = 32
"""Kept filters; an upgrade leaves the earlier ones behind, of which the oldest go."""
ENTRY_BYTES_MAX = 1 << 20
INSTRUCTION_BYTES, INSTRUCTIONS_MAX = 8, 4096
"""Of one program (struct sock_filter, BPF_MAXINSNS)."""
_SOURCES = ("seccomp.py", "otherwise.py")


@dataclass(frozen=True, kw_only=True, slots=True)
class Filter:
    """A profile as the kernel takes it; `unknown` are names that the installed libseccomp cannot resolve."""

    programs: tuple[bytes, ...]
    unknown: tuple[str, ...]
    mediated: bytes = b""
    """What hands the calls that are mediated in a cage to its listener; only for cage-init, which loads it once."""

    def listen(self) -> int | None:
        """Have this thread's mediated calls, and those of all it starts, wait for an answer; the listener's descriptor.

        None where none is mediated.  Needs no_new_privs, and comes before `load`.
        """
        return syscall.seccomp_listener(self.mediated) if self.mediated else None

    def load(self) -> None:
        """Confine this thread; needs no_new_privs."""
        for program in self.programs:
            syscall.seccomp_filter(program)


class _Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    programs: list[bytes]
    unknown: list[str]
    mediated: bytes


class Store:
    """The filters kept in `directory`, which need not be there: then each is compiled."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def build(self, profiles: Path, name: str) -> Filter:
        """As seccomp.build, which is asked where nothing is kept."""
        return self._get("build", profiles, name)

    def without_own(self, profiles: Path, name: str) -> Filter:
        """As seccomp.without_own."""
        return self._get("without-own", profiles, name)

    def refusing(self, profiles: Path, name: str) -> Filter:
        """As seccomp.refusing."""
        return self._get("refusing", profiles, name)

    def _get(self, how: str, profiles: Path, name: str) -> Filter:
        directory = self._open()
        if directory is None:
            return _compiled(how, profiles, name)
        try:
            key = _key(f"{how} {name}", profiles)
            kept = _read(directory, key)
            if kept is None:
                kept = _compiled(how, profiles, name)
                _write(directory, key, kept)
            return kept
        finally:
            os.close(directory)

    def _open(self) -> int | None:
        """The directory; None where there is none, or others could have written there."""
        try:
            directory = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            return None
        status = os.fstat(directory)
        if status.st_uid == os.geteuid() and not status.st_mode & 0o077:
            return directory
        LOG.warning("%s is not ours alone: no filter is taken from it", self._directory)
        os.close(directory)
        return None


def _compiled(how: str, profiles: Path, name: str) -> Filter:
    # Imported only here: libseccomp's binding takes longer to load than a filter that is kept.
    from cage_runtime.spawner import seccomp

    ways = {"build": seccomp.build, "without-own": seccomp.without_own, "refusing": seccomp.refusing}
    return ways[how](profiles, name)


def libseccomp_version() -> str:
    """Of the library that compiles, without loading its binding."""
    class Version(ctypes.Structure):
        _fields_ = [(name, ctypes.c_uint) for name in ("major", "minor", "micro")]

    library = ctypes.CDLL("libseccomp.so.2")
    library.seccomp_version.restype = ctypes.POINTER(Version)
    version = library.seccomp_version().contents
    return f"{version.major}.{version.minor}.{version.micro}"


def _key(what: str, profiles: Path) -> str:
    digest = hashlib.sha256()
    parts = [what.encode(), libseccomp_version().encode(), platform.machine().encode()]
    parts += [Path(__file__).with_name(name).read_bytes() for name in _SOURCES]
    for file in sorted(profiles.glob("*.toml")):
        # One that cannot be read is the compiler's to tell of.
        parts += [file.name.encode(), file.read_bytes() if file.is_file() else b""]
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()


def _read(directory: int, key: str) -> Filter | None:
    try:
        descriptor = os.open(key, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
    except OSError:
        return None
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o022:
            return None
        untrusted = file.read(ENTRY_BYTES_MAX + 1)
    size = hashlib.sha256().digest_size
    untrusted_sum, untrusted_entry = untrusted[:size], untrusted[size:]
    # The key is part of the sum, so that no entry stands for another.
    if len(untrusted) > ENTRY_BYTES_MAX or untrusted_sum != _sum(key, untrusted_entry):
        return None
    try:
        entry = decode(untrusted_entry, msgspec.json.Decoder(_Entry))
    except msgspec.DecodeError:
        return None
    programs = [*entry.programs, entry.mediated] if entry.mediated else entry.programs
    if not entry.programs or not all(map(_is_program, programs)):
        return None
    return Filter(programs=tuple(entry.programs), unknown=tuple(entry.unknown), mediated=entry.mediated)


def _sum(key: str, entry: bytes) -> bytes:
    return hashlib.sha256(key.encode() + entry).digest()


def _is_program(untrusted_program: bytes) -> bool:
    """Whether it has the size of one; a filter without a program would be no filter."""
    size = len(untrusted_program)
    return 0 < size <= INSTRUCTION_BYTES * INSTRUCTIONS_MAX and size % INSTRUCTION_BYTES == 0


def _write(directory: int, key: str, filter_: Filter) -> None:
    """Keep it; where there is no room it is compiled again the next time."""
    entry = msgspec.json.encode(_Entry(list(filter_.programs), list(filter_.unknown), filter_.mediated))
    new = f".{key}.{os.getpid()}"
    try:
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=directory)
        with os.fdopen(descriptor, "wb") as file:
            file.write(_sum(key, entry) + entry)
        os.rename(new, key, src_dir_fd=directory, dst_dir_fd=directory)
        _forget_oldest(directory)
    except OSError as error:
        LOG.warning("a compiled filter is not kept: %s", error)


def _forget_oldest(directory: int) -> None:
    with os.scandir(directory) as entries:
        ages = sorted(((entry.stat(follow_symlinks=False).st_mtime_ns, entry.name) for entry in entries), reverse=True)
    for _, name in ages[ENTRIES_MAX:]:
        os.unlink(name, dir_fd=directory)
