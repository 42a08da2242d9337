# SPDX-License-Identifier: LGPL-2.1-or-later
"""Staging: the core's own copy of what a cage handed over, made before anything else believes it.

Law of this room: nothing but a worker process touches the content of a descriptor that came from a cage, because a
file can block for ever or change while it is read.  The worker is killed at its deadline; its copy has no name, so
that an end at any moment leaves nothing behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import fcntl
import hashlib
import os
import signal
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cage_runtime.errors import PolicyRefused, RuntimeFailure, TransferFailed
from cage_runtime.model import TRANSFER_BYTES_MAX, TRANSFER_SECONDS
from mediators.files.protocol import CHUNK

REPORT_MAX = 512
"""Bytes of a worker's report; a pipe takes them whole."""
RESERVE = 0.05
"""The part of the core's file system that staging leaves free."""
O_PATH = 0o10000000
PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True)
_KINDS = {
    stat.S_IFDIR: "is a directory; send its files one by one",
    stat.S_IFIFO: "is a pipe, not a regular file",
    stat.S_IFSOCK: "is a socket, not a regular file",
    stat.S_IFCHR: "is a device, not a regular file",
    stat.S_IFBLK: "is a device, not a regular file",
    stat.S_IFLNK: "is a symbolic link; send the file that it names",
}
_CHANGED = "changed while it was read; send it again when nothing writes to it"


class Unfit(Exception):
    """What was handed over cannot be sent; the text goes after the file's name."""


