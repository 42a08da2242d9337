# SPDX-License-Identifier: LGPL-2.1-or-later
"""The gateways of all cages that stand, as a core half attends them.

Law of this room: who asks is the gateway that a call came through, and a gateway is what caged says it is.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from cage_runtime import watchdog
from cage_runtime.bus import Bus, Value
from cage_runtime.errors import RuntimeFailure
from cage_runtime.model import CAGES_MAX
from cage_runtime.notify import notify
from cage_runtime.text import escape
from mediators.wire import MEDIATION, Caged, Gateway

LOG = logging.getLogger(__name__)
EVENTS_MAX = 2 * CAGES_MAX
"""Gateway events that wait to be handled; beyond, the whole list is asked for again instead."""
SHUT_OUT_SECONDS = 5.0
"""How long a cage is without a mediator to which it said what no honest cage half says (M11)."""


class Gateways:
    """Every gateway that stands, each with its own connection that owns `name` and serves what `serve` puts there.

    A gateway outlives caged's absence; when caged is back its list is asked for again.  Whoever has asked for it is
    told of what changes, so that no match is needed.
    """

    def __init__(self, bus: Bus, caged: Caged, *, name: str, serve: Callable[[Gateway, Bus], Awaitable[None]],
                 left: Callable[[str], None] = lambda _uuid: None) -> None:
        """`left` is told the uuid of each instance whose gateway has gone."""
        self._bus, self._caged, self._name, self._serve, self._left = bus, caged, name, serve, left
        self._shut_out: set[str] = set()
        self._presence = caged.presence
        self._attended: dict[str, tuple[Gateway, asyncio.Task[None]]] = {}
        self._events: asyncio.Queue[Gateway | str | None] = asyncio.Queue(EVENTS_MAX)
        self._lost = False

    async def run(self) -> None:
        """Follows caged until the system bus ends, and then raises RuntimeFailure: nothing can be decided any more."""
        self._bus.listen(self._on_signal)
        await self._presence.follow(lambda: self._put(None))
        notify("READY=1")
        following = asyncio.ensure_future(self._follow())
        ended = asyncio.ensure_future(self._bus.closed())
        feeding = asyncio.ensure_future(watchdog.feed(self._bus))
        try:
            await asyncio.wait({following, ended}, return_when=asyncio.FIRST_COMPLETED)
            if following.done():
                following.result()
        finally:
            for work in (following, ended, feeding):
                work.cancel()
            for _gateway, task in self._attended.values():
                task.cancel()
        raise RuntimeFailure("the system bus ended; start this mediator again when it is back")

    def shut_out(self, gateway: Gateway, bus: Bus) -> None:
        """Close the channel of that cage, once what waits to be said on its `bus` has gone out, for a while."""
        self._shut_out.add(gateway.uuid)
        asyncio.get_running_loop().call_soon(bus.disconnect)

    async def _follow(self) -> None:
        while True:
            event = await self._events.get()
            if event is None or self._lost:
                self._lost = False
                await self._refresh()
            elif isinstance(event, Gateway):
                self._attend(event)
            else:
                self._leave(event)

    async def _refresh(self) -> None:
        if not self._presence.owner:
            return
        try:
            standing = await self._caged.gateways()
        except RuntimeFailure as error:  # caged ended meanwhile; its return is the next event
            LOG.warning("caged does not name its gateways: %s", escape(error.sentence))
            return
        for uuid in set(self._attended) - {gateway.uuid for gateway in standing}:
            self._leave(uuid)
        for gateway in standing:
            self._attend(gateway)

    def _attend(self, gateway: Gateway) -> None:
        known = self._attended.get(gateway.uuid)
        if known and known[0].address == gateway.address and not known[1].done():
            return
        self._leave(gateway.uuid)
        task = asyncio.get_running_loop().create_task(self._keep(gateway))
        self._attended[gateway.uuid] = (gateway, task)

    def _leave(self, uuid: str) -> None:
        _gateway, task = self._attended.pop(uuid, (None, None))
        if task:
            task.cancel()
            self._left(uuid)

    async def _keep(self, gateway: Gateway) -> None:
        try:
            bus = await Bus.connect(gateway.address)
        except RuntimeFailure as error:
            LOG.warning("gateway of %s: %s", escape(gateway.name), escape(error.sentence))
            return
        try:
            await self._serve(gateway, bus)
            await bus.own(self._name)
            await bus.closed()
            if gateway.uuid in self._shut_out:
                await asyncio.sleep(SHUT_OUT_SECONDS)
            self._put(None)  # it may be announced again before its end is seen here
        except RuntimeFailure as error:
            LOG.warning("gateway of %s: %s", escape(gateway.name), escape(error.sentence))
        finally:
            self._shut_out.discard(gateway.uuid)
            bus.disconnect()

    def _on_signal(self, message: Value) -> None:
        if not self._presence.owner or message.sender != self._presence.owner or message.interface != MEDIATION:
            return
        if message.member == "GatewayUp" and message.signature == "sss":
            name, uuid, address = message.body
            self._put(Gateway(name=name, uuid=uuid, address=address))
        elif message.member == "GatewayDown" and message.signature == "s":
            self._put(message.body[0])

    def _put(self, event: Gateway | str | None) -> None:
        try:
            self._events.put_nowait(event)
        except asyncio.QueueFull:
            self._lost = True
