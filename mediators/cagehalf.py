# SPDX-License-Identifier: LGPL-2.1-or-later
"""What cage halves have alike: serve on the cage's own bus, and pass each call through the gateway to the core half.

Law of this room: a cage half holds no authority, so it only refuses early what the core half would refuse anyway, and
lets wait what would be one call too many there.  Each call has a connection to the gateway of its own, which ends when
whoever asked has gone: the core half gives it up then.  It is started by the first call and ends when nothing has been
asked for a while.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager

from cage_runtime.bus import DBUS, Answer, Bus, Call, Handler, Service, Value
from cage_runtime.errors import NoSystemBus, RuntimeFailure, UsageError
from cage_runtime.model import CALLS_PER_CAGE
from mediators import wire

CAGE_BUS = "unix:path=/run/dbus/system_bus_socket"
GATEWAY = "unix:path=/run/cage/gateway/bus"
IDLE_SECONDS = 30.0
CORE_SECONDS = 10.0
"""Time that a gateway has to be there, and a core half to come to it, after a start of either."""
RETRY_SECONDS = 0.1
"""Between attempts to reach a gateway."""
ANSWER_SECONDS = 2300.0
"""What the core half has for an answer; somewhat less than the buses have (reply_timeout)."""

Check = Callable[[Call], None]
"""Raises for a call that the core half would refuse anyway: what is no error of the cage half's would count as one."""
Place = Callable[[Call], AbstractAsyncContextManager[None]]
"""Entered while a call is under way, where the core half takes fewer of its kind than calls in all."""
Own = Callable[["CageHalf", Bus], Mapping[str, Handler]]
"""Handlers, by the method's name, for what is not just passed on; the bus is the cage's own."""


class CageHalf:
    """Serves the interface of the mediator `name` in one cage."""

    def __init__(self, name: str, gateway: Bus, address: str, *, checks: Mapping[str, Check] | None = None,
                 place: Place | None = None, own: Own | None = None, at_once: int = CALLS_PER_CAGE,
                 answer_seconds: float = ANSWER_SECONDS, idle_seconds: float = IDLE_SECONDS,
                 core_seconds: float = CORE_SECONDS) -> None:
        """`gateway` is a connection to the bus at `address`, where each call has one more.

        `checks` are by the method's name; `at_once` calls at most are passed on at the same time, others wait.
        """
        self.name = name
        self._gateway, self._address = gateway, address
        self._checks, self._place, self._own = checks or {}, place, own
        self._at_once = asyncio.Semaphore(at_once)
        self._answer_seconds, self._idle_seconds, self._core_seconds = answer_seconds, idle_seconds, core_seconds
        self._core = wire.Presence(gateway, wire.bus_name(name))
        self._service = Service(interface=wire.interface(name))
        self._under_way = 0
        self._changed = asyncio.Event()

    async def run(self, bus: Bus) -> None:
        """Serve on the cage's `bus`; returns once it has been idle, raises RuntimeFailure when a bus ends."""
        await self._core.follow()
        interface = self._service.interface
        members = [method.attrib["name"] for method in interface.findall("method")]
        handlers: dict[str, Handler] = dict.fromkeys(members, self._call)
        if self._own is not None:
            handlers |= self._own(self, bus)
        bus.serve(wire.path(self.name), Service(interface=interface, handlers=handlers))
        await bus.follow_callers()
        await bus.own(wire.bus_name(self.name))
        idle = asyncio.ensure_future(self._until_idle(bus))
        ended = {asyncio.ensure_future(bus.closed()), asyncio.ensure_future(self._gateway.closed())}
        try:
            await asyncio.wait({idle, *ended}, return_when=asyncio.FIRST_COMPLETED)
            if not idle.done():
                raise RuntimeFailure("the cage's bus or its gateway ended")
            idle.result()
        finally:
            for task in (idle, *ended):
                task.cancel()

    async def _until_idle(self, bus: Bus) -> None:
        while True:
            self._changed.clear()
            try:
                async with asyncio.timeout(None if self._under_way else self._idle_seconds):
                    await self._changed.wait()
            except TimeoutError:
                break
        # without the name, the next call starts a new cage half; those that came before are still answered
        await bus.call(*DBUS, "ReleaseName", "s", (wire.bus_name(self.name),))
        while self._under_way:
            self._changed.clear()
            await self._changed.wait()
        await bus.call(*DBUS, "NameHasOwner", "s", (wire.bus_name(self.name),))  # in order: the answers have gone out

    @contextlib.contextmanager
    def work(self) -> Iterator[None]:
        """In the block, it is not idle."""
        self._under_way += 1
        self._changed.set()
        try:
            yield
        finally:
            self._under_way -= 1
            self._changed.set()

    async def _call(self, call: Call) -> Answer:
        self.check(call)
        async with self.reached(call) as gateway:
            return await self.ask(gateway, call.member, tuple(call.arguments), call.descriptors)

    @contextlib.asynccontextmanager
    async def reached(self, call: Call) -> AsyncIterator[Bus]:
        """In the block, a connection to the gateway for `call` alone, which has its place among those under way;
        RuntimeFailure where there is no core half."""
        with self.work():
            if not await self._core.wait(self._core_seconds):
                raise RuntimeFailure(f"the core's {self.name} mediator is not running")
            async with contextlib.AsyncExitStack() as places:
                if self._place is not None:
                    await places.enter_async_context(self._place(call))
                await places.enter_async_context(self._at_once)
                gateway = await Bus.connect(self._address, anonymous=True)
                places.callback(gateway.disconnect)
                yield gateway

    @property
    def core(self) -> str:
        """Who the core half is on the gateway; empty where there is none."""
        return self._core.owner

    async def another_core(self, but: str) -> bool:
        """Whether there is another core half than `but`, which is waited for a while."""
        return await self._core.wait(self._core_seconds, but=but)

    def check(self, call: Call) -> None:
        """Raises for what the core half would refuse anyway."""
        if check := self._checks.get(call.member):
            check(call)

    async def ask(self, gateway: Bus, member: str, arguments: tuple[Value, ...],
                  descriptors: tuple[int, ...] = ()) -> Answer:
        """Call the method `member` of the core half by way of `gateway`."""
        return await gateway.call(
            wire.bus_name(self.name), wire.path(self.name), wire.bus_name(self.name), member,
            self._service.signature(member, "in"), arguments, descriptors, seconds=self._answer_seconds)


def run(name: str, arguments: list[str], *, checks: Mapping[str, Check] | None = None, place: Place | None = None,
        own: Own | None = None, at_once: int = CALLS_PER_CAGE) -> int:
    """`cage-mediator NAME --cage`."""
    if arguments:
        raise UsageError("the cage half takes no argument")
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(name)s: %(message)s")
    asyncio.run(_serve(lambda gateway: CageHalf(
        name, gateway, GATEWAY, checks=checks, place=place, own=own, at_once=at_once)))
    return 0


async def reach_gateway() -> Bus:
    """A connection to the gateway.  Where it has no bus yet, nobody has its socket while caged is started again."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + CORE_SECONDS
    while True:
        try:
            return await Bus.connect(GATEWAY, anonymous=True)
        except NoSystemBus:
            if loop.time() >= deadline:
                raise
        await asyncio.sleep(RETRY_SECONDS)


async def _serve(make: Callable[[Bus], CageHalf]) -> None:
    gateway = await reach_gateway()
    try:
        bus = await Bus.connect(CAGE_BUS)
        try:
            await make(gateway).run(bus)
        finally:
            bus.disconnect()
    finally:
        gateway.disconnect()
