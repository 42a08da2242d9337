# SPDX-License-Identifier: LGPL-2.1-or-later
"""Copies of a person's into a cage of hers, or out of it, each a job: what the halves do, recorded as it is done.

Law of this room: caged has none of the bytes.  The stream's pipe is between the person's program and the half in the
cage; both say by a digest what was in it, and nothing that they do not agree about gets a name.  What cannot be
recorded gets none either.  Nobody is waited for longer than until a deadline.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import signal
from dataclasses import dataclass
from typing import Annotated, Literal, TypeVar

import msgspec

from cage_runtime import attached
from cage_runtime.audit.event import Kind
from cage_runtime.daemon.cage import Cage
from cage_runtime.daemon.jobs import Jobs
from cage_runtime.daemon.manager import Manager
from cage_runtime.daemon.sessions import Sessions, check_argv
from cage_runtime.decoding import decode
from cage_runtime.errors import CageError, InvalidName, TransferFailed
from cage_runtime.filenames import TRANSFER_BYTES_MAX, check_file_name
from cage_runtime.model import (
    DELIVERY_BYTES_PER_SECOND,
    DELIVERY_FILES_PER_SECOND,
    DELIVERY_SECONDS,
    REPORT_BYTES_MAX,
    TRANSFER_SECONDS,
    CageState,
)
from cage_runtime.packing import ENTRIES_MAX
from cage_runtime.pipes import readable
from cage_runtime.text import escape

LOG = logging.getLogger(__name__)
INTO, OUT_OF = "in", "out"
GO = signal.SIGUSR1
"""What the half waits for (mediators/gate.py)."""
OUTPUT_MAX = 2048
"""Bytes that it writes afterwards at most."""
GIVEN_UP = "given up, because whoever asked for it has gone"
_NEVER = b"-"
"""What no half writes first: one whose stream broke is only heard out."""


class CopyOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    conflict: Literal["fail", "rename", "skip", "replace"] = "fail"


class Whole(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the person's program says first: what was in the stream.  Without a digest: the stream broke."""

    size: Annotated[int, msgspec.Meta(ge=0, le=TRANSFER_BYTES_MAX)] = 0
    files: Annotated[int, msgspec.Meta(ge=0, le=ENTRIES_MAX)] = 0
    sha256: Annotated[str, msgspec.Meta(pattern=r"^([0-9a-f]{64})?\Z")] = ""


