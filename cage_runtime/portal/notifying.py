# SPDX-License-Identifier: LGPL-2.1-or-later
"""Notification: what an application shows goes to the `notify` mediator, which shows it under the cage's name.

Icons and sounds are left out: they are files of the cage's, and the core's desktop reads none of them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from cage_runtime.bus import Answer, Bus, Call, Service, Value, Variant, described
from cage_runtime.errors import CageError, UsageError
from cage_runtime.model import NOTIFICATIONS_PER_CAGE
from cage_runtime.portal.mediated import ask
from cage_runtime.portal.requests import DESCRIPTION, PATH
from cage_runtime.text import escape

LOG = logging.getLogger(__name__)
NOTIFICATION = "org.freedesktop.portal.Notification"
URGENCY = {"low": "low", "normal": "normal", "high": "normal", "urgent": "critical"}
"""The portal's priorities in the desktop's words."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Shown:
    """One whose click somebody waits for: the application's connection and own id, and what can be clicked."""

    sender: str
    own_id: str
    actions: Mapping[str, tuple[str, Value]]


class Notifications:
    def __init__(self, bus: Bus, changed: Callable[[], None]) -> None:
        """`changed` is called when there are more of them, or fewer."""
        self._bus, self._changed = bus, changed
        self._shown: dict[int, _Shown] = {}
        """By the mediator's id."""
        self._waiting: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        return len(self._shown)

    def service(self) -> Service:
        handlers = {"AddNotification": self._add, "RemoveNotification": self._remove}
        return Service(interface=described(DESCRIPTION, NOTIFICATION), handlers=handlers,
                       properties=lambda: {"version": Variant("u", 1)})

    async def _add(self, call: Call) -> Answer:
        own_id, notification = call.arguments
        actions = _actions(notification)
        options = {"urgency": Variant("s", _urgency(notification)),
                   "actions": Variant("a(ss)", [[name, label] for name, (label, _target) in actions.items()])}
        if known := self._find(call.sender, own_id):
            options["replaces"] = Variant("u", known)
        answer = await ask("notify", "Show", "ssa{sv}",
                           (_text(notification, "title"), _text(notification, "body"), options))
        self._shown.pop(known, None)
        self._shown[answer.values[0]] = _Shown(sender=call.sender, own_id=own_id, actions=actions)
        while len(self._shown) > NOTIFICATIONS_PER_CAGE:
            del self._shown[next(iter(self._shown))]
        self._wait_anew()
        return Answer()

    async def _remove(self, call: Call) -> Answer:
        known = self._find(call.sender, call.arguments[0])
        if known:
            del self._shown[known]
            self._wait_anew()
            await ask("notify", "Close", "u", (known,))
        return Answer()

    def _find(self, sender: str, own_id: str) -> int:
        """0 where there is none."""
        return next((number for number, shown in self._shown.items()
                     if (shown.sender, shown.own_id) == (sender, own_id)), 0)

    def _wait_anew(self) -> None:
        """One call waits for all that there are; what is clicked between two of them is not lost."""
        if self._waiting is not None:
            self._waiting.cancel()
        self._waiting = asyncio.get_running_loop().create_task(self._wait()) if self._shown else None
        self._changed()

    async def _wait(self) -> None:
        try:
            number, action = (await ask("notify", "Wait", "au", (list(self._shown),))).values
        except CageError as error:
            LOG.warning("notifications are not waited for any more: %s", escape(error.sentence, limit=400))
            self._shown.clear()
            self._changed()
            return
        shown = self._shown.pop(number, None)
        if shown is not None and action in shown.actions:
            target = shown.actions[action][1]
            self._bus.emit(PATH, NOTIFICATION, "ActionInvoked", "ssav",
                           (shown.own_id, action, [] if target is None else [target]), to=shown.sender)
        self._waiting = None
        self._wait_anew()


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
