# SPDX-License-Identifier: LGPL-2.1-or-later
"""What crosses the wall in a notification: its limits, and the checks that both halves make.

Law of this room: a notification is text.  No markup, no icon, no path and no sound of a cage's comes to the desktop.
"""

from __future__ import annotations

from dataclasses import dataclass

from cage_runtime.bus import Call, Value, Variant
from cage_runtime.errors import UsageError
from cage_runtime.model import (
    NOTIFICATION_ACTIONS_MAX,
    NOTIFICATION_LABEL_MAX,
    NOTIFICATION_LINE_MAX,
    NOTIFICATION_LINES_MAX,
    NOTIFICATIONS_PER_CAGE,
)
from cage_runtime.text import escape

SERVICE = "notify.Show"
"""What policy calls it."""
TARGET = "@core"
URGENCIES = ("low", "normal", "critical")


@dataclass(frozen=True, kw_only=True, slots=True)
class Notification:
    """A notification that can be shown: every line is visible characters, and short."""

    summary: str
    lines: tuple[str, ...]
    urgency: str
    actions: tuple[tuple[str, str], ...]
    """Name and label; the label is empty for a click on the notification itself."""
    replaces: int
    """The id of the one whose place it takes; 0 for none."""

    def variants(self) -> dict[str, Variant]:
        """As caged takes it."""
        return {"summary": Variant("s", self.summary), "body": Variant("s", "\n".join(self.lines)),
                "urgency": Variant("s", self.urgency), "actions": Variant("a(ss)", [list(a) for a in self.actions]),
                "replaces": Variant("u", self.replaces)}


def read(call: Call) -> Notification:
    """What a call of Show asks for; UsageError says what of it cannot be."""
    untrusted_summary, untrusted_body, untrusted_options = call.arguments
    if not untrusted_summary.strip():
        raise UsageError("a notification needs a summary")
    options = _options(untrusted_options)
    urgency = options.get("urgency", "normal")
    if urgency not in URGENCIES:
        raise UsageError(f"the urgency of a notification is one of {', '.join(URGENCIES)}")
    return Notification(
        summary=escape(untrusted_summary, limit=NOTIFICATION_LINE_MAX), lines=_lines(untrusted_body), urgency=urgency,
        actions=_actions(options.get("actions", [])), replaces=options.get("replaces", 0))


def ids(call: Call) -> list[int]:
    """Those that a call of Wait names."""
    wanted: list[int] = call.arguments[0]
    if not 1 <= len(wanted) <= NOTIFICATIONS_PER_CAGE:
        raise UsageError(f"1 to {NOTIFICATIONS_PER_CAGE} notifications can be waited for at once")
    return wanted


_OPTIONS = {"urgency": "s", "actions": "a(ss)", "replaces": "u"}


def _options(untrusted_options: dict[str, Variant]) -> dict[str, Value]:
    for name, variant in untrusted_options.items():
        if name not in _OPTIONS:
            raise UsageError(f'there is no option "{escape(name, limit=40)}"')
        if variant.signature != _OPTIONS[name]:
            raise UsageError(f'the option "{name}" has the type {_OPTIONS[name]}')
    return {name: variant.value for name, variant in untrusted_options.items()}


def _lines(untrusted_body: str) -> tuple[str, ...]:
    """The body, cut where it is longer than a desktop shows; a cut can be seen."""
    lines = untrusted_body.split("\n", NOTIFICATION_LINES_MAX)
    shown = [escape(line, limit=NOTIFICATION_LINE_MAX) for line in lines[:NOTIFICATION_LINES_MAX]]
    return (*shown, "…") if len(lines) > NOTIFICATION_LINES_MAX else tuple(shown)


def _actions(untrusted_actions: list[list[str]]) -> tuple[tuple[str, str], ...]:
    if len(untrusted_actions) > NOTIFICATION_ACTIONS_MAX:
        raise UsageError(f"a notification has at most {NOTIFICATION_ACTIONS_MAX} actions")
    names = [name for name, _label in untrusted_actions]
    if len(set(names)) != len(names) or not all(1 <= len(name) <= NOTIFICATION_LINE_MAX for name in names):
        raise UsageError(f"an action has a name of its own, of 1 to {NOTIFICATION_LINE_MAX} characters")
    return tuple((name, escape(label, limit=NOTIFICATION_LABEL_MAX)) for name, label in untrusted_actions)
