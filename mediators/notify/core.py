# SPDX-License-Identifier: LGPL-2.1-or-later
"""The core half: has caged show what a cage wants shown, and tells the cage what was clicked.

Law of this room: a notification belongs to the instance whose gateway it came through.  Another's, and one of an
earlier life, is not there.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from cage_runtime.bus import Answer, Call
from cage_runtime.model import NOTIFICATIONS_PER_CAGE
from mediators import corehalf, wire
from mediators.notify import protocol
from mediators.wire import Caged, Gateway, What


@dataclass(kw_only=True, slots=True)
class _Shown:
    """One that is on the desktop, as far as we know, until the cage has heard of its end."""

    uuid: str
    actions: tuple[str, ...]
    done: asyncio.Future[str] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    """The action that was clicked; empty where it has gone."""


class NotifyCore:
    def __init__(self, caged: Caged) -> None:
        self._caged = caged
        self._shown: dict[int, _Shown] = {}
        caged.on_acted(self._acted)

    async def show(self, source: Gateway, call: Call) -> Answer:
        """Show; the cage's oldest makes room where there are too many."""
        notification = protocol.read(call)
        request = wire.new_request()
        permission = await self._caged.decide(source.uuid, protocol.SERVICE, "", protocol.TARGET, request)
        permission = await self._caged.confirm(
            permission, What(lines=(notification.summary, *notification.lines)))
        replaced = self._own(source, notification.replaces)
        options = notification.variants()
        if replaced is None:
            del options["replaces"]
        number = await self._caged.show(permission, options)
        if number != notification.replaces:
            self._end(notification.replaces, replaced)
        self._shown[number] = _Shown(uuid=source.uuid, actions=tuple(name for name, _label in notification.actions))
        theirs = [number for number, shown in self._shown.items() if shown.uuid == source.uuid]
        for oldest in theirs[:-NOTIFICATIONS_PER_CAGE]:
            await self._close(source, oldest)
        return Answer(values=(number,))

    async def close(self, source: Gateway, call: Call) -> Answer:
        if self._own(source, call.arguments[0]) is not None:
            await self._close(source, call.arguments[0])
        return Answer()

    async def wait(self, source: Gateway, call: Call) -> Answer:
        """The first of those that have ended, or end."""
        known = {number: self._own(source, number) for number in protocol.ids(call)}
        gone = [number for number, shown in known.items() if shown is None]
        if gone:
            return Answer(values=(gone[0], ""))
        there = {shown.done: number for number, shown in known.items() if shown is not None}
        done, _pending = await asyncio.wait(there, return_when=asyncio.FIRST_COMPLETED)
        first = done.pop()
        self._shown.pop(there[first], None)
        return Answer(values=(there[first], first.result()))

    def left(self, uuid: str) -> None:
        """The instance has ended: nobody is told of its notifications any more, which caged takes away."""
        for number in [number for number, shown in self._shown.items() if shown.uuid == uuid]:
            self._end(number, self._shown.pop(number))

    def _own(self, source: Gateway, number: int) -> _Shown | None:
        shown = self._shown.get(number)
        return shown if shown is not None and shown.uuid == source.uuid else None

    async def _close(self, source: Gateway, number: int) -> None:
        self._end(number, self._shown.pop(number, None))
        await self._caged.unshow(source.uuid, number)

    def _acted(self, number: int, action: str) -> None:
        """A person has clicked, or closed it."""
        shown = self._shown.get(number)
        if shown is not None:
            self._end(number, shown, action if action in shown.actions else "")

    def _end(self, number: int, shown: _Shown | None, action: str = "") -> None:
        """Whoever waits for it hears of it; where nobody does, the next one that asks."""
        if shown is not None and not shown.done.done():
            shown.done.set_result(action)
            if not action:
                self._shown.pop(number, None)


def run(arguments: list[str]) -> int:
    """`cage-mediator notify [--config FILE]`."""
    cores: list[NotifyCore] = []

    def handlers(caged: Caged) -> dict[str, corehalf.Handler]:
        core = NotifyCore(caged)
        cores.append(core)
        return {"Show": core.show, "Close": core.close, "Wait": core.wait}

    return corehalf.run("notify", arguments, service=protocol.SERVICE, handlers=handlers,
                        left=lambda uuid: cores[0].left(uuid))
