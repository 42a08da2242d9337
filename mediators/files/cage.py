# SPDX-License-Identifier: LGPL-2.1-or-later
"""The cage half: takes a request on the cage's own bus and passes it through the gateway to the core half.

Law of this room: it holds no authority, so it only refuses early what the core half would refuse anyway, and lets wait
what would be one transfer too many there.  Each transfer has a connection to the gateway of its own, which ends when
whoever asked has gone: the core half gives it up then.  It is started by the first request and ends when nothing has
been asked for a while.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import stat
import sys
from collections.abc import AsyncIterator, Iterator
from weakref import WeakValueDictionary

from cage_runtime.bus import DBUS, Answer, Bus, Call, Service, Value
from cage_runtime.errors import NoSystemBus, RuntimeFailure, TransferFailed, UsageError
from cage_runtime.model import TRANSFER_SECONDS, TRANSFERS_PER_CAGE, TRANSFERS_PER_PAIR
from mediators import wire
from mediators.files import protocol

CAGE_BUS = "unix:path=/run/dbus/system_bus_socket"
GATEWAY = "unix:path=/run/cage/gateway/bus"
IDLE_SECONDS = 30.0
CORE_SECONDS = 10.0
"""Time that a gateway has to be there, and a core half to come to it, after a start of either."""
RETRY_SECONDS = 0.1
"""Between attempts to reach a gateway."""
ANSWER_SECONDS = 2 * TRANSFER_SECONDS + 300
"""Longer than the core half's own deadlines, for staging and for delivery, together."""


class FilesCage:
    """Serves org.cageruntime.Files1 in one cage."""

    def __init__(self, gateway: Bus, address: str, *, idle_seconds: float = IDLE_SECONDS,
                 core_seconds: float = CORE_SECONDS) -> None:
        """`gateway` is a connection to the bus at `address`, where each transfer has one more."""
        self._gateway, self._address = gateway, address
        self._idle_seconds, self._core_seconds = idle_seconds, core_seconds
        self._core = wire.Presence(gateway, protocol.BUS_NAME)
        self._under_way = 0
        self._in_all = asyncio.Semaphore(TRANSFERS_PER_CAGE)
        self._to_targets: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()
        """Those that a call holds or waits for, so no more than there are calls."""
        self._changed = asyncio.Event()

    async def run(self, bus: Bus) -> None:
        """Serve on the cage's `bus`; returns once it has been idle, raises RuntimeFailure when a bus ends."""
        await self._core.follow()
        bus.serve(protocol.PATH, Service(interface=wire.interface("files"), handlers={protocol.SEND: self._send}))
        await bus.follow_callers()
        await bus.own(protocol.BUS_NAME)
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
        # without the name, the next request starts a new cage half; those that came before are still answered
        await bus.call(*DBUS, "ReleaseName", "s", (protocol.BUS_NAME,))
        while self._under_way:
            self._changed.clear()
            await self._changed.wait()
        await bus.call(*DBUS, "NameHasOwner", "s", (protocol.BUS_NAME,))  # in order: the answers have gone out

    @contextlib.contextmanager
    def _work(self) -> Iterator[None]:
        self._under_way += 1
        self._changed.set()
        try:
            yield
        finally:
            self._under_way -= 1
            self._changed.set()

    async def _send(self, call: Call) -> Answer:
        with self._work():
            target, untrusted_name, _index, options = call.arguments
            descriptor = wire.only_descriptor(call, 2)
            name = protocol.check_file_name(untrusted_name)
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise TransferFailed(f'"{name}" is not a regular file')
            if not await self._core.wait(self._core_seconds):
                raise RuntimeFailure("the core's files mediator is not running")
            async with self._place(target):
                return await self._pass_on((target, name, 0, options), descriptor)

    @contextlib.asynccontextmanager
    async def _place(self, target: str) -> AsyncIterator[None]:
        """One of the transfers that the core half takes at once.  A target that is slow holds up those to it alone."""
        to_target = self._to_targets.setdefault(target, asyncio.Semaphore(TRANSFERS_PER_PAIR))
        async with to_target, self._in_all:
            yield

    async def _pass_on(self, arguments: tuple[Value, ...], descriptor: int) -> Answer:
        gateway = await Bus.connect(self._address, anonymous=True)
        try:
            return await gateway.call(
                protocol.BUS_NAME, protocol.PATH, protocol.INTERFACE, protocol.SEND, protocol.SEND_SIGNATURE,
                arguments, (descriptor,), seconds=ANSWER_SECONDS,
            )
        finally:
            gateway.disconnect()


def run(arguments: list[str]) -> int:
    """`cage-mediator files --cage`."""
    if arguments:
        raise UsageError("the cage half takes no argument")
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(name)s: %(message)s")
    asyncio.run(_serve())
    return 0


async def _reach_gateway() -> Bus:
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


async def _serve() -> None:
    gateway = await _reach_gateway()
    try:
        bus = await Bus.connect(CAGE_BUS)
        try:
            await FilesCage(gateway, GATEWAY).run(bus)
        finally:
            bus.disconnect()
    finally:
        gateway.disconnect()
