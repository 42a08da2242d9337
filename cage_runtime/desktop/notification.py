# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a desktop's notification server is told of what caged has to tell.

Law of this room: who speaks is said by us, before and outside of what a cage says; of a cage's there is text alone, no
markup, icon, sound or hint.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import msgspec

from cage_runtime.errors import RuntimeFailure

KIND_NOTIFICATION, KIND_DECISION = "notification", "decision"
CLICK = "default"
"""What a server calls a click on the notification itself."""
_URGENCY = {"low": 0, "normal": 1, "critical": 2}


class Told(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """Notified of org.cageruntime.Core1(5)."""

    kind: str
    source: str
    source_level: str = ""
    id: int = 0
    closed: bool = False
    summary: str = ""
    body: str = ""
    urgency: str = "normal"
    actions: list[tuple[str, str]] = []
    action: str = ""
    service: str = ""
    argument: str = ""
    target: str = ""
    rule: str = ""


class Shown(msgspec.Struct, frozen=True, kw_only=True):
    """The arguments of Notify of org.freedesktop.Notifications, but for what is always the same."""

    application: str
    summary: str
    body: str
    actions: list[str]
    """Key and label in turn."""
    urgency: int
    names: dict[str, str]
    """Of each key the name that the cage gave the action."""


def read(values: dict[str, Any]) -> Told:
    """One as it came on the bus; RuntimeFailure where it is none."""
    try:
        return msgspec.convert(values, Told)
    except msgspec.ValidationError as error:
        raise RuntimeFailure(f"caged tells what cannot be shown: {error}; is it of another version?") from error


def shown(told: Told, capabilities: Collection[str]) -> Shown:
    """For a server that has these capabilities."""
    speaker = f"{told.source} ({told.source_level})" if told.source_level else told.source
    if told.kind == KIND_DECISION:
        summary, body = _decision(told)
    else:
        summary, body = told.summary, told.body
    keys = {f"a{at}" if label else CLICK: (name, label) for at, (name, label) in enumerate(told.actions)}
    if "actions" not in capabilities:
        keys = {}
    return Shown(
        application=f"Cage {speaker}", summary=f"{speaker}: {summary}", body=_text(body, capabilities),
        actions=[word for key, (_name, label) in keys.items() for word in (key, label or "Open")],
        urgency=_URGENCY.get(told.urgency, 1), names={key: name for key, (name, _label) in keys.items()})


def _decision(told: Told) -> tuple[str, str]:
    service = f"{told.service} +{told.argument}" if told.argument else told.service
    said = "was allowed" if told.action == "allow" else "was refused"
    return f"{service} {said}", f"To {told.target or 'nobody'}, by {told.rule}"


def _text(body: str, capabilities: Collection[str]) -> str:
    """As the text that it is also where the server reads markup."""
    if "body-markup" not in capabilities:
        return body
    return body.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
