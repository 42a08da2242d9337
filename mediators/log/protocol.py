# SPDX-License-Identifier: LGPL-2.1-or-later
"""What crosses the wall of a log: the lines, their limits, and the check that both halves make.

Law of this room: nothing in a line says whose it is.  The core half adds that, in fields that no line reaches.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from cage_runtime.errors import UsageError
from cage_runtime.text import escape

SERVICE = "log.Write"
"""What policy calls it."""
CORE = "@core"
"""Its one target."""

LINES_MAX = 32
"""Lines in one call."""
LINE_CHARACTERS_MAX = 2000
"""Characters in one of them."""
CALL_CHARACTERS_MAX = 16_000
"""Characters in all lines of one call, so that it fits into a message of the buses."""
TAG_PATTERN = re.compile(r"[A-Za-z0-9._-]{1,32}\Z")
PRIORITIES = {"err": 3, "warning": 4, "notice": 5, "info": 6, "debug": 7}
"""Of syslog(3), those that a cage may have.  What is more urgent is shown on every terminal of the host."""
USUAL = "info"


class Entries:
    """The lines of one call.  Immutable by custom."""

    __slots__ = ("priority", "tag", "untrusted_lines")

    def __init__(self, *, untrusted_lines: list[str], priority: int, tag: str) -> None:
        self.untrusted_lines, self.priority, self.tag = untrusted_lines, priority, tag

    @property
    def size(self) -> int:
        """Bytes of all of them."""
        return sum(len(line.encode("utf-8", "replace")) for line in self.untrusted_lines)


def parse(untrusted_lines: list[str], untrusted_options: Mapping[str, Any]) -> Entries:
    """The entries that the arguments of Write ask for; else UsageError."""
    if not 1 <= len(untrusted_lines) <= LINES_MAX:
        raise UsageError(f"one call writes 1 to {LINES_MAX} lines, not {len(untrusted_lines)}")
    if max(map(len, untrusted_lines)) > LINE_CHARACTERS_MAX:
        raise UsageError(f"a line has at most {LINE_CHARACTERS_MAX} characters")
    if sum(map(len, untrusted_lines)) > CALL_CHARACTERS_MAX:
        raise UsageError(f"the lines of one call have at most {CALL_CHARACTERS_MAX} characters")
    words = {}
    for name, variant in untrusted_options.items():
        if name not in ("priority", "tag") or variant.signature != "s":
            raise UsageError(f'there is no option "{escape(name, limit=40)}" that is "{escape(variant.signature)}"')
        words[name] = str(variant.value)
    return Entries(untrusted_lines=untrusted_lines, priority=check_priority(words.get("priority", USUAL)),
                   tag=check_tag(words["tag"]) if "tag" in words else "")


def check_priority(untrusted_priority: str) -> int:
    """The number of a priority that a cage may have; else UsageError."""
    if untrusted_priority not in PRIORITIES:
        raise UsageError(f'"{escape(untrusted_priority, limit=40)}" is no priority: use one of '
                         f"{', '.join(PRIORITIES)}")
    return PRIORITIES[untrusted_priority]


def check_tag(untrusted_tag: str) -> str:
    """The tag, if it may be one; else UsageError."""
    if not TAG_PATTERN.match(untrusted_tag):
        raise UsageError(f'"{escape(untrusted_tag, limit=40)}" is no tag: use 1 to 32 of A-Z a-z 0-9 . _ -')
    return untrusted_tag
