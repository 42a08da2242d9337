# SPDX-License-Identifier: LGPL-2.1-or-later
"""The chain on disk: numbered files of one record a line, held by one writer.

A record is one write(2) at the end of a file.  What a kill or a power loss left half written is cut off when the
chain is opened next, and a record says how much it was.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import mmap
import os
import re
import stat
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from cage_runtime.audit.event import FIRST_PREVIOUS, Event, Kind, Record, decode, rfc3339
from cage_runtime.audit.reserve import ENTITLED, FULL, Reserve
from cage_runtime.errors import RuntimeFailure
from cage_runtime.model import AUDIT_FILE_BYTES, AUDIT_RECORD_BYTES_MAX, AUDIT_TAIL_MAX

_FILE_NAME = re.compile(r"[0-9]{6}\.jsonl\Z")


CLOCK_SLACK = timedelta(seconds=1)
"""A clock that is set back by less is one that is kept right (NTP)."""
_ADVICE = {
    errno.EACCES: "; all that is in it must belong to the core's user, so chown -R it to that user",
    errno.EROFS: "; its file system is read-only, so mount it writable",
    **dict.fromkeys(FULL, "; make room there"),
}
"""What would help, by what the kernel says."""


def _file_name(number: int) -> str:
    return f"{number:06}.jsonl"


def _now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Head:
    """The record that the next one follows: its number, hash and time."""

    sequence: int = 0
    hash: str = FIRST_PREVIOUS
    time: str = ""

    @classmethod
    def of(cls, record: Record) -> _Head:
        return cls(sequence=record.sequence, hash=record.hash, time=record.event.time)


@dataclass(frozen=True, kw_only=True, slots=True)
class _End:
    """Where the chain ends: in which file, at which byte of it, and with which record.  Replaced as one value, so
    that `verify` may run in a thread beside the writer."""

    number: int = 0
    size: int = 0
    head: _Head = _Head()


class Chain:
    """The audit chain of one core, open for appending; made by `Chain.open`."""

    def __init__(self, directory: Path, directory_fd: int, file_bytes: int, clock: Callable[[], datetime],
                 tell: Callable[[Record], None]) -> None:
        self._directory = directory
        self._directory_fd = directory_fd
        self._file_bytes = file_bytes
        self._clock, self._tell = clock, tell
        self._end = self._settled = _End()
        self._defers = False
        self.lost = 0
        """How often records were taken back that the disk did not take."""
        self._fd = -1
        self._broken = False
        self._reserve = Reserve(directory_fd)

    @classmethod
    def open(
        cls, directory: Path, *, file_bytes: int = AUDIT_FILE_BYTES, clock: Callable[[], datetime] = _now,
        tell: Callable[[Record], None] = lambda _record: None,
    ) -> Chain:
        """The chain in `directory`, made with mode 0700 if it is missing; RuntimeFailure where it cannot be held.

        `file_bytes` is the size at which the next file begins; `tell` is given each record once it is written.
        """
        try:
            with contextlib.ExitStack() as on_failure:
                chain = cls(directory, _hold(directory), file_bytes, clock, tell)
                on_failure.callback(chain.close)
                chain._continue()
                on_failure.pop_all()
        except OSError as error:
            raise RuntimeFailure(f"the audit chain in {directory} cannot be opened: {error.strerror}"
                                 f"{_ADVICE.get(error.errno or 0, '')}") from error
        return chain

    def append(self, kind: Kind, fields: Mapping[str, str], *, durable: bool = True) -> Record:
        """Adds one record, which it returns; RuntimeFailure where it could not be written: nothing of it is left then.

        `fields` may come from a cage: they are escaped and cut here.  `durable` waits until the disk has it, and so
        does every kind that is not a cage's coming or going.
        """
        if self._broken or self._fd < 0:
            raise RuntimeFailure(f"the audit chain in {self._directory} takes no more records: start the core again")
        moment = self._clock()
        self._note_clock(moment)
        return self._add(Event.at(moment, kind, fields), kind, durable)

    def _note_clock(self, moment: datetime) -> None:
        """A record of its own where the clock was set back: times tell no order from there on."""
        last = self._end.head.time
        # Of one form and of UTC, they sort as they follow on each other.
        if last and rfc3339(moment + CLOCK_SLACK) < last:
            fields = {"to": rfc3339(moment), "why": f"record {self._end.head.sequence} is of {last}"}
            self._add(Event.at(moment, Kind.CLOCK_SET_BACK, fields), Kind.CLOCK_SET_BACK, durable=True)

    def _add(self, event: Event, kind: Kind, durable: bool) -> Record:
        head = self._end.head
        record = Record(sequence=head.sequence + 1, previous=head.hash, event=event)
        line = record.encode()
        on_disk = (durable or not kind.is_coming) and not self._defers
        try:
            self._append(kind, line, on_disk)
        except OSError as error:
            raise self._failure(error) from error
        self._end = replace(self._end, size=self._end.size + len(line), head=_Head.of(record))
        if on_disk:
            self._settled = self._end
        self._tell(record)
        return record

    def _failure(self, error: OSError) -> RuntimeFailure:
        return RuntimeFailure(f"no audit record can be written in {self._directory}: {error.strerror}"
                              f"{_ADVICE.get(error.errno or 0, '')}")

    # --- many at once -----------------------------------------------------------------------------------------
    @property
    def count(self) -> int:
        """Records that there are."""
        return self._end.head.sequence

    @contextlib.contextmanager
    def deferring(self) -> Iterator[None]:
        """What is appended in the block is on the disk after the next `settle`, and not before."""
        self._defers = True
        try:
            yield
        finally:
            self._defers = False

    async def settle(self, in_thread: Callable[[Callable[[], None]], Awaitable[None]]) -> None:
        """Have on the disk what has been appended so far, which `in_thread` waits for; RuntimeFailure where the disk
        does not take it: then nothing is left of all that was not there before."""
        if self._fd < 0:
            raise RuntimeFailure(f"the audit chain in {self._directory} is closed")
        # Another file may take the place of this one meanwhile, which is on the disk by then.
        end, descriptor = self._end, os.dup(self._fd)
        try:
            await in_thread(lambda: os.fdatasync(descriptor))
        except OSError as error:
            self._take_back(end)
            raise self._failure(error) from error
        finally:
            os.close(descriptor)
        if self._settled.head.sequence < end.head.sequence:
            self._settled = end

    def _take_back(self, end: _End) -> None:
        """What has been appended since it was last on the disk."""
        if self._fd >= 0 and self._settled.number == end.number == self._end.number:
            os.ftruncate(self._fd, self._settled.size)
            self._end = self._settled
            self.lost += 1

    def tail(self, count: int) -> list[str]:
        """The last `count` records, at most AUDIT_TAIL_MAX, oldest first, as the lines that were written."""
        count = max(0, min(count, AUDIT_TAIL_MAX))
        lines: list[bytes] = []
        for name in reversed(_files(self._directory_fd)):
            if len(lines) >= count:
                break
            with _reading(self._directory_fd, name) as file:
                lines = _last_lines(file, count - len(lines)) + lines
        return [line.decode("utf-8", "backslashreplace") for line in lines]

    def find(self, digest: str) -> list[str]:
        """The line of the record that has that hash, if there is one; the newest files are looked through first."""
        wanted = f'"hash":"{digest}"'.encode()
        for name in reversed(_files(self._directory_fd)):
            with _reading(self._directory_fd, name) as file:
                line = _line_with(file, wanted)
            if line:
                return [line.decode("utf-8", "backslashreplace")]
        return []

    def verify(self) -> str | None:
        """The first fault in the whole chain, one sentence; None where it is sound.

        Reads every record up to the end that the chain had when it was called.
        """
        end, head = self._end, _Head()
        for number in range(1, end.number + 1):
            path = self._directory / _file_name(number)
            try:
                with _reading(self._directory_fd, path.name) as file:
                    head, fault = _verify_file(file, end.size if number == end.number else None, str(path), head)
            except OSError as error:
                return f"{path}: cannot be read: {error.strerror}"
            if fault:
                return fault
        if head != end.head:
            return f"{self._directory}: ends with record {head.sequence}, but record {end.head.sequence} was written"
        return None

    def close(self) -> None:
        """Gives the chain free for the next writer; may be called again."""
        for descriptor in (self._fd, self._directory_fd):
            if descriptor >= 0:
                os.close(descriptor)
        self._fd = self._directory_fd = -1

    def __enter__(self) -> Chain:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # --- opening -----------------------------------------------------------------------------------------------

    def _continue(self) -> None:
        """Finds the end of the chain, cuts a torn record off it, and makes ready to append."""
        names = _files(self._directory_fd)
        if not names:
            self._begin_file(1)
            return
        self._fd = _open_file(self._directory_fd, names[-1], os.O_RDWR | os.O_APPEND)
        torn = self._cut_torn_end(names[-1])
        damaged = self._find_end(names)
        self._settled = self._end
        if damaged:
            # Evidence stays as it is, for `verify` to point at; the chain goes on beside it.
            self._begin_file(self._end.number + 1)
        if torn or damaged:
            what = {"bytes-cut": str(torn)} | ({"damaged-file": damaged} if damaged else {})
            self.append(Kind.RECOVERED, what)

    def _cut_torn_end(self, name: str) -> int:
        """Cuts off what follows the last newline of the open file, and says how many bytes that was."""
        with _reading(self._directory_fd, name) as file:
            size = file.seek(0, os.SEEK_END)
            whole = _end_of_last_line(file, size)
        if whole < size:
            os.ftruncate(self._fd, whole)
            os.fdatasync(self._fd)
        self._end = _End(number=int(name.split(".")[0]), size=whole)
        return size - whole

    def _find_end(self, names: list[str]) -> str:
        """Takes the chain up behind its last record, and says which file that is in if it is damaged, else nothing."""
        for name in reversed(names):
            with _reading(self._directory_fd, name) as file:
                head, sound = _find_head(file)
            if head:
                self._end = replace(self._end, head=head)
                return "" if sound else name
        return ""

    # --- appending ---------------------------------------------------------------------------------------------

    def _append(self, kind: Kind, line: bytes, durable: bool) -> None:
        entitled = kind in ENTITLED
        if not entitled:
            self._reserve.hold()
        try:
            self._write(line, durable)
        except OSError as error:
            if not entitled or error.errno not in FULL:
                raise
            self._reserve.release()
            self._write(line, durable)

    def _begin_file(self, number: int) -> None:
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_EXCL
        descriptor = _open_file(self._directory_fd, _file_name(number), flags)
        if self._fd >= 0:
            os.close(self._fd)
        self._fd, self._end = descriptor, replace(self._end, number=number, size=0)
        self._settled = self._end
        os.fsync(self._directory_fd)

    def _rotate(self) -> None:
        # The old file must be whole before a next one exists: only the last file is ever searched for a torn end.
        os.fdatasync(self._fd)
        self._begin_file(self._end.number + 1)

    def _write(self, line: bytes, durable: bool) -> None:
        if self._end.size >= self._file_bytes:
            self._rotate()
        try:
            written = os.write(self._fd, line)
            if written != len(line):
                written += os.write(self._fd, line[written:])  # which says why
            if written != len(line):
                raise OSError(errno.EIO, f"only {written} of {len(line)} bytes were taken")
            if durable:
                os.fdatasync(self._fd)
        except OSError:
            self._broken = True
            os.ftruncate(self._fd, self._end.size)
            self._broken = False
            raise


def _hold(directory: Path) -> int:
    """A locked descriptor of `directory`, which must be ours alone."""
    with contextlib.suppress(FileExistsError):
        directory.mkdir(mode=0o700)
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with contextlib.ExitStack() as on_failure:
        on_failure.callback(os.close, descriptor)
        found = os.fstat(descriptor)
        if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
            raise RuntimeFailure(f"{directory} must belong to the core's user alone: chown it to that user, chmod 0700")
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RuntimeFailure(f"the audit chain in {directory} is in use by another core; stop it first") from error
        on_failure.pop_all()
    return descriptor


def _files(directory_fd: int) -> list[str]:
    """The chain's files, oldest first; others in the directory do not count."""
    return sorted(name for name in os.listdir(directory_fd) if _FILE_NAME.match(name))


