# SPDX-License-Identifier: LGPL-2.1-or-later
"""Notification: what an application shows goes to the `notify` mediator, which shows it under the cage's name.

Icons and sounds are left out: they are files of the cage's, and the core's desktop reads none of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable

from cage_runtime.bus import Answer, Bus, Call, Service, Value, Variant, described
from cage_runtime.errors import CageError, UsageError
from cage_runtime.model import PORTAL_NOTIFICATIONS_MAX
from cage_runtime.portal.mediated import ask
from cage_runtime.portal.requests import DESCRIPTION, PATH
from cage_runtime.text import escape

LOG = logging.getLogger(__name__)
NOTIFICATION = "org.freedesktop.portal.Notification"
URGENCY = {"low": "low", "normal": "normal", "high": "normal", "urgent": "critical"}
"""The portal's priorities in the desktop's words."""
DEFAULT = "default"
"""What is clicked where a notification itself is."""

_Key = tuple[str, str]


class Notifications:
    """Those that applications have shown; each is known by its connection and the application's own id."""

    def __init__(self, bus: Bus, changed: Callable[[], None]) -> None:
        self._bus, self._changed = bus, changed
        self._shown: dict[_Key, tuple[int, asyncio.Task[None]]] = {}

    def __len__(self) -> int:
        """Notifications whose click somebody waits for."""
        return len(self._shown)

    def service(self) -> Service:
        handlers = {"AddNotification": self._add, "RemoveNotification": self._remove}
        return Service(interface=described(DESCRIPTION, NOTIFICATION), handlers=handlers,
                       properties=lambda: {"version": Variant("u", 1)})

    async def _add(self, call: Call) -> Answer:
        own_id, notification = call.arguments
        key = (call.sender, own_id)
        actions = _actions(notification)
        options = {"urgency": Variant("s", _urgency(notification)),
                   "actions": Variant("a(ss)", [[name, label] for name, (label, _target) in actions.items()])}
        if known := self._shown.get(key):
            options["replaces"] = Variant("u", known[0])
        answer = await ask("notify", "Show", "ssa{sv}",
                           (_text(notification, "title"), _text(notification, "body"), options))
        self._forget(key)
        if actions:
            task = asyncio.get_running_loop().create_task(self._wait(key, answer.values[0], actions))
            self._shown[key] = (answer.values[0], task)
            while len(self._shown) > PORTAL_NOTIFICATIONS_MAX:
                self._forget(next(iter(self._shown)))
        self._changed()
        return Answer()

    async def _remove(self, call: Call) -> Answer:
        known = self._forget((call.sender, call.arguments[0]))
        if known is not None:
            await ask("notify", "Close", "u", (known,))
        return Answer()

    def _forget(self, key: _Key) -> int | None:
        known = self._shown.pop(key, None)
        if known is None:
            return None
        known[1].cancel()
        self._changed()
        return known[0]

    async def _wait(self, key: _Key, number: int, actions: dict[str, tuple[str, Value]]) -> None:
        """Tell the application what is clicked, until its notification is closed."""
        sender, own_id = key
        try:
            clicked = (await ask("notify", "Wait", "u", (number,))).values[0]
            if clicked in actions:
                target = actions[clicked][1]
                self._bus.emit(PATH, NOTIFICATION, "ActionInvoked", "ssav",
                               (own_id, clicked, [] if target is None else [target]), to=sender)
        except CageError as error:
            LOG.warning("a notification is not waited for any more: %s", escape(error.sentence, limit=400))
        with contextlib.suppress(KeyError):
            if self._shown[key][0] == number:
                del self._shown[key]
                self._changed()


def _actions(notification: dict[str, Variant]) -> dict[str, tuple[str, Value]]:
    """By its name, each action's label and what the application wants to be told with it."""
    found: dict[str, tuple[str, Value]] = {}
    if name := _text(notification, "default-action"):
        found[name] = ("", notification.get("default-action-target"))
    buttons = notification.get("buttons")
    if buttons is not None and buttons.signature != "aa{sv}":
        raise UsageError("the buttons of a notification have the type aa{sv}")
    for button in buttons.value if buttons is not None else []:
        found[_text(button, "action")] = (_text(button, "label"), button.get("target"))
    return found


def _urgency(notification: dict[str, Variant]) -> str:
    priority = _text(notification, "priority") or "normal"
    if priority not in URGENCY:
        raise UsageError("the priority of a notification is low, normal, high or urgent")
    return URGENCY[priority]


def _text(notification: dict[str, Variant], name: str) -> str:
    given = notification.get(name)
    if given is None:
        return ""
    if given.signature != "s":
        raise UsageError(f"the {name} of a notification is text")
    return str(given.value)
