# SPDX-License-Identifier: LGPL-2.1-or-later
"""The desktop's notification server: org.freedesktop.Notifications on the person's session bus.

Law of this room: what is clicked is told with the name that caged knows it by, and once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cage_runtime.desktop import notification
from cage_runtime.desktop.notification import Shown, Told
from cage_runtime.desktop.toolkit import Gio, GLib

LOG = logging.getLogger(__name__)
SERVER, PATH = "org.freedesktop.Notifications", "/org/freedesktop/Notifications"
CLOSED = ""
_AS_LONG_AS_IT_LIKES = -1
_MILLISECONDS = 10_000
_BY_US = 3
"""NotificationClosed: by a call of CloseNotification."""


@dataclass(kw_only=True, slots=True)
class _There:
    """One that is shown, or about to be."""

    id: int
    """As caged knows it; 0 for one that nobody acts on."""
    shown: Shown
    server: int = 0
    """As the server does; 0 while it has not said."""
    closed: bool = False
    """To be taken away once the server has said its number."""


class Notifier:
    def __init__(self, bus: Any, acted: Callable[[int, str], None]) -> None:
        """`bus` is None where there is no session bus; `acted` is told of caged's ids what was clicked."""
        self._bus, self._acted = bus, acted
        self._there: dict[int, _There] = {}
        self._capabilities: tuple[str, ...] | None = None
        self._owner = ""
        self._waiting: list[Told] = []
        """Until the server has said what it can."""
        if bus is not None:
            for member, heard in (("ActionInvoked", self._invoked), ("NotificationClosed", self._gone)):
                bus.signal_subscribe(None, SERVER, member, PATH, None, Gio.DBusSignalFlags.NONE, self._heard(heard))
            Gio.bus_watch_name_on_connection(bus, SERVER, Gio.BusNameWatcherFlags.NONE, self._appeared, self._vanished)

    def tell(self, told: Told) -> None:
        """Show it, or take it away."""
        if self._bus is None:
            self._unseen(told)
        elif told.closed:
            self._close(told.id)
        elif self._capabilities is None:
            self._waiting.append(told)
            if len(self._waiting) == 1:
                self._call("GetCapabilities", None, self._capable, self._incapable)
        else:
            self._show(told, self._capabilities)

    def clear(self) -> None:
        """None of those that are there can be acted on any more."""
        self._waiting.clear()
        for number in list(self._there):
            self._close(number)

    def _unseen(self, told: Told) -> None:
        """It is not there: whoever waits for a click is told."""
        if told.kind == notification.KIND_NOTIFICATION and not told.closed:
            self._acted(told.id, CLOSED)

    # --- the server, which may come and go -------------------------------------------------------------------
    def _appeared(self, _bus: Any, _name: str, owner: str) -> None:
        self._owner = owner

    def _vanished(self, _bus: Any, _name: str) -> None:
        """Its notifications have gone with it."""
        self._owner, self._capabilities = "", None
        there, self._there = self._there, {}
        for number in there:
            self._acted(number, CLOSED)

    def _capable(self, values: tuple[Any, ...]) -> None:
        self._capabilities = tuple(values[0])
        waiting, self._waiting = self._waiting, []
        for told in waiting:
            self._show(told, self._capabilities)

    def _incapable(self, why: str) -> None:
        LOG.warning("no notifications can be shown: %s", why)
        waiting, self._waiting = self._waiting, []
        for told in waiting:
            self._unseen(told)

    def _heard(self, heard: Callable[..., None]) -> Callable[..., None]:
        def signal(_bus: Any, sender: str, _path: str, _interface: str, _member: str, values: Any) -> None:
            if sender == self._owner:
                heard(*values.unpack())

        return signal

    # --- one notification ------------------------------------------------------------------------------------
    def _show(self, told: Told, capabilities: tuple[str, ...]) -> None:
        shown = notification.shown(told, capabilities)
        before = self._there.get(told.id)
        there = _There(id=told.id, shown=shown)
        if told.kind == notification.KIND_NOTIFICATION:
            self._there[told.id] = there
        hints = {"urgency": GLib.Variant("y", shown.urgency)}
        arguments = GLib.Variant("(susssasa{sv}i)", (
            shown.application, before.server if before else 0, "", shown.summary, shown.body, shown.actions, hints,
            _AS_LONG_AS_IT_LIKES))
        self._call("Notify", arguments, lambda values: self._shown(there, values[0]),
                   lambda why: self._failed(there, told, why))

    def _shown(self, there: _There, server: int) -> None:
        there.server = server
        if there.closed:
            self._take_away(there)

    def _failed(self, there: _There, told: Told, why: str) -> None:
        LOG.warning("a notification cannot be shown: %s", why)
        if self._there.get(there.id) is there:
            del self._there[there.id]
            self._unseen(told)

    def _close(self, number: int) -> None:
        self._waiting = [told for told in self._waiting if told.id != number]
        there = self._there.pop(number, None)
        if there is not None:
            there.closed = True
            if there.server:
                self._take_away(there)

    def _take_away(self, there: _There) -> None:
        self._call("CloseNotification", GLib.Variant("(u)", (there.server,)), lambda _values: None,
                   lambda why: LOG.info("a notification was not closed: %s", why))

    def _invoked(self, server: int, key: str) -> None:
        there = self._find(server)
        if there is not None and key in there.shown.names:
            del self._there[there.id]
            self._acted(there.id, there.shown.names[key])
            self._take_away(there)

    def _gone(self, server: int, reason: int) -> None:
        there = self._find(server)
        if there is not None and reason != _BY_US:
            del self._there[there.id]
            self._acted(there.id, CLOSED)

    def _find(self, server: int) -> _There | None:
        return next((there for there in self._there.values() if there.server == server), None)

    def _call(self, member: str, arguments: Any, done: Callable[[tuple[Any, ...]], None],
              failed: Callable[[str], None]) -> None:
        def answered(bus: Any, result: Any) -> None:
            try:
                reply = bus.call_finish(result)
            except GLib.Error as error:
                failed(str(error.message))
                return
            done(reply.unpack())

        self._bus.call(SERVER, PATH, SERVER, member, arguments, None, Gio.DBusCallFlags.NONE, _MILLISECONDS, None,
                       answered)
