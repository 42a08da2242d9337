# SPDX-License-Identifier: LGPL-2.1-or-later
"""The core half's own notes of transfers under way, in its staging folder: what the next one finds of them.

Law of this room: what was accepted is on disk, copy and record, before anybody is told so, and stays until what came of
it is in the chain.  A record that is not exactly one of ours counts for nothing: it is set aside.

REQUEST.begun   a transfer that is under way; nothing has a name in the target
REQUEST.named   the target was told to give it its name; of neither is there a copy, and whoever sent it knows best
REQUEST.kept    a transfer that was accepted, and REQUEST.copy what is to be delivered
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import socket
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from cage_runtime.decoding import decode
from cage_runtime.errors import CageError, RuntimeFailure, TransferFailed, UsageError
from cage_runtime.model import (
    KEPT_ASIDE,
    KEPT_RECORD_BYTES,
    REQUEST_ID_DIGITS,
    TRANSFER_BYTES_MAX,
    check_cage_name,
)
from cage_runtime.text import escape
from mediators.files import protocol
from mediators.reading import TYPES_MAX
from mediators.stage import Staged, Worker, be_alone, message

LOG = logging.getLogger(__name__)
BEGUN, NAMED, KEPT, COPY, FRESH = "begun", "named", "kept", "copy", "new"
ASIDE = "aside-"
"""Begins the name of what is of no use and is kept for whoever looks into that."""
_ENTRY = re.compile(rf"([0-9a-f]{{{REQUEST_ID_DIGITS}}})\.({BEGUN}|{NAMED}|{KEPT}|{COPY}|{FRESH})\Z")
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_OLD = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_Digest = Annotated[str, msgspec.Meta(pattern=r"^([0-9a-f]{64})?$", max_length=64)]
_Word = Annotated[str, msgspec.Meta(max_length=255)]


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is known of a transfer, as it is written down; of one that has only begun, not what it turned out to be."""

    version: Literal[1] = 1
    request: Annotated[str, msgspec.Meta(pattern=rf"^[0-9a-f]{{{REQUEST_ID_DIGITS}}}$", max_length=REQUEST_ID_DIGITS)]
    since: Annotated[int, msgspec.Meta(ge=0, lt=10**12)]
    """When it was accepted, or begun, in seconds since the epoch."""
    service: Annotated[str, msgspec.Meta(pattern=r"^files\.(Send|Move)$", max_length=10)]
    source: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
    source_name: _Word
    asked: _Word
    """The target as it was asked for; empty where policy was to name it."""
    target: _Word
    target_uuid: Annotated[str, msgspec.Meta(max_length=64)]
    name: _Word
    tree: bool
    conflict: _Word
    transform: _Word
    require: _Word = ""
    """What it was found to be when it was read."""
    log: _Word
    size: Annotated[int, msgspec.Meta(ge=0, le=TRANSFER_BYTES_MAX)] = 0
    content: Annotated[int, msgspec.Meta(ge=0, le=TRANSFER_BYTES_MAX)] = 0
    files: Annotated[int, msgspec.Meta(ge=0, lt=2**32)] = 0
    sha256: _Digest = ""
    plain_sha256: _Digest = ""
    types: Annotated[tuple[_Word, ...], msgspec.Meta(max_length=TYPES_MAX)] = ()

    def check(self, request: str) -> None:
        """UsageError where it is not a transfer that there can be, with that id."""
        if self.request != request:
            raise UsageError("it is of another request than its name says")
        for cage in filter(None, (self.source_name, self.asked)):
            check_cage_name(cage)
        protocol.check_file_name(self.name)
        protocol.check_conflict(self.conflict)

    def of(self, staged: Staged) -> Record:
        """It, with what it turned out to be."""
        return msgspec.structs.replace(
            self, size=staged.size, content=staged.content, files=staged.files, sha256=staged.sha256,
            plain_sha256=staged.plain_sha256, types=staged.types)

    def staged(self) -> Staged:
        """The copy, as it is while nobody has it open."""
        return Staged(owner=self.source, size=self.size, content=self.content, files=self.files, sha256=self.sha256,
                      plain_sha256=self.plain_sha256, types=self.types)


