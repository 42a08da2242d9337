# SPDX-License-Identifier: LGPL-2.1-or-later
"""The core half: has a service of one cage started for another, and carries bytes between the two.

Law of this room: it decides nothing.  caged is asked for the instance whose gateway a call came through, and again
right before a service is started.  Both cages have pipes of the core's and none of each other's.  A one-way call is a
diode: all of it is here before the target hears of it, and then nothing comes back, not even how fast it was read.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import resource
import socket
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

from cage_runtime.bus import Answer, Call
from cage_runtime.errors import CageError, PolicyRefused, RuntimeFailure
from cage_runtime.model import (
    CALL_BYTES_MAX,
    CALL_IDLE_SECONDS,
    CALL_ONE_WAY_BYTES_MAX,
    DELIVERY_SECONDS,
    ONE_WAY_MAX,
    ONE_WAY_PER_CAGE,
    STREAMS_PER_CAGE,
    STREAMS_PER_PAIR,
)
from cage_runtime.outcome import Outcome
from cage_runtime.pipes import readable
from cage_runtime.text import escape
from mediators import corehalf, wire
from mediators.call import carry, protocol
from mediators.call.carry import Bounds, Carried, Ends
from mediators.call.protocol import FAILED, REFUSED
from mediators.call.stream import CHUNK
from mediators.places import Places
from mediators.wire import Caged, Gateway, Permission, What

LOG = logging.getLogger(__name__)
_SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
DESCRIPTORS_MAX = 65536
"""Open files of the core half: six for each call that goes on, so that a few cages cannot have all of them."""
ACCEPTED = Outcome(0)
"""All that whoever makes a one-way call hears of it."""


@dataclass(kw_only=True, slots=True)
class Calling:
    """One call that policy permitted: where it came from, what it said, what was decided, how it goes."""

    source: Gateway
    service: str
    argument: str
    permission: Permission
    details: dict[str, str]
    """What the record says of it."""

    @property
    def called(self) -> str:
        """The service as policy calls it."""
        return f"{protocol.FAMILY}.{self.service}"

    @property
    def asked_for(self) -> str:
        """The target in the words of whoever called, who need not know where policy has led it."""
        return self.permission.asked.target or "the cage that policy names"

    def delivery(self) -> list[str]:
        asked = protocol.Delivery(service=self.service, argument=self.argument, source=self.permission.source_name)
        return asked.arguments()

    def bytes_most(self) -> int:
        return self.permission.max_size or CALL_BYTES_MAX


@dataclass(frozen=True, kw_only=True, slots=True)
class Pipes:
    """The three pipes of a call, made by the core: the ends of whoever calls, and its own."""

    theirs: tuple[int, int, int]
    ends: Ends

    @staticmethod
    def make() -> Pipes:
        made: list[int] = []
        try:
            for _ in range(3):
                made += _pipe()
        except RuntimeFailure:
            for descriptor in made:
                os.close(descriptor)
            raise
        inward, stdin, stdout, outward, status, told = made
        return Pipes(theirs=(stdin, stdout, status), ends=Ends(inward=inward, outward=outward, status=told))

    def close(self) -> None:
        for descriptor in (*self.theirs, self.ends.inward, self.ends.outward, self.ends.status):
            os.close(descriptor)


def _pipe() -> tuple[int, int]:
    try:
        return os.pipe2(os.O_CLOEXEC)
    except OSError as error:
        raise RuntimeFailure(f"the core has nothing left for a call: {error.strerror}") from error


def _memory() -> int:
    """A file in memory, which can be sealed."""
    try:
        return os.memfd_create("call", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    except OSError as error:
        raise RuntimeFailure(f"the core has nothing left for a call: {error.strerror}") from error


class CallCore:
    """Answers Call and Services, on every gateway."""

    def __init__(self, caged: Caged) -> None:
        self._caged = caged
        self._places = Places()
        self._tasks: set[asyncio.Task[None]] = set()

    async def call(self, source: Gateway, call: Call) -> Answer:
        untrusted_service, untrusted_argument, untrusted_target, untrusted_options = call.arguments
        wire.no_options(untrusted_options)
        service, argument = protocol.check_service(untrusted_service), protocol.check_argument(untrusted_argument)
        target = wire.check_target(untrusted_target)
        request = wire.new_request()
        permission = await self._caged.decide(source.uuid, f"{protocol.FAMILY}.{service}", argument, target, request)
        calling = Calling(source=source, service=service, argument=argument, permission=permission,
                          details={"request": request} | ({"argument": argument} if argument else {}))
        with contextlib.ExitStack() as places:
            places.enter_context(self._place((source.uuid,), STREAMS_PER_CAGE, "of this cage"))
            if permission.one_way:
                pipes = self._begin_one_way(calling, places)
            else:
                pipes = Pipes.make()
                with contextlib.ExitStack() as on_failure:
                    on_failure.callback(pipes.close)
                    carried = await self._start(calling, pipes.ends, places)
                    on_failure.pop_all()
                self._go_on(self._carry(calling, carried, places.pop_all()))
            return Answer(values=(0, 1, 2), descriptors=pipes.theirs)

    async def services(self, source: Gateway, _call: Call) -> Answer:
        """Services; what caged says of them is fit for the source."""
        return Answer(values=([list(row) for row in await self._caged.services(source.uuid)],))

    def _place(self, whose: tuple[str, ...], most: int, which: str) -> contextlib.AbstractContextManager[None]:
        """One of the `most` calls that may go on at once; RuntimeFailure where all of them do."""
        return self._places.take(whose, most, lambda: RuntimeFailure(
            f"{most} calls {which} are going on; try again when one has ended"))

    def _go_on(self, work: Coroutine[Any, Any, None]) -> None:
        """See to it that `work` is done, which outlives the answer to whoever called."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # --- both ways -------------------------------------------------------------------------------------------
    async def _start(self, calling: Calling, ends: Ends, places: contextlib.ExitStack) -> Carried:
        """The service, started once policy and whoever is asked permit it."""
        calling.permission = await self._caged.confirm(calling.permission, What())
        if calling.permission.one_way:
            raise PolicyRefused("the policy lets nothing come back by now; call again")
        places.enter_context(self._place_to(calling))
        try:
            with contextlib.ExitStack() as held:
                stdin, into = _pipe()
                held.callback(os.close, stdin)
                on_failure = held.enter_context(contextlib.ExitStack())
                on_failure.callback(os.close, into)
                # Programs open their standard input once more (/dev/stdin); to read it is all that they can.
                os.fchmod(stdin, 0o444)
                channel = on_failure.enter_context(await self._deliver(calling, stdin))
                out_of = await self._started(channel)
                carried = Carried(channel, ends, into=into, out_of=out_of,
                                  bounds=Bounds(bytes=calling.bytes_most()))
                on_failure.pop_all()
                return carried
        except CageError as error:
            await self._record(calling, error.sentence)
            raise RuntimeFailure(f"{calling.called} could not be called in {calling.asked_for}, which may be "
                                 "stopped; the core's audit log says why") from error

    def _place_to(self, calling: Calling) -> contextlib.AbstractContextManager[None]:
        pair = calling.source.uuid, calling.permission.target_uuid
        return self._place(pair, STREAMS_PER_PAIR, "of this cage to that one")

    async def _deliver(self, calling: Calling, stdin: int) -> socket.socket:
        descriptor = await self._caged.deliver(calling.permission, calling.delivery(), (stdin,), DELIVERY_SECONDS,
                                               once=True)
        channel = socket.socket(fileno=descriptor)
        channel.setblocking(False)
        return channel

    async def _started(self, channel: socket.socket) -> int:
        try:
            with contextlib.ExitStack() as held:
                async with asyncio.timeout(DELIVERY_SECONDS):
                    return await carry.start(channel, held)
        except TimeoutError as error:
            raise RuntimeFailure(f"the service had not started after {DELIVERY_SECONDS:.0f} s") from error

    async def _carry(self, calling: Calling, carried: Carried, places: contextlib.ExitStack) -> None:
        with places:
            outcome = await carried.run()
        calling.details |= {"bytes-in": str(carried.inward.moved), "bytes-out": str(carried.outward.moved),
                            "seconds": f"{carried.seconds:.3f}", "status": str(outcome.status)}
        await self._record(calling, outcome.sentence or "the service ended")

    # --- one way ---------------------------------------------------------------------------------------------
    def _begin_one_way(self, calling: Calling, places: contextlib.ExitStack) -> Pipes:
        places.enter_context(self._place((calling.source.uuid, "taken"), ONE_WAY_PER_CAGE, "of this cage, one way"))
        places.enter_context(self._place(("", "taken"), ONE_WAY_MAX, "of all cages, one way"))
        with contextlib.ExitStack() as on_failure:
            content = _memory()
            on_failure.callback(os.close, content)
            pipes = Pipes.make()
            on_failure.pop_all()
        self._go_on(self._one_way(calling, pipes, content, places.pop_all()))
        return pipes

    async def _one_way(self, calling: Calling, pipes: Pipes, content: int, places: contextlib.ExitStack) -> None:
        """Take all of it, have it accepted, say so, and only then have the target hear of it.

        From then on the source has its `places` again: how long the target takes is nothing that it hears.
        """
        status = pipes.ends.status
        os.close(pipes.ends.outward)
        with contextlib.ExitStack() as held:
            held.callback(os.close, content)
            with places:
                try:
                    outcome = await self._accepted(calling, pipes.ends, content)
                finally:
                    os.close(pipes.ends.inward)
                os.set_blocking(status, False)
                with contextlib.suppress(BrokenPipeError):
                    os.write(status, outcome.line())
                os.close(status)
            if outcome is ACCEPTED:
                await self._send_on(calling, content)
            else:
                await self._record(calling, outcome.sentence)

    async def _accepted(self, calling: Calling, ends: Ends, content: int) -> Outcome:
        """What whoever called hears: ACCEPTED once all of it is in `content`, and permitted."""
        gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().add_reader(ends.status, _set, gone)
        work = asyncio.ensure_future(self._take(calling, ends.inward, content))
        either: tuple[asyncio.Future[Any], ...] = (gone, work)
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            return work.result() if work.done() else carry.GONE
        except PolicyRefused as error:
            return Outcome(REFUSED, error.sentence)
        except CageError as error:
            return Outcome(FAILED, error.sentence)
        except OSError as error:
            return Outcome(FAILED, f"the core has nothing left for a call: {error.strerror}")
        finally:
            asyncio.get_running_loop().remove_reader(ends.status)
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)  # before its descriptors are closed

    async def _take(self, calling: Calling, source: int, content: int) -> Outcome:
        most = min(calling.bytes_most(), CALL_ONE_WAY_BYTES_MAX)
        try:
            async with asyncio.timeout(CALL_IDLE_SECONDS):
                size = await _copied(source, content, most)
        except TimeoutError:
            return Outcome(FAILED, f"what is sent had not ended after {CALL_IDLE_SECONDS:.0f} s")
        if size > most:
            return carry.TOO_MUCH
        fcntl.fcntl(content, fcntl.F_ADD_SEALS, _SEALS)
        calling.permission = await self._caged.confirm(calling.permission, What(size=size))
        calling.details["bytes-in"] = str(size)
        return ACCEPTED

    async def _send_on(self, calling: Calling, content: int) -> None:
        """Have the service read it; whatever comes of that stays in the record."""
        try:
            pair = calling.source.uuid, calling.permission.target_uuid, "sent on"
            with contextlib.ExitStack() as held:
                held.enter_context(self._place(pair, STREAMS_PER_PAIR, "of this cage to that one, one way"))
                held.enter_context(self._place(("", "sent on"), ONE_WAY_MAX, "of all cages, one way"))
                os.fchmod(content, 0o444)  # nobody executes it
                stdin = os.open(f"/proc/self/fd/{content}", os.O_RDONLY | os.O_CLOEXEC)
                held.callback(os.close, stdin)
                channel = held.enter_context(await self._deliver(calling, stdin))
                output = await self._started(channel)
                held.callback(os.close, output)
                outcome = await carry.drained(channel, output, CALL_IDLE_SECONDS)
            calling.details["status"] = str(outcome.status)
            await self._record(calling, outcome.sentence or "the service ended")
        except (CageError, OSError) as error:
            await self._record(calling, error.sentence if isinstance(error, CageError) else str(error))

    async def _record(self, calling: Calling, outcome: str) -> None:
        """Of what has happened already; that it was permitted is in the chain since before it began."""
        details = calling.details | {"outcome": outcome}
        try:
            await self._caged.record(calling.source, calling.permission.target_uuid, calling.called, details)
        except CageError as error:
            LOG.error("not recorded: %s: %s", escape(str(details)), escape(error.sentence))


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


async def _copied(source: int, content: int, most: int) -> int:
    """Copy all that comes from the pipe `source`, and no more than a byte more than `most`; how much that was."""
    os.set_blocking(source, False)
    size = 0
    while size <= most:
        await readable(source)
        try:
            chunk = os.read(source, min(CHUNK, most + 1 - size))
        except BlockingIOError:
            continue
        if not chunk:
            break
        os.write(content, chunk)
        size += len(chunk)
    return size


def run(arguments: list[str]) -> int:
    """`cage-mediator call [--config FILE]`."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = min(hard, DESCRIPTORS_MAX) if hard != resource.RLIM_INFINITY else DESCRIPTORS_MAX
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))

    def handlers(caged: Caged) -> dict[str, corehalf.Handler]:
        core = CallCore(caged)
        return {protocol.CALL: core.call, protocol.SERVICES: core.services}

    return corehalf.run("call", arguments, service=protocol.FAMILY, handlers=handlers)
