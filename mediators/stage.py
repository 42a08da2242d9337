# SPDX-License-Identifier: LGPL-2.1-or-later
"""Staging: the core's own copy of what a cage handed over, made before anything else believes it.

Law of this room: nothing but a worker process touches the content of a descriptor that came from a cage, because a
file can block for ever or change while it is read.  The worker is killed at its deadline; its copy has no name, so
that an end at any moment leaves nothing behind.  The space that a copy takes is granted before it is taken, and given
back when the transfer ends, whoever holds the copy then.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import fcntl
import functools
import os
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cage_runtime.confine import seal
from cage_runtime.errors import PolicyRefused, RuntimeFailure, TransferFailed
from cage_runtime.model import STAGED_BYTES_PER_CAGE, TRANSFER_SECONDS
from mediators.reading import (
    GO,
    NO_SPACE,
    REPORT_MAX,
    Copy,
    Types,
    Work,
    copy,
    report,
    report_encrypted,
    report_file,
    report_tree,
)
from mediators.sniff import Sniffer

if TYPE_CHECKING:  # few stage what is signed, and what looks at signatures takes much memory
    from mediators.sshsig import Signer

RESERVE = 0.05
"""The part of the core's file system that staging leaves free."""
O_PATH = 0o10000000
PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True)


@dataclass(kw_only=True, slots=True, eq=False)
class Staged:
    """A whole copy, in a file without a name: `descriptor` cannot be written through, and is for the target."""

    owner: str
    writable: int = -1
    descriptor: int = -1
    size: int = 0
    """Bytes of the copy, which for a tree is the whole stream."""
    content: int = 0
    """Bytes of all that was sent."""
    files: int = 1
    """Files, and directories, in a tree."""
    sha256: str = ""
    """Of the copy of a file, or of the tree's manifest."""
    plain_sha256: str = ""
    """Of the file as it was sent, where its copy is encrypted."""
    types: tuple[str, ...] = ()
    """MIME types of all that is there, where they were to be looked for."""
    release: Callable[[Staged], None] = lambda _staged: None

    def discard(self) -> None:
        """Give the space back, also where somebody keeps a descriptor of the copy, and close ours."""
        try:
            if self.writable >= 0:
                os.ftruncate(self.writable, 0)
        finally:
            self.rest()
            self.release(self)

    def copied(self) -> int:
        """Bytes of the copy that are there: how far the worker has written in the open file that is ours too."""
        return os.lseek(self.writable, 0, os.SEEK_CUR)

    def rest(self) -> None:
        """Close our descriptors; the space stays its owner's, for a copy that has a name."""
        for descriptor in (self.writable, self.descriptor):
            if descriptor >= 0:
                os.close(descriptor)
        self.writable = self.descriptor = -1

    def missing(self) -> int:
        """Bytes that were granted and that the file system has not set apart yet."""
        return 0 if self.sha256 else max(0, self.size - os.fstat(self.writable).st_blocks * 512)


Begun = Callable[[Staged], object]
"""Given a copy that has been granted its size, and grows from then on."""


