# SPDX-License-Identifier: LGPL-2.1-or-later
"""Notifications of cages: shown to their owner's agents, clicked there, taken away when the cage ends.

Law of this room: a notification is of one life of a cage, and what is clicked goes to that life alone.  Nothing is kept
for whoever comes later: a caged that comes back knows of none.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass

import msgspec
from dbus_fast import Variant

from cage_runtime.daemon.agents import Agents, Person
from cage_runtime.daemon.cage import Cage
from cage_runtime.daemon.options import text
from cage_runtime.errors import NoSuchNotification, UsageError
from cage_runtime.model import (
    NOTIFICATION_ACTIONS_MAX,
    NOTIFICATION_LABEL_MAX,
    NOTIFICATION_LINE_MAX,
    NOTIFICATION_LINES_MAX,
    NOTIFICATIONS_PER_CAGE,
    CageState,
    Levels,
)
from cage_runtime.text import escape

CLOSED = ""
"""What stands for an action where the notification was closed."""
URGENCIES = ("low", "normal", "critical")


class Wanted(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a mediator's core half wants shown; the text is untrusted."""

    summary: str
    body: str = ""
    urgency: str = "normal"
    actions: list[tuple[str, str]] = []
    replaces: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class _Shown:
    cage: Cage
    uuid: str
    actions: tuple[str, ...]
    sender: str
    """The connection of the mediator that showed it."""


class Notifications:
    def __init__(self, agents: Agents, levels: Levels, acted: Callable[[str, int, str], None]) -> None:
        """`acted` is told who showed it, and what a person did with which."""
        self._agents, self._levels, self._acted = agents, levels, acted
        self._shown: dict[int, _Shown] = {}

    def show(self, cage: Cage, wanted: Wanted, sender: str) -> int:
        """Show it to the agents of the cage's owner; its id, which is that of the one it replaces, or a new one.

        The cage's oldest is closed where there are too many; UsageError where it cannot be shown.
        """
        if wanted.urgency not in URGENCIES or len(wanted.actions) > NOTIFICATION_ACTIONS_MAX:
            raise UsageError("this is no notification that can be shown")
        before = self._shown.pop(wanted.replaces, None)
        if before is not None and (before.uuid, before.sender) != (cage.uuid, sender):
            self._shown[wanted.replaces] = before
            before = None
        number = wanted.replaces if before is not None else self._new()
        self._shown[number] = _Shown(cage=cage, uuid=cage.uuid, sender=sender,
                                     actions=tuple(name for name, _label in wanted.actions))
        theirs = [known for known, shown in self._shown.items() if shown.uuid == cage.uuid]
        for oldest in theirs[:-NOTIFICATIONS_PER_CAGE]:
            self._close(oldest)
        lines = wanted.body.split("\n")[: NOTIFICATION_LINES_MAX + 1]
        self._tell(cage, number, {
            **text({"summary": _line(wanted.summary), "body": "\n".join(map(_line, lines)), "urgency": wanted.urgency}),
            "actions": Variant("a(ss)", [[name, escape(label, limit=NOTIFICATION_LABEL_MAX)]
                                         for name, label in wanted.actions]),
        })
        return number

    def close(self, uuid: str, number: int, sender: str) -> None:
        """Take it away, if it is that instance's and `sender` has shown it."""
        if (shown := self._shown.get(number)) is not None and (shown.uuid, shown.sender) == (uuid, sender):
            self._close(number)

    def act(self, number: int, action: str, person: Person) -> None:
        """A person has clicked `action`, or closed it (CLOSED); NoSuchNotification also where it is none of theirs."""
        shown = self._shown.get(number)
        if shown is None or not person.sees(shown.cage.record.owner, private=shown.cage.private):
            raise NoSuchNotification("that notification is not there any more")
        if action not in (CLOSED, *shown.actions):
            raise UsageError("that notification has no such action")
        self._close(number)
        self._acted(shown.sender, number, action)

    def cage_changed(self, cage: Cage, present: bool) -> None:
        """Those of a life that has ended are taken away."""
        there = present and cage.state in (CageState.RUNNING, CageState.PAUSED)
        theirs = [number for number, shown in self._shown.items() if cage.uuid == shown.uuid or cage is shown.cage]
        for number in theirs:
            if not there or self._shown[number].uuid != cage.uuid:
                self._close(number)

    def _new(self) -> int:
        """Nobody can guess it, and none of before is likely to come again."""
        while (number := secrets.randbits(32)) in (0, *self._shown):
            pass
        return number

    def _close(self, number: int) -> None:
        shown = self._shown.pop(number)
        self._tell(shown.cage, number, {"closed": Variant("b", True)})

    def _tell(self, cage: Cage, number: int, about: dict[str, Variant]) -> None:
        colour = self._levels.colours.get(cage.level, "")
        words = {"kind": "notification", "source": cage.name, "source-level": cage.level, "source-colour": colour}
        self._agents.notified(cage.record.owner, {**text(words), "id": Variant("u", number), **about},
                              private=cage.private)


def _line(untrusted_text: str) -> str:
    """As the mediator has made it visible already; made sure of, because it is shown as the core's."""
    return "".join(escape(character) if character != "\\" else character
                   for character in untrusted_text[: NOTIFICATION_LINE_MAX * 10])
