# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a dialog says of a prompt, and what may be answered.

Law of this room: every word of a cage's stays a value of its own, which nothing else is written into.
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Any

import msgspec

from cage_runtime.errors import RuntimeFailure
from cage_runtime.model import GRANT_SECONDS_MAX

MINUTES = 10
"""For how long an answer stands, unless the person or the rule says otherwise."""
_COLOUR = re.compile(r"#[0-9a-f]{6}", re.IGNORECASE)


class Prompt(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """As caged has it, which has escaped and bounded what came from a cage: ListPrompts of org.cageruntime.Core1(5)."""

    id: str
    service: str
    rule: str
    source: str
    source_level: str = ""
    source_colour: str = ""
    source_compartments: list[str] = []
    target: str = ""
    """Empty where it is to be chosen."""
    target_level: str = ""
    target_colour: str = ""
    target_compartments: list[str] = []
    choices: dict[str, str] = {}
    """Each that may be chosen, and its level."""
    colours: dict[str, str] = {}
    """Of the levels of `choices`."""
    default: str = ""
    argument: str = ""
    asked: str = ""
    flow: str = ""
    stands: int = msgspec.field(default=0, name="for")
    waiting: int = 1
    size: int = 0
    files: int = 0
    types: list[str] = []
    sha256: str = ""
    lines: list[str] = []
    transform: str = ""

    @property
    def chosen(self) -> str:
        """The target that is chosen before the person has done anything; empty where none is."""
        return self.target or (self.default if self.default in self.choices else "")


class End(msgspec.Struct, frozen=True, kw_only=True):
    """One of the cages that it is about, as it is shown."""

    name: str
    label: str
    """Its level and compartments."""
    colour: str
    """`#rrggbb`; empty where the level has none."""


class Answer(StrEnum):
    ONCE = "allow once"
    WHILE = "allow for a time"
    SESSION = "allow this session"
    DENY = "deny"
    DENY_WHILE = "deny for a time"


ALLOWS = (Answer.ONCE, Answer.WHILE, Answer.SESSION)
_WISHES = {
    "files.Send": "asks to send to", "files.Move": "asks to move to", "clipboard.Paste": "has copied, to be pasted in",
    "open.Uri": "asks to open an address in", "open.File": "asks to open a file in", "call": "asks to call",
    "keys.Sign": "asks for a signature with a key of", "keys.List": "asks which keys there are in",
    "keys.Secret": "asks for a secret of", "log.Write": "asks to write to the log of",
    "notify.Show": "asks to show a notification on",
}
_FLOWS = {
    "down": "Down: what is of a higher level, or of more compartments, gets to where it could not.",
    "incomparable": "Across: between labels of which neither is above the other.",
    "up": "Up: to a label that may have it.", "level": "Between equal labels.",
}


def read(values: dict[str, Any]) -> Prompt:
    """One as it came on the bus; RuntimeFailure where it is none."""
    try:
        return msgspec.convert(values, Prompt)
    except msgspec.ValidationError as error:
        raise RuntimeFailure(f"caged asks what cannot be shown: {error}; is it of another version?") from error


def source(prompt: Prompt) -> End:
    return _end(prompt.source, prompt.source_level, prompt.source_compartments, prompt.source_colour)


def target(prompt: Prompt) -> End:
    return _end(prompt.target, prompt.target_level, prompt.target_compartments, prompt.target_colour)


def choice(prompt: Prompt, name: str) -> End:
    level = prompt.choices[name]
    return _end(name, level, [], prompt.colours.get(level, ""))


def _end(name: str, level: str, compartments: list[str], colour: str) -> End:
    shown = "the core" if name == "@core" else name
    return End(name=shown, label=", ".join((level, *compartments)) if level else "",
               colour=colour if _COLOUR.fullmatch(colour) else "")


def ink(colour: str) -> str:
    """Of a text that is read on `colour`, `#rrggbb`: black or white."""
    red, green, blue = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return "#000000" if 0.299 * red + 0.587 * green + 0.114 * blue > 150 else "#ffffff"


def wish(prompt: Prompt) -> str:
    """What stands between the two ends."""
    service = prompt.service
    return _WISHES.get(service) or _WISHES.get(service.partition(".")[0]) or f"asks for {service} of"


def facts(prompt: Prompt) -> list[tuple[str, str]]:
    """Names and values, one of each a row."""
    service = f"{prompt.service} +{prompt.argument}" if prompt.argument else prompt.service
    rows = [("Service", service), ("Direction", _FLOWS.get(prompt.flow, "")),
            ("Asked for", prompt.asked if prompt.asked not in ("", prompt.target) else ""),
            ("Size", _size(prompt)), ("Types", ", ".join(prompt.types)), ("SHA-256", prompt.sha256),
            ("On its way", _changed(prompt)), ("Rule", prompt.rule),
            ("Waiting", f"{prompt.waiting} requests" if prompt.waiting > 1 else "")]
    return [(name, value) for name, value in rows if value]


def _changed(prompt: Prompt) -> str:
    kind, _, key = prompt.transform.partition(":")
    return f"encrypted for {key}" if kind == "encrypt" else prompt.transform


def _size(prompt: Prompt) -> str:
    files = f"{prompt.files} file{'s' if prompt.files > 1 else ''}" if prompt.files else ""
    return ", ".join(part for part in (files, bytes_(prompt.size) if prompt.size else "") if part)


def bytes_(size: int) -> str:
    """To the byte, and as one reads it."""
    exact = f"{size:,} bytes".replace(",", " ")
    for unit, letter in ((1 << 40, "T"), (1 << 30, "G"), (1 << 20, "M"), (1 << 10, "K")):
        if size >= unit:
            return f"{size / unit:.1f} {letter}iB ({exact})"
    return exact


# --- answers ---------------------------------------------------------------------------------------------------------
def offered(prompt: Prompt) -> tuple[Answer, ...]:
    """Those that caged takes: a rule that says how long an answer stands has none for a session."""
    return tuple(answer for answer in Answer if answer is not Answer.SESSION or not prompt.stands)


def most_minutes(prompt: Prompt) -> int:
    """The longest time that can be chosen for an answer that allows; 0 where the rule's is less than a minute."""
    return (prompt.stands or GRANT_SECONDS_MAX) // 60


def seconds(prompt: Prompt, answer: Answer, minutes: int) -> int:
    """How long the answer stands; 0 for those that stand for no time that is counted."""
    if answer is Answer.DENY_WHILE:
        return minutes * 60
    if answer is Answer.WHILE:
        return min(minutes * 60, prompt.stands) if prompt.stands else minutes * 60
    return 0


def words(prompt: Prompt, answer: Answer, minutes: int) -> str:
    """On its button."""
    whole, rest = divmod(seconds(prompt, answer, minutes), 60)
    time = f"{whole * 60 + rest} seconds" if rest else f"{whole} minute{'s' if whole != 1 else ''}"
    return {Answer.ONCE: "Allow once", Answer.WHILE: f"Allow for {time}", Answer.SESSION: "Allow this session",
            Answer.DENY: "Deny", Answer.DENY_WHILE: f"Deny for {time}"}[answer]


def possible(prompt: Prompt, answer: Answer, chosen: str) -> bool:
    """Whether it can be given with this target chosen, "" for none."""
    return answer not in ALLOWS or chosen in prompt.choices or (bool(prompt.target) and chosen == prompt.target)


def options(prompt: Prompt, answer: Answer, minutes: int, chosen: str) -> dict[str, tuple[str, object]]:
    """Of AnswerPrompt, each with its type."""
    given: dict[str, tuple[str, object]] = {}
    if answer is Answer.SESSION:
        given["session"] = ("b", True)
    else:
        given["for"] = ("u", seconds(prompt, answer, minutes))
    if answer in ALLOWS and not prompt.target:
        given["target"] = ("s", chosen)
    return given


def verdict(answer: Answer) -> str:
    return "allow" if answer in ALLOWS else "deny"