def _open_file(directory_fd: int, name: str, flags: int) -> int:
    return os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=directory_fd)


def _reading(directory_fd: int, name: str) -> BinaryIO:
    return os.fdopen(_open_file(directory_fd, name, os.O_RDONLY), "rb")


def _end_of_last_line(file: BinaryIO, size: int) -> int:
    """The offset behind the last newline in the first `size` bytes; 0 where there is none."""
    if size == 0:
        return 0
    with mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ) as content:
        return content.rfind(b"\n") + 1


def _last_lines(file: BinaryIO, count: int) -> list[bytes]:
    """The last `count` whole lines of a file, without their newlines."""
    size = file.seek(0, os.SEEK_END)
    if size == 0 or count == 0:
        return []
    with mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ) as content:
        end = content.rfind(b"\n")
        start = end + 1
        for _ in range(count):
            if start <= 0:
                break
            start = content.rfind(b"\n", 0, start - 1) + 1
        return content[start:end].split(b"\n") if end > 0 else []


def _line_with(file: BinaryIO, wanted: bytes) -> bytes:
    """The first whole line that has these bytes and is a sound record, without its newline; empty where there is
    none.  No value of a record has them, where a quotation mark is escaped."""
    size = file.seek(0, os.SEEK_END)
    if size == 0:
        return b""
    with mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ) as content:
        at = content.find(wanted)
        end = content.find(b"\n", at)
        if at < 0 or end < 0:
            return b""
        line = content[content.rfind(b"\n", 0, at) + 1 : end]
    try:
        decode(line + b"\n")
    except ValueError:
        return b""
    return line