class TooLarge(Unfit):
    """It could be sent, were it not for the rule's bound."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Staged:
    """A whole copy: a read-only descriptor of a file without a name, which the owner of this closes."""

    descriptor: int
    size: int
    sha256: str


Copy = Callable[[int, int, int], tuple[int, str]]
"""Copies from one descriptor to another, at most so many bytes as policy says (0: as it likes), and returns the size
and the SHA-256; runs in the worker."""


def copy(source: int, target: int, policy_max: int = 0) -> tuple[int, str]:
    """Copy a regular file by its offsets (never the shared position, never mapped); Unfit says why it cannot be."""
    before = os.fstat(source)
    if not stat.S_ISREG(before.st_mode):
        raise Unfit(_KINDS.get(stat.S_IFMT(before.st_mode), "is not a regular file"))
    if before.st_size == 0:
        raise Unfit("is empty; there is nothing to send")
    if before.st_size > TRANSFER_BYTES_MAX:
        raise Unfit(f"is larger than the {TRANSFER_BYTES_MAX >> 30}G that a transfer takes")
    if 0 < policy_max < before.st_size:
        raise TooLarge(f"is larger than the {policy_max} bytes that the policy lets through at once")
    _make_room(target, before.st_size)
    digest = hashlib.sha256()
    offset = 0
    while chunk := os.pread(source, min(CHUNK, before.st_size + 1 - offset), offset):
        offset += len(chunk)
        if offset > before.st_size:
            raise Unfit(_CHANGED)
        digest.update(chunk)
        _write(target, chunk)
    if offset != before.st_size or _marks(os.fstat(source)) != _marks(before):
        raise Unfit(_CHANGED)
    return offset, digest.hexdigest()


def _marks(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _make_room(target: int, size: int) -> None:
    room = os.fstatvfs(target)
    if size > (room.f_bavail - RESERVE * room.f_blocks) * room.f_frsize:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    os.posix_fallocate(target, 0, size)


def _write(descriptor: int, chunk: bytes) -> None:
    rest = memoryview(chunk)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


class Stager:
    """Stages into `directory`, which it makes for its own user alone where it is missing."""

    def __init__(self, directory: Path, *, seconds: float = TRANSFER_SECONDS, copier: Copy = copy) -> None:
        self._directory, self._seconds, self._copier = directory, seconds, copier
        try:
            directory.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise RuntimeFailure(f"{directory}: cannot be made for staging: {error.strerror}") from error

    async def stage(self, descriptor: int, policy_max: int = 0) -> Staged:
        """A copy of the file open as `descriptor`, which stays the caller's.

        TransferFailed with what is wrong with the file, or PolicyRefused where it has more than `policy_max` bytes
        (0: no such bound); both are worded to follow its name.
        """
        _check_access(descriptor)
        with contextlib.ExitStack() as held:
            writable = self._unnamed(held)
            size, sha256 = await self._copied(descriptor, writable, policy_max)
            # another open file, read-only: what the target is given cannot be written through
            readable = os.open(f"/proc/self/fd/{writable}", os.O_RDONLY | os.O_CLOEXEC)
        return Staged(descriptor=readable, size=size, sha256=sha256)

    def _unnamed(self, held: contextlib.ExitStack) -> int:
        flags = os.O_TMPFILE | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC
        try:
            descriptor = os.open(self._directory, flags, 0o600)
        except OSError as error:
            if error.errno in {errno.ENOSPC, errno.EDQUOT}:
                raise TransferFailed("cannot be sent: the core has no space left for it") from error
            raise RuntimeFailure(f"{self._directory}: cannot be staged in: {error.strerror}") from error
        held.callback(os.close, descriptor)
        return descriptor

    async def _copied(self, source: int, target: int, policy_max: int) -> tuple[int, str]:
        near, far = os.pipe2(os.O_CLOEXEC)
        try:
            worker = self._fork(source, target, far, policy_max)
        finally:
            os.close(far)
        try:
            async with asyncio.timeout(self._seconds):
                await worker.ended()
            return _read_report(os.read(near, REPORT_MAX))
        except TimeoutError as error:
            raise TransferFailed(f"could not be read within {self._seconds:.0f} s") from error
        finally:
            worker.kill()
            os.close(near)

    def _fork(self, source: int, target: int, report: int, policy_max: int) -> Worker:
        parent = os.getpid()
        pid = os.fork()
        if pid:
            return Worker(pid)
        try:
            _seclude(parent, {source, target, report})
            os.write(report, _report(self._copier, source, target, policy_max))
        finally:
            os._exit(0)


class Worker:
    """A child process, known by its pidfd, and reaped by the event loop whenever it ends."""

    def __init__(self, pid: int) -> None:
        self._pidfd = os.pidfd_open(pid)
        self._loop = asyncio.get_running_loop()
        self._ended = asyncio.Event()
        self._loop.add_reader(self._pidfd, self._reap)

    async def ended(self) -> None:
        await self._ended.wait()

    def kill(self) -> None:
        """End it if it has not ended; it may take its time to go, and nobody waits for it."""
        if not self._ended.is_set():
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def _reap(self) -> None:
        self._loop.remove_reader(self._pidfd)
        os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED)
        os.close(self._pidfd)
        self._ended.set()


def _check_access(descriptor: int) -> None:
    """Refuse what cannot be read, by its flags alone, which asks nothing of its file system."""
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    if flags & O_PATH or flags & os.O_ACCMODE == os.O_WRONLY:
        raise TransferFailed("was not opened for reading")


def _seclude(parent: int, keep: set[int]) -> None:
    """In the worker: go when the core half goes, and hold no other cage's descriptors."""
    _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(0)
    signal.set_wakeup_fd(-1)
    low = 0
    for descriptor in sorted(keep):
        os.closerange(low, descriptor)
        low = descriptor + 1
    os.closerange(low, os.sysconf("SC_OPEN_MAX"))


def _report(copier: Copy, source: int, target: int, policy_max: int) -> bytes:
    try:
        size, sha256 = copier(source, target, policy_max)
    except TooLarge as error:
        return f"refused {error}".encode()[:REPORT_MAX]
    except Unfit as error:
        return f"unfit {error}".encode()[:REPORT_MAX]
    except OSError as error:
        full = error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
        why = "the core has no space left for it" if full else os.strerror(error.errno or errno.EIO)
        return f"unfit cannot be sent: {why}".encode()
    return f"copied {size} {sha256}".encode()


def _read_report(report: bytes) -> tuple[int, str]:
    kind, _, rest = report.decode().partition(" ")
    if kind == "copied":
        size, sha256 = rest.split()
        return int(size), sha256
    if kind == "unfit":
        raise TransferFailed(rest)
    if kind == "refused":
        raise PolicyRefused(rest)
    raise RuntimeFailure("the process that copied it failed; send it again")
