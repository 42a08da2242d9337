# SPDX-License-Identifier: LGPL-2.1-or-later
"""The cage half: takes a request on the cage's own bus, has the core half do it, and follows what becomes of it.

Law of this room: a transfer that would be one too many at the core half waits here, and those to a target that is slow
hold up those to it alone.  Each has its job (jobs.py) for as long.  The content of a tree goes between whoever asked
and the core half, and needs nobody here.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import stat
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any
from weakref import WeakValueDictionary

from cage_runtime.bus import Answer, Bus, Call, Handler, Variant
from cage_runtime.errors import CageError, NothingDone, TransferFailed
from cage_runtime.model import TRANSFERS_PER_CAGE, TRANSFERS_PER_PAIR
from mediators import cagehalf, wire
from mediators.cagehalf import CageHalf
from mediators.files import protocol
from mediators.files.jobs import Job, Jobs, Told
from mediators.files.stream import Stream


class Places:
    """Those of the transfers that the core half takes at once to one target."""

    def __init__(self) -> None:
        self._to_targets: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()
        """Those that a call holds or waits for, so no more than there are calls."""

    @contextlib.asynccontextmanager
    async def place(self, call: Call) -> AsyncIterator[None]:
        async with self._to_targets.setdefault(call.arguments[0], asyncio.Semaphore(TRANSFERS_PER_PAIR)):
            yield


class Transfers:
    """Those of one cage, whose programs ask for them on its `bus`."""

    def __init__(self, half: CageHalf, bus: Bus) -> None:
        self._half, self._jobs = half, Jobs(bus)

    def handlers(self) -> Mapping[str, Handler]:
        return {
            protocol.SEND: self._send, protocol.SEND_RECEIPTED: self._send, protocol.START_FILE: self._start_file,
            protocol.SEND_TREE: self._start_tree, protocol.START_TREE: self._start_tree,
            protocol.LIST_JOBS: self._jobs.list,
        }

    async def _send(self, call: Call) -> Answer:
        with self._half.work():
            job = await self._file(call)
            told = await job.task  # which is given up where whoever asked goes
            receipt = (told.get(protocol.RECEIPT, ""),) if call.member == protocol.SEND_RECEIPTED else ()
            return Answer(values=(told[protocol.ARRIVED], *receipt))

    async def _start_file(self, call: Call) -> Answer:
        with self._half.work():
            job = await self._file(call)
            return _followed(job, Stream()).answer()

    async def _file(self, call: Call) -> Job:
        self._half.check(call)
        kept = os.dup(call.descriptors[0])  # that of the call is closed when it is answered
        with contextlib.ExitStack() as held:
            held.callback(os.close, kept)
            job = await self._jobs.begin(call, functools.partial(self._do, call, protocol.START_FILE, (kept,)))
            held.pop_all()
        job.task.add_done_callback(lambda _task: os.close(kept))
        return job

    async def _start_tree(self, call: Call) -> Answer:
        """Answered once the core half has made the pipe for the tree: until then there is nothing to write into."""
        self._half.check(call)
        tree: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        with self._half.work():
            job = await self._jobs.begin(call, functools.partial(self._do, call, protocol.START_TREE, (), tree=tree))
            try:
                both: tuple[asyncio.Future[Any], ...] = (tree, job.task)
                await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
                if not tree.done():
                    await job.task  # which has failed
                descriptor = tree.result()
            except asyncio.CancelledError:
                job.task.cancel()
                if not tree.cancel():
                    os.close(tree.result())
                raise
            followed = _followed(job, Stream(followed=call.member == protocol.START_TREE)).answer()
            descriptors = (descriptor, *followed.descriptors)
            return Answer(values=tuple(range(len(descriptors))), descriptors=descriptors)

    async def _do(self, call: Call, member: str, descriptors: tuple[int, ...], job: Job, *,
                  tree: asyncio.Future[int] | None = None) -> Told:
        """Have the core half do it; with a `tree`, that is given the pipe into which it is written."""
        async with self._half.reached(call) as gateway:
            job.asked, core = True, self._half.core
            *arguments, options = call.arguments
            wanted = {protocol.RECEIPT: Variant("b", True)} if call.member == protocol.SEND_RECEIPTED else {}
            answer = await self._half.ask(gateway, member, (*arguments, options | wanted), descriptors)
            *trees, status, control = answer.descriptors
            if tree is not None and tree.cancelled():
                os.close(trees[0])
            elif tree is not None:
                tree.set_result(trees[0])
            try:
                return await job.follow(status, control)
            except NothingDone:
                if job.wanted:
                    raise job.cancelled() from None
                await self._half.another_core(but=core)  # for whoever sends it again
                raise


def _followed(job: Job, stream: Stream) -> Stream:
    """Have whoever has the far ends of `stream` told what becomes of `job`, and able to cancel it."""
    def told(what: Told) -> None:
        if what.get(protocol.STATE) == protocol.COMMITTED:
            stream.say(**what)
        else:
            stream.figures(**what)

    def ended(task: asyncio.Task[Told]) -> None:
        if not task.cancelled():
            error = task.exception()
            if isinstance(error, CageError):
                stream.failed(error)
            elif error is None:
                stream.arrived(**task.result())
        stream.close()

    stream.figures(job=job.number, state=job.state, done=job.done, total=job.total)
    job.told = told
    stream.attend(gone=job.task.cancel, cancel=job.cancel)
    job.task.add_done_callback(ended)
    return stream


def check(call: Call) -> None:
    """What the core half would refuse anyway, before anything is passed on."""
    name = protocol.check_file_name(call.arguments[1])
    protocol.check_target(call.arguments[0])
    protocol.Options.read(call.arguments[-1], call.member)
    if call.member not in (protocol.SEND_TREE, protocol.START_TREE):
        descriptor = wire.only_descriptor(call, 2)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise TransferFailed(f'"{name}" is not a regular file')


def run(arguments: list[str]) -> int:
    """`cage-mediator files --cage`."""
    checks: dict[str, Callable[[Call], None]] = dict.fromkeys(
        (protocol.SEND, protocol.SEND_RECEIPTED, protocol.SEND_TREE, protocol.START_FILE, protocol.START_TREE), check)
    return cagehalf.run("files", arguments, checks=checks, place=Places().place,
                        own=lambda half, bus: Transfers(half, bus).handlers(), at_once=TRANSFERS_PER_CAGE)
