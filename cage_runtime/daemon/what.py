# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a request turned out to be, as its core half has looked at it: held against the rule's bounds, and shown.

The core half is believed in what it measured; the words are the cage's, and are escaped and bounded here.
"""

from __future__ import annotations

import hashlib
from typing import Annotated

import msgspec

from cage_runtime.model import WHAT_LINE_MAX, WHAT_LINES_SHOWN, WHAT_OPERATION_MAX, WHAT_TYPES_SHOWN
from cage_runtime.text import escape


class What(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="kebab"):
    """The dictionary of Confirm; everything in it may be left out."""

    target_uuid: str = ""
    """The instance that Decide has named."""
    target: str = ""
    """The target's name by the permission before, which is not a person's to choose any more."""
    size: int = 0
    """Bytes, all together."""
    files: int = 0
    types: list[str] = []
    """MIME types, by the content."""
    sha256: str = ""
    lines: list[str] = []
    """Untrusted."""
    operation: Annotated[str, msgspec.Meta(max_length=WHAT_OPERATION_MAX)] = ""
    """Untrusted: which of the things that the service does it is, where an answer that stands is for one of them."""
    receipt: bool = False
    """Whether whoever sends it wants a receipt."""

    def digest(self) -> str:
        """Equal for what is equal to the last character, whatever of it is shown."""
        return hashlib.sha256(msgspec.json.encode(msgspec.structs.replace(self, receipt=False))).hexdigest()

    def shown_lines(self) -> list[str]:
        """The lines as a person may see them; where there are more than that, the last says how many."""
        return _bounded(self.lines, WHAT_LINES_SHOWN, "lines")

    def shown_types(self) -> list[str]:
        return _bounded(self.types, WHAT_TYPES_SHOWN, "types")


def _bounded(untrusted: list[str], most: int, of_what: str) -> list[str]:
    shown = [escape(one, limit=WHAT_LINE_MAX) for one in untrusted[:most]]
    more = len(untrusted) - most
    return [*shown, f"… and {more} more {of_what}"] if more > 0 else shown