class Stager:
    """Stages into `directory`, which it makes for its own user alone where it is missing."""

    def __init__(self, directory: Path, *, seconds: float = TRANSFER_SECONDS, copier: Copy = copy,
                 sniffer: Sniffer | None = None, nameable: bool = False) -> None:
        """`nameable`: a copy may be given a name, in `directory`, for the next core half to find."""
        self.directory, self._seconds, self._copier, self._sniffer = directory, seconds, copier, sniffer
        self._unnamed_flags = os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC | (0 if nameable else os.O_EXCL)
        self._under_way: set[Staged] = set()
        try:
            directory.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise RuntimeFailure(f"{directory}: cannot be made for staging: {error.strerror}") from error

    @property
    def sniffs(self) -> bool:
        """Whether it can tell what a file is."""
        return self._sniffer is not None

    async def stage(self, descriptor: int, owner: str, policy_max: int = 0, *, typed: bool = False,
                    recipient: bytes = b"", signer: Signer | None = None, untrusted_signature: bytes = b"",
                    begun: Begun = lambda _staged: None) -> Staged:
        """A copy of the file open as `descriptor`, which stays the caller's, for the instance `owner`.

        TransferFailed with what is wrong with the file, or PolicyRefused where it has more than `policy_max` bytes
        (0: no such bound); both are worded to follow its name.  Its type is looked for where it is to be `typed`.
        With a `recipient`, a public key, there is never a copy but one that is encrypted for it.  With a `signer`,
        there is none but of what `untrusted_signature` is its signature of, else PolicyRefused.  `begun` is given the
        copy once it may grow.
        """
        _check_access(descriptor)
        signature = functools.partial(signer.checking, untrusted_signature) if signer else None
        if recipient:
            # Late, for it takes much memory and two of the three who stage do not encrypt; not too late, because a
            # worker opens nothing.
            import cage_runtime.encrypted  # noqa: F401

            encrypt = functools.partial(
                report_encrypted, recipient, descriptor, policy_max, self._types(typed), signature)
            return await self._staged(descriptor, owner, encrypt, begun)
        work = functools.partial(report_file, self._copier, descriptor, policy_max, self._types(typed), signature)
        return await self._staged(descriptor, owner, work, begun)

    async def stage_tree(self, stream: int, owner: str, max_size: int = 0, max_files: int = 0, *,
                         typed: bool = False, begun: Begun = lambda _staged: None) -> Staged:
        """A copy of the tree that comes through the pipe `stream`; as `stage`, of which it differs in nothing else."""
        work = functools.partial(report_tree, stream, max_size, max_files, self._types(typed))
        return await self._staged(stream, owner, work, begun)

    def adopt(self, staged: Staged) -> None:
        """Count the space of a copy that an earlier core half has named as its owner's."""
        staged.release = self._under_way.discard
        self._under_way.add(staged)

    def _types(self, typed: bool) -> Types:
        if typed and self._sniffer is None:
            raise RuntimeFailure("the core cannot tell what a file is, which the policy asks for: its host has no "
                                 "libmagic")
        return Types(self._sniffer if typed else None)

    async def _staged(self, source: int, owner: str, work: Work, begun: Begun) -> Staged:
        with contextlib.ExitStack() as on_failure:
            staged = Staged(owner=owner, writable=self._unnamed(), release=self._under_way.discard)
            on_failure.callback(staged.discard)
            self._under_way.add(staged)
            await self._copied(source, staged, work, begun)
            # another open file, read-only: what the target is given cannot be written through
            staged.descriptor = os.open(f"/proc/self/fd/{staged.writable}", os.O_RDONLY | os.O_CLOEXEC)
            on_failure.pop_all()
        return staged

    def _unnamed(self) -> int:
        try:
            return os.open(self.directory, self._unnamed_flags, 0o600)
        except OSError as error:
            if error.errno in {errno.ENOSPC, errno.EDQUOT}:
                raise TransferFailed(NO_SPACE) from error
            raise RuntimeFailure(f"{self.directory}: cannot be staged in: {error.strerror}") from error

    async def _copied(self, source: int, staged: Staged, work: Work, begun: Begun) -> None:
        near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with near:
            with far:
                worker = self._fork(source, staged.writable, far, work)
            try:
                async with asyncio.timeout(self._seconds):
                    self._grant(staged, _read_size(await message(near)))
                    begun(staged)
                    near.send(GO)
                    reported = await message(near)
                    await worker.ended()
                    _read_report(reported, staged)
            except TimeoutError as error:
                raise TransferFailed(f"could not be read within {self._seconds:.0f} s") from error
            finally:
                worker.kill()

    def _grant(self, staged: Staged, size: int) -> None:
        """Let the copy have `size` bytes, in the owner's bound and in what there is; else TransferFailed."""
        of_owner = sum(other.size for other in self._under_way if other.owner == staged.owner)
        if of_owner + size > STAGED_BYTES_PER_CAGE:
            raise TransferFailed(f"cannot be sent while others are: at once, a cage can send "
                                 f"{STAGED_BYTES_PER_CAGE >> 30}G; wait until one has ended")
        room = os.statvfs(self.directory)
        free = int(room.f_bavail - RESERVE * room.f_blocks) * room.f_frsize
        if size > free - sum(other.missing() for other in self._under_way):
            raise TransferFailed(NO_SPACE)
        staged.size = size

    def _fork(self, source: int, target: int, far: socket.socket, work: Work) -> Worker:
        parent = os.getpid()
        pid = os.fork()
        if pid:
            return Worker(pid)
        try:
            _seclude(parent, {source, target, far.fileno()})
            far.send(report(work, target, far))
        finally:
            os._exit(0)


async def message(near: socket.socket) -> bytes:
    """The worker's next message, empty where it has ended."""
    near.setblocking(False)
    return await asyncio.get_running_loop().sock_recv(near, REPORT_MAX)


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
    """In the worker: be alone, and open nothing any more."""
    be_alone(parent, keep)
    seal()


def be_alone(parent: int, keep: set[int]) -> None:
    """In a child of the core half: go when that goes, and hold no other cage's descriptors."""
    _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(0)
    signal.set_wakeup_fd(-1)
    low = 0
    for descriptor in sorted(keep):
        os.closerange(low, descriptor)
        low = descriptor + 1
    os.closerange(low, os.sysconf("SC_OPEN_MAX"))


def _read_size(message: bytes) -> int:
    return int(_read(message, "size"))


def _read_report(message: bytes, staged: Staged) -> None:
    size, content, files, sha256, types, *plain = _read(message, "copied").split()
    staged.size, staged.content, staged.files, staged.sha256 = int(size), int(content), int(files), sha256
    staged.types = tuple(types.split(",")) if types != "-" else ()
    staged.plain_sha256 = plain[0] if plain else ""


def _read(message: bytes, expected: str) -> str:
    """What a message of the `expected` kind says; the error that it is where it is another."""
    kind, _, rest = message.decode().partition(" ")
    if kind == "unfit":
        raise TransferFailed(rest)
    if kind == "refused":
        raise PolicyRefused(rest)
    if kind != expected:
        raise RuntimeFailure("the process that copied it failed; send it again")
    return rest
