# SPDX-License-Identifier: LGPL-2.1-or-later
"""One call from its service's start to its end: bytes both ways, a bound on each, and how it ended.

Law of this room: a call ends for one reason, the first that comes: the service ended, whoever called has gone, or one
of its bounds was reached.  Then the service is ended too, by SIGTERM first, and waited for no longer than a moment.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from dataclasses import dataclass
from typing import Any

from cage_runtime import attached
from cage_runtime.errors import RuntimeFailure, TransferFailed
from cage_runtime.model import CALL_IDLE_SECONDS, CALL_SECONDS
from cage_runtime.outcome import Outcome
from mediators.call.protocol import FAILED, REFUSED
from mediators.call.stream import Direction

STOPPED = Outcome(137, "the cage of the service stopped")
"""As of a shell whose child was killed."""
GONE = Outcome(FAILED, "whoever called has gone")
TOO_MUCH = Outcome(REFUSED, "more bytes than the policy lets through")
GRACE_SECONDS = 2.0
"""What a service has after SIGTERM, and again after SIGKILL."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Bounds:
    """What a call may take: bytes each way, seconds in all, and seconds in which nothing moves."""

    bytes: int
    seconds: float = CALL_SECONDS
    idle_seconds: float = CALL_IDLE_SECONDS


@dataclass(frozen=True, kw_only=True, slots=True)
class Ends:
    """The core's ends of the three pipes of whoever calls."""

    inward: int
    """Of which it reads what the service is to get."""
    outward: int
    status: int


async def start(channel: socket.socket, held: contextlib.ExitStack) -> int:
    """Wait until the program at the other end of `channel` has started; the pipe with its output, which `held` closes.

    RuntimeFailure where it did not.
    """
    try:
        started, pipes = await attached.next_event(channel, held)
    except TransferFailed as error:
        raise RuntimeFailure("the cage of the service stopped before it could start") from error
    if started.event != "started" or len(pipes) != 1 or not attached.is_pipe(pipes[0]):
        raise RuntimeFailure("the service could not be started")
    return os.dup(pipes[0])


async def drained(channel: socket.socket, output: int, seconds: float) -> Outcome:
    """How the service at the other end of `channel` ended, of whose `output` nobody hears."""
    dropping = asyncio.ensure_future(attached.read(output, 0))
    try:
        async with asyncio.timeout(seconds):
            return await _exit(channel)
    except TimeoutError:
        attached.send_signal(channel, signal.SIGTERM)
        return Outcome(FAILED, f"the service had not ended after {seconds:.0f} s")
    finally:
        dropping.cancel()
        await asyncio.gather(dropping, return_exceptions=True)  # before its descriptor is closed


async def _exit(channel: socket.socket) -> Outcome:
    with contextlib.ExitStack() as held:
        try:
            ended, descriptors = await attached.next_event(channel, held)
        except TransferFailed:
            return STOPPED
    if ended.event != "exit" or descriptors:
        return Outcome(FAILED, "the cage of the service did not answer as it should")
    return Outcome(ended.status)


class Carried:
    """A call under way: `channel` is that of the service, whose input and output are `into` and `out_of`.

    All of these, and the `ends`, are its to close.
    """

    def __init__(self, channel: socket.socket, ends: Ends, *, into: int, out_of: int, bounds: Bounds) -> None:
        self._loop = asyncio.get_running_loop()
        self._channel, self._status, self._bounds = channel, ends.status, bounds
        self._born = self._loop.time()
        self._stopped: asyncio.Future[Outcome] = self._loop.create_future()
        self._drained = asyncio.Event()
        self.inward = Direction(ends.inward, into, most=bounds.bytes, ended=self._on_end)
        self.outward = Direction(out_of, ends.outward, most=bounds.bytes, ended=self._on_end)
        self._loop.add_reader(self._status, self._stop, GONE)
        self._timer = self._loop.call_later(0, self._look)

    @property
    def seconds(self) -> float:
        return self._loop.time() - self._born

    async def run(self) -> Outcome:
        """How it ended; it has told whoever called, if that is there to hear."""
        exiting = asyncio.ensure_future(_exit(self._channel))
        try:
            await asyncio.wait({exiting, self._stopped}, return_when=asyncio.FIRST_COMPLETED)
            if exiting.done():
                self.outward.finish()
                draining: asyncio.Future[Any] = asyncio.ensure_future(self._drained.wait())
                await asyncio.wait((draining, self._stopped), return_when=asyncio.FIRST_COMPLETED)
                draining.cancel()
            outcome = self._stopped.result() if self._stopped.done() else exiting.result()
            if not exiting.done():
                await self._end_service(exiting)
            self._tell(outcome)
            return outcome
        finally:
            exiting.cancel()
            await asyncio.gather(exiting, return_exceptions=True)  # before its descriptor is closed
            self._close()

    def _on_end(self) -> None:
        if self.inward.exceeded or self.outward.exceeded:
            self._stop(TOO_MUCH)
        if not self.outward.open:
            self._drained.set()

    def _stop(self, outcome: Outcome) -> None:
        if not self._stopped.done():
            self._stopped.set_result(outcome)
        if outcome is GONE:
            self._loop.remove_reader(self._status)

    def _look(self) -> None:
        """Stop it where it has had its time; come back when that could be."""
        bounds = self._bounds
        whole = self._born + bounds.seconds
        idle = max(self.inward.touched, self.outward.touched) + bounds.idle_seconds
        now = self._loop.time()
        if now >= whole:
            self._stop(Outcome(FAILED, f"the call took longer than {bounds.seconds:.0f} s"))
        elif now >= idle:
            self._stop(Outcome(FAILED, f"nothing was sent either way for {bounds.idle_seconds:.0f} s"))
        else:
            self._timer = self._loop.call_at(min(whole, idle), self._look)

    async def _end_service(self, exiting: asyncio.Future[Outcome]) -> None:
        self.inward.close()
        self.outward.close()
        for number in (signal.SIGTERM, signal.SIGKILL):
            attached.send_signal(self._channel, number)
            await asyncio.wait({exiting}, timeout=GRACE_SECONDS)
            if exiting.done():
                return

    def _tell(self, outcome: Outcome) -> None:
        # It fits into the pipe, which is empty; whoever has read enough of the call need not read this.
        os.set_blocking(self._status, False)
        with contextlib.suppress(BrokenPipeError):
            os.write(self._status, outcome.line())

    def _close(self) -> None:
        self._timer.cancel()
        self._loop.remove_reader(self._status)
        self.inward.close()
        self.outward.close()
        os.close(self._status)
        self._channel.close()