_RECORDS = msgspec.json.Decoder(Record)


@dataclass(frozen=True, kw_only=True, slots=True)
class Useless:
    """What was set aside: its name, and what is wrong with it."""

    name: str
    fault: str


@dataclass(kw_only=True, slots=True)
class Found:
    """What an earlier core half has left."""

    kept: list[Record]
    begun: list[Record]
    """Under way when it ended; nothing has a name."""
    named: list[Record]
    """Under way when it ended; it may have its name."""
    useless: list[Useless]


class Folder:
    """The notes in `directory`, which is there; nobody else writes in it."""

    def __init__(self, directory: Path) -> None:
        self._path = directory
        self._descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    # --- while it is under way -------------------------------------------------------------------------------
    def begin(self, record: Record) -> None:
        """Note what has begun.  It need not outlive the machine: with that, whoever sent it is gone too."""
        try:
            _write(self._descriptor, f"{record.request}.{BEGUN}", msgspec.json.encode(record), durable=False)
        except OSError as error:
            raise TransferFailed(f"the core cannot note it down: {error.strerror}") from error

    def pass_(self, request: str) -> None:
        """Note that it is given its name."""
        with contextlib.suppress(FileNotFoundError):
            os.rename(f"{request}.{BEGUN}", f"{request}.{NAMED}", src_dir_fd=self._descriptor,
                      dst_dir_fd=self._descriptor)

    async def keep(self, record: Record, staged: Staged) -> None:
        """Returns once the copy and its record are on disk, under their names; TransferFailed where they cannot be, and
        then neither is there.  Another process waits for the disk."""
        near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        kept = False
        with near:
            with far:
                worker = self._fork(record, staged.writable, far)
            try:
                said = (await message(near)).decode()
                if said != KEPT:
                    raise TransferFailed(f"the core cannot keep it: {said or 'the process that writes it failed'}")
                kept = True
            finally:
                worker.kill()
                await worker.ended()
                if not kept:
                    self.forget(record.request)

    def _fork(self, record: Record, copy: int, far: socket.socket) -> Worker:
        parent = os.getpid()
        pid = os.fork()
        if pid:
            return Worker(pid)
        try:
            be_alone(parent, {copy, self._descriptor, far.fileno()})
            far.send(self._keep(record, copy))
        finally:
            os._exit(0)

    def _keep(self, record: Record, copy: int) -> bytes:
        folder, request = self._descriptor, record.request
        try:
            os.fsync(copy)
            os.link(f"/proc/self/fd/{copy}", f"{request}.{COPY}", dst_dir_fd=folder)
            _write(folder, f"{request}.{FRESH}", msgspec.json.encode(record), durable=True)
            os.rename(f"{request}.{FRESH}", f"{request}.{KEPT}", src_dir_fd=folder, dst_dir_fd=folder)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(f"{request}.{BEGUN}", dir_fd=folder)
            os.fsync(folder)
        except OSError as error:
            return (error.strerror or "it failed").encode()
        return KEPT.encode()

    def forget(self, request: str) -> None:
        """What came of it is recorded, or told: the record goes first."""
        for kind in (BEGUN, NAMED, KEPT, FRESH, COPY):
            try:
                os.unlink(f"{request}.{kind}", dir_fd=self._descriptor)
            except FileNotFoundError:
                continue
            except OSError as error:
                LOG.error("%s.%s stays in %s: %s", request, kind, self._path, error.strerror)

    def open(self, request: str, staged: Staged) -> None:
        """Open the copy; TransferFailed where it is not the one that was kept."""
        name = f"{request}.{COPY}"
        staged.rest()
        try:
            staged.writable = os.open(name, os.O_RDWR | _OLD, dir_fd=self._descriptor)
            staged.descriptor = os.open(name, os.O_RDONLY | _OLD, dir_fd=self._descriptor)
        except OSError as error:
            staged.rest()
            raise TransferFailed(f"its copy cannot be opened any more: {error.strerror}") from error
        if fault := _fault(os.fstat(staged.writable), staged.size):
            staged.rest()
            raise TransferFailed(f"its copy {fault}")

    # --- what an earlier one has left ------------------------------------------------------------------------
    def load(self) -> Found:
        """All that is there; what is of no use is set aside, and what is half done removed."""
        found = Found(kept=[], begun=[], named=[], useless=[])
        entries = sorted(os.listdir(self._descriptor))
        matches = [match for entry in entries if (match := _ENTRY.match(entry))]
        for entry in entries:
            if not _ENTRY.match(entry) and not entry.startswith(ASIDE):
                LOG.warning("%s: is not the core's; it is left alone", escape(str(self._path / entry)))
        of_kind = {KEPT: found.kept, BEGUN: found.begun, NAMED: found.named}
        kept = {match[1] for match in matches if match[2] == KEPT}
        for match in matches:
            request, kind = match[1], match[2]
            if kind == FRESH or (kind != KEPT and kind != COPY and request in kept):
                self._remove(match[0])
            elif kind in of_kind:
                self._take(match[0], request, of_kind[kind], found)
        loaded = {record.request for record in found.kept}
        for match in matches:
            if match[2] == COPY and match[1] not in loaded:
                self._remove(match[0])
        return found

    def _take(self, name: str, request: str, into: list[Record], found: Found) -> None:
        try:
            into.append(self._read(name, request, kept=into is found.kept))
        except _Empty:  # a machine that died before it was written
            self._remove(name)
        except (CageError, OSError, msgspec.DecodeError) as error:
            fault = error.sentence if isinstance(error, CageError) else str(error)
            found.useless.append(Useless(name=name, fault=escape(fault, limit=200)))
            self._set_aside(name, f"{request}.{COPY}")

    def _read(self, name: str, request: str, *, kept: bool) -> Record:
        descriptor = os.open(name, os.O_RDONLY | _OLD, dir_fd=self._descriptor)
        try:
            status = os.fstat(descriptor)
            if stat.S_ISREG(status.st_mode) and not status.st_size and not kept:
                raise _Empty(name)
            if fault := _fault(status):
                raise UsageError(f"it {fault}")
            untrusted = os.read(descriptor, KEPT_RECORD_BYTES + 1)
        finally:
            os.close(descriptor)
        if len(untrusted) > KEPT_RECORD_BYTES:
            raise UsageError(f"it has more than {KEPT_RECORD_BYTES} bytes")
        record = decode(untrusted, _RECORDS)
        record.check(request)
        if kept and not (record.sha256 and record.size and record.target_uuid):
            raise UsageError("it does not say what was kept")
        return record

    def _remove(self, name: str) -> None:
        with contextlib.suppress(OSError):
            os.unlink(name, dir_fd=self._descriptor)

    def _set_aside(self, *names: str) -> None:
        room = sum(entry.startswith(ASIDE) for entry in os.listdir(self._descriptor)) < KEPT_ASIDE
        for name in names:
            try:
                if room:
                    os.rename(name, ASIDE + name, src_dir_fd=self._descriptor, dst_dir_fd=self._descriptor)
                else:
                    os.unlink(name, dir_fd=self._descriptor)
            except FileNotFoundError:
                continue
            except OSError as error:
                LOG.error("%s stays where it is: %s", escape(str(self._path / name)), error.strerror)


class _Empty(RuntimeFailure):
    """There is nothing in a record."""


def _fault(status: os.stat_result, size: int = -1) -> str:
    """What is wrong with a file that has to be one of ours, and to have so many bytes."""
    if not stat.S_ISREG(status.st_mode):
        return "is not a regular file"
    if status.st_uid != os.geteuid() or status.st_mode & 0o077:
        return "is not the core half's alone"
    if status.st_nlink != 1:
        return "has another name"
    return f"has {status.st_size} bytes, and had {size}" if size not in (-1, status.st_size) else ""


def _write(folder: int, name: str, content: bytes, *, durable: bool) -> None:
    descriptor = os.open(name, _NEW, 0o600, dir_fd=folder)
    try:
        if os.write(descriptor, content) != len(content):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if durable:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