class Named(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What it says last, of a copy out of a cage: the name that it has on the host, or what was against that."""

    name: str = ""
    fault: str = ""


_WHOLE, _NAMED = msgspec.json.Decoder(Whole), msgspec.json.Decoder(Named)


class _GivenUp(TransferFailed):
    """Whoever asked for it has gone."""


class _Unnamed(TransferFailed):
    """In the words of whoever was to give it its name, and has not."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Begun:
    """A copy that is under way; the descriptors are the person's program's, and not ours any more."""

    job: str
    descriptors: tuple[int, ...]
    """Its end of the stream; where it says what was in it; of a copy out of a cage, where it is told to go on."""


class _Lines:
    """Lines that a stranger writes to a pipe, and of which it may write few."""

    def __init__(self, pipe: int) -> None:
        self.pipe, self._read, self._left = pipe, b"", REPORT_BYTES_MAX
        os.set_blocking(pipe, False)

    async def next(self) -> bytes:
        """_GivenUp where the pipe has ended, TransferFailed where it is too long."""
        while b"\n" not in self._read:
            if not self._left:
                raise TransferFailed("whoever asked for it said more than there is to say")
            await readable(self.pipe)
            try:
                chunk = os.read(self.pipe, self._left)
            except BlockingIOError:
                continue
            if not chunk:
                raise _GivenUp(GIVEN_UP)
            self._read, self._left = self._read + chunk, self._left - len(chunk)
        line, _, self._read = self._read.partition(b"\n")
        return line


@dataclass(kw_only=True, slots=True)
class _Copy:
    cage: Cage
    direction: str
    arguments: list[str]
    details: dict[str, str]
    report: _Lines
    stream: int
    """The half's end; closed when it has it."""
    go: int
    """Of a copy out of a cage, where whoever asked for it is told to go on; -1 of another."""
    may_be_there: bool = False
    """What gives it its name has been told to."""

    def so_far(self) -> str:
        return "; it may have its name" if self.may_be_there else ""

    def close_stream(self) -> None:
        if self.stream >= 0:
            os.close(self.stream)
            self.stream = -1

    def close(self) -> None:
        self.close_stream()
        os.close(self.report.pipe)
        if self.go >= 0:
            os.close(self.go)


class Copies:
    def __init__(self, manager: Manager, sessions: Sessions, jobs: Jobs) -> None:
        self._manager, self._sessions, self._jobs = manager, sessions, jobs

    def into(self, cage: Cage, path: str, name: str, options: CopyOptions, person: int) -> Begun:
        """Begin to copy what will be called `name`, unless `path` says otherwise, to `path` in the home of the cage."""
        details = {"direction": INTO, "path": path or ".", "name": name}
        return self._begin(cage, [INTO, path, name, options.conflict], details, person)

    def out_of(self, cage: Cage, path: str, person: int) -> Begun:
        """Begin to copy what is at `path` in the home of the cage."""
        return self._begin(cage, [OUT_OF, path], {"direction": OUT_OF, "path": path}, person)

    def _begin(self, cage: Cage, arguments: list[str], details: dict[str, str], person: int) -> Begun:
        cage.require(CageState.RUNNING)
        check_argv(arguments)
        direction = details["direction"]
        read, write = os.pipe()
        far, near = (read, write) if direction == INTO else (write, read)
        heard, report = os.pipe()
        told = os.pipe() if direction == OUT_OF else ()
        copy = _Copy(cage=cage, direction=direction, arguments=arguments, details=details, report=_Lines(heard),
                     stream=far, go=told[1] if told else -1)
        theirs = (near, report, *told[:1])
        try:
            job = self._jobs.start(f"copy {direction}: {cage.name}", self._work(copy), person)
        except CageError:
            copy.close()
            for descriptor in theirs:
                os.close(descriptor)
            raise
        return Begun(job=job, descriptors=theirs)

    async def _work(self, copy: _Copy) -> dict[str, str]:
        try:
            self._record(copy, "begun")
            name = await self._done(copy)
        except CageError as error:
            self._record_outcome(copy, error.sentence + ("" if isinstance(error, _Unnamed) else copy.so_far()))
            raise
        except asyncio.CancelledError:
            self._record_outcome(copy, "cancelled" + copy.so_far())
            raise
        finally:
            copy.close()
        self._record_outcome(copy, f"arrived as {name}" if name else "skipped: the name is taken")
        return {"name": name, **{key: copy.details[key] for key in ("size", "files", "sha256")}}

    async def _done(self, copy: _Copy) -> str:
        """The name that it has; empty where it was skipped because that is taken."""
        started = await self._sessions.copy(copy.cage, copy.arguments, copy.stream)
        with contextlib.ExitStack() as withdrawn:
            withdrawn.callback(os.close, started.channel)
            copy.close_stream()
            whole = await _said(copy.report, _WHOLE, TRANSFER_SECONDS)
            withdrawn.pop_all()  # the channel is whoever's who follows it
        if whole.sha256:
            copy.details |= {"size": str(whole.size), "files": str(whole.files), "sha256": whole.sha256}
        ended = await self._followed(copy, started.channel, whole)
        if ended.status:
            words = ended.untrusted_diagnostics.decode(errors="replace").strip().removeprefix("cage-mediator: ")
            raise _Unnamed(escape(words, limit=300) or "the half in the cage failed")
        if copy.direction == INTO:
            return _parse_arrived(ended.untrusted_output)
        with contextlib.suppress(BrokenPipeError):  # then there is nothing more to hear, either
            os.write(copy.go, b"\n")
        named = await _said(copy.report, _NAMED, DELIVERY_SECONDS)
        if named.fault:
            raise _Unnamed(escape(named.fault, limit=300))
        return named.name

    async def _followed(self, copy: _Copy, channel: int, whole: Whole) -> attached.Ended:
        """How the half ended that says the same of the stream; what whoever asked for it gives up is withdrawn."""
        gate = attached.Gate(ready=f"{whole.sha256}\n".encode() if whole.sha256 else _NEVER,
                            passing=functools.partial(self._passing, copy), go=GO)
        following = asyncio.ensure_future(attached.run_to_end(
            channel, gate=gate, output_max=OUTPUT_MAX, seconds=_seconds(whole)))
        gone = asyncio.ensure_future(readable(copy.report.pipe))
        try:
            await asyncio.wait({following, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not following.done():
                raise _GivenUp(GIVEN_UP)
            return following.result()
        finally:
            for task in (following, gone):
                task.cancel()
            await asyncio.gather(following, gone, return_exceptions=True)

    async def _passing(self, copy: _Copy) -> None:
        self._record(copy, "is given its name")
        copy.may_be_there = True

    def _record(self, copy: _Copy, outcome: str) -> None:
        self._manager.record(Kind.COPY, copy.cage, copy.details | {"outcome": outcome})

    def _record_outcome(self, copy: _Copy, outcome: str) -> None:
        """Of what has happened already."""
        try:
            self._record(copy, outcome)
        except CageError as error:
            LOG.error("not recorded: %s: %s: %s", escape(str(copy.details)), escape(outcome), escape(error.sentence))


_Said = TypeVar("_Said", Whole, Named)


async def _said(report: _Lines, decoder: msgspec.json.Decoder[_Said], seconds: float) -> _Said:
    """What whoever asked for the copy says next; TransferFailed where that makes no sense, or does not come."""
    try:
        async with asyncio.timeout(seconds):
            return decode(await report.next(), decoder)
    except msgspec.DecodeError as error:
        raise TransferFailed("whoever asked for it said what makes no sense") from error
    except TimeoutError as error:
        raise TransferFailed(f"it was not done after {seconds:.0f} s") from error


def _seconds(whole: Whole) -> float:
    """The time that a half has to bring it to the disk."""
    more = whole.size / DELIVERY_BYTES_PER_SECOND + whole.files / DELIVERY_FILES_PER_SECOND
    return min(DELIVERY_SECONDS + more, TRANSFER_SECONDS)


def _parse_arrived(untrusted_output: bytes) -> str:
    """The name that it has in the cage, in the cage's word; empty where it was skipped."""
    try:
        name = decode(untrusted_output, _NAMED).name
        return check_file_name(name) if name else ""
    except (msgspec.DecodeError, InvalidName) as error:
        raise TransferFailed("the cage did not say how it arrived") from error
