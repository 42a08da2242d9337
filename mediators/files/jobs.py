# SPDX-License-Identifier: LGPL-2.1-or-later
"""The transfers of a cage that are under way, as objects on the cage's own bus: how far each is; a way to cancel it.

Law of this room: a job is there for the user in the cage whose program began it, for any other it is not, and for as
long as it is under way.  What is known of it is what the core half told through a pipe, and it is cancelled through
another one: nobody who does not hold these can name it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any

from cage_runtime.bus import Answer, Bus, Call, Service, Variant, described
from cage_runtime.errors import (
    CageError,
    Cancelled,
    CutOff,
    NothingDone,
    RuntimeFailure,
    TransferFailed,
    UnknownObject,
    from_bus,
)
from cage_runtime.model import TRANSFER_JOBS_LISTED, TRANSFER_JOBS_MAX
from cage_runtime.pipes import readable
from cage_runtime.text import escape
from mediators.files import protocol
from mediators.files.protocol import (
    ARRIVED,
    CANCEL,
    COMMITTED,
    DONE,
    ERROR,
    LINE_MAX,
    READING,
    SENTENCE,
    STATE,
    TOTAL,
    WAITING,
)

Told = dict[str, Any]
"""A line of what the core half tells."""
_NOT_UNDERSTOOD = RuntimeFailure("the core's files mediator says what cannot be understood; is it of the same version?")


class Job:
    """One transfer, from when it is asked for until it is known what became of it."""

    def __init__(self, *, number: int, owner: int, target: str, name: str) -> None:
        """`owner`: the uid in the cage of whoever began it."""
        self.number, self.owner, self.target, self.name = number, owner, target, name
        self.state, self.done, self.total = WAITING, 0, 0
        self.task: asyncio.Task[Told]
        """The last that the core half tells, which has where it arrived; CageError, which is Cancelled where it was."""
        self.told: Callable[[Told], object] = lambda _told: None
        """Told what the core half tells meanwhile."""
        self.asked = False
        """The core half has been asked to begin: from then on only that can give it up."""
        self.wanted = False
        """It is to be cancelled."""
        self._control = -1

    @property
    def path(self) -> str:
        return f"{protocol.PATH}/jobs/{self.number}"

    def cancel(self) -> None:
        """Have it given up, unless it may have arrived by now; `task` says which."""
        if self.wanted:
            return
        self.wanted = True
        if self._control >= 0:
            self._say_so()
        elif not self.asked:
            self.task.cancel()

    def _say_so(self) -> None:
        with contextlib.suppress(BrokenPipeError):  # it has ended meanwhile
            os.write(self._control, CANCEL)

    async def follow(self, status: int, control: int) -> Told:
        """Follow it to its end by the pipes that the core half has made, which are closed here."""
        with contextlib.ExitStack() as held:
            held.callback(os.close, status)
            held.callback(os.close, control)
            self._control, self.state = control, READING
            held.callback(setattr, self, "_control", -1)
            if self.wanted:
                self._say_so()
            async with contextlib.aclosing(lines(status)) as said:
                async for told in said:
                    if ARRIVED in told:
                        return told
                    if ERROR in told:
                        raise from_bus(str(told[ERROR]), str(told[SENTENCE]))
                    self._learn(told)
        raise self.cut_off()

    def _learn(self, told: Told) -> None:
        if told.get(STATE) in protocol.STATES:
            self.state = told[STATE]
        self.done, self.total = int(told.get(DONE, self.done)), int(told.get(TOTAL, self.total))
        self.told(told)

    def cut_off(self) -> CageError:
        """What there is to say where the core half has ended meanwhile."""
        if self.state == COMMITTED:
            return CutOff(f'the core ended meanwhile, so it is not known whether "{escape(self.name)}" arrived; look '
                          "in the target before sending it again")
        return NothingDone(f'the core ended meanwhile, and nothing of "{escape(self.name)}" arrived; send it again')

    def cancelled(self) -> Cancelled:
        return Cancelled(f'"{escape(self.name)}" was cancelled; nothing arrived')


async def lines(pipe: int) -> AsyncGenerator[Told]:
    """The objects that come through `pipe`, until its end; RuntimeFailure for what is none."""
    rest = b""
    os.set_blocking(pipe, False)
    while True:
        await readable(pipe)
        try:
            chunk = os.read(pipe, LINE_MAX)
        except BlockingIOError:
            continue
        if not chunk:
            return
        *whole, rest = (rest + chunk).split(b"\n")
        if len(rest) > LINE_MAX:
            raise _NOT_UNDERSTOOD
        for line in whole:
            yield _told(line)


def _told(line: bytes) -> Told:
    try:
        told = json.loads(line)
    except ValueError as error:
        raise _NOT_UNDERSTOOD from error
    if not isinstance(told, dict):
        raise _NOT_UNDERSTOOD
    return told


class Jobs:
    """Those of one cage, on its `bus`."""

    def __init__(self, bus: Bus) -> None:
        self._bus, self._jobs, self._last = bus, dict[str, Job](), 0
        self._interface = described("interface.xml", protocol.JOB_INTERFACE, of="mediators.files")
        bus.see_by(self._sight)

    async def _sight(self, call: Call) -> Callable[[str, int], bool]:
        uid = await self._bus.uid_of(call.sender)
        return lambda _path, owner: owner == uid

    async def begin(self, call: Call, work: Callable[[Job], Coroutine[Any, Any, Told]]) -> Job:
        """A new job of whoever calls, which does `work`; TransferFailed where there are as many as there may be."""
        owner = await self._bus.uid_of(call.sender)
        if len(self._jobs) >= TRANSFER_JOBS_MAX:
            raise TransferFailed(f"{TRANSFER_JOBS_MAX} transfers of this cage are under way or wait; wait until one "
                                 "has ended")
        self._last += 1
        target, name = call.arguments[:2]
        job = Job(number=self._last, owner=owner, target=target, name=name)
        job.task = asyncio.get_running_loop().create_task(_done(job, work))
        self._jobs[job.path] = job
        job.task.add_done_callback(lambda _task: self._ended(job))
        self._bus.serve(job.path, Service(
            interface=self._interface, handlers={protocol.CANCEL_JOB: self._cancel},
            properties=lambda: {
                "State": Variant("s", job.state), "Target": Variant("s", job.target), "Name": Variant("s", job.name),
                "Done": Variant("t", job.done), "Total": Variant("t", job.total),
            },
        ), owner=owner)
        return job

    def _ended(self, job: Job) -> None:
        del self._jobs[job.path]
        self._bus.withdraw(job.path)
        if not job.task.cancelled():
            job.task.exception()  # whoever is to hear of it has

    async def list(self, call: Call) -> Answer:
        """ListJobs: those of whoever calls."""
        uid = await self._bus.uid_of(call.sender)
        theirs = [[job.number, job.path, job.state, job.target, job.name, job.done, job.total]
                  for job in self._jobs.values() if job.owner == uid]
        return Answer(values=(theirs[:TRANSFER_JOBS_LISTED],))

    async def _cancel(self, call: Call) -> Answer:
        job = self._jobs.get(call.path)
        if job is None:
            raise UnknownObject(f"there is no object {call.path}")
        job.cancel()
        await asyncio.wait({job.task})
        if job.task.cancelled() or isinstance(job.task.exception(), Cancelled):
            return Answer()
        arrived = str(job.task.result()[ARRIVED])
        became = f"it has arrived, in {escape(arrived)}" if arrived else "it was skipped, because its name is taken"
        raise TransferFailed(f'"{escape(job.name)}" could not be cancelled any more: {became}')


async def _done(job: Job, work: Callable[[Job], Coroutine[Any, Any, Told]]) -> Told:
    try:
        return await work(job)
    except asyncio.CancelledError:
        if job.wanted:
            raise job.cancelled() from None
        raise
