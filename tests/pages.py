# SPDX-License-Identifier: LGPL-2.1-or-later
"""The manual page org.cageruntime.Core1(5), read as whoever writes a client would."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

CORE1 = (Path(__file__).parents[1] / "cage_runtime/resources/man/org.cageruntime.Core1.5").read_text(encoding="utf-8")

Argument = tuple[str, str]
"""Its type and its name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Method:
    takes: list[Argument]
    gives: list[Argument]
    options: dict[str, str]
    """Types by name."""
    keys: dict[str, str]
    """Those of the dictionaries that it gives, where they are told."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Interface:
    methods: dict[str, Method]
    properties: dict[str, str]
    signals: dict[str, list[Argument]]


def interfaces() -> dict[str, Interface]:
    """By their names."""
    found = {}
    for section in CORE1.split("\n.Ss ")[1:]:
        name, _, body = section.partition("\n.Sh ")[0].partition("\n")
        about, _, signals = body.partition("\nSignals:\n")
        about, _, properties = about.partition("Properties:\n")
        found[name] = Interface(
            methods=dict(map(_method, about.split("\n.It Xo\n")[1:])), properties=_typed("Va", properties),
            signals={word: _arguments(rest) for word, rest in re.findall(r"^\.It Fn (\w+) (.*)$", signals, re.M)})
    return found


def _method(block: str) -> tuple[str, Method]:
    heading, _, body = block.partition("\n.Xc\n")
    match = re.fullmatch(r"\.Fn (\w+)(?: (.*))?(?:\n\.No \\\(-> (.*))?", heading)
    assert match, heading
    gives = [(kind, name) for kind, name in re.findall(r"Vt (\S+) Fa (\S+)", match[3] or "")]
    return match[1], Method(takes=_arguments(match[2] or ""), gives=gives, options=_typed("Cm", body),
                            keys=_typed("Va", body))


def _arguments(quoted: str) -> list[Argument]:
    return [(kind, name) for kind, name in re.findall(r'"(\S+) (\S+)"', quoted)]


def _typed(macro: str, text: str) -> dict[str, str]:
    """By name; names of one type may share a line."""
    found = re.findall(rf"^\.It {macro} (\S+(?: , \S+)*) Pq Vt (\S+)$", text, re.MULTILINE)
    return {name: kind for names, kind in found for name in names.split(" , ")}


def errors() -> dict[str, str]:
    """The whole name of each, and the status that goes with it, empty for those of the specification."""
    ours, _, standard = CORE1.partition("\n.Sh ERRORS\n")[2].partition("\n.Sh ")[0].partition("\n.Pp\n")
    return {
        **{f"org.cageruntime.Error.{name}": status for name, status in
           re.findall(r"^\.It Er (\S+) Pq (\d+)$", ours, re.MULTILINE)},
        **{f"org.freedesktop.DBus.Error.{name}": "" for name in re.findall(r"^\.It Er (\S+)$", standard, re.MULTILINE)},
    }