def _find_head(file: BinaryIO) -> tuple[_Head | None, bool]:
    """The end of the chain as a file has it, None for an empty one; and whether its last line is a sound record."""
    last = _last_lines(file, 1)
    if not last:
        return None, True
    try:
        record = decode(last[0] + b"\n")
    except ValueError:
        return _head_after_damage(file), False
    return _Head.of(record), True


def _head_after_damage(file: BinaryIO) -> _Head:
    """A head to go on from where the last line is no sound record: `verify` will stop before it."""
    file.seek(0)
    sequence, line = 0, b""
    for line in file:
        try:
            sequence = decode(line).sequence
        except ValueError:
            sequence += 1
    return _Head(sequence=sequence, hash=hashlib.sha256(line).hexdigest())


def _lines(file: BinaryIO, size: int | None) -> Iterator[bytes]:
    """The lines of a file, of its first `size` bytes where that is given; a line too long to be a record in parts."""
    left = os.fstat(file.fileno()).st_size if size is None else size
    while left > 0 and (line := file.readline(min(left, AUDIT_RECORD_BYTES_MAX + 1))):
        yield line
        left -= len(line)


def _verify_file(file: BinaryIO, size: int | None, path: str, head: _Head) -> tuple[_Head, str | None]:
    """The head after the file's records, which are to follow `head`; and the first fault among them."""
    for number, line in enumerate(_lines(file, size), start=1):
        place = f"{path}:{number}"
        try:
            record = decode(line)
        except ValueError as error:
            return head, f"{place}: the record {error}"
        if record.sequence != head.sequence + 1:
            return head, f"{place}: record {record.sequence} stands where record {head.sequence + 1} should"
        if record.previous != head.hash:
            return head, f"{place}: record {record.sequence} does not follow from the record before it"
        head = _Head.of(record)
    return head, None
