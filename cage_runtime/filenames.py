# SPDX-License-Identifier: LGPL-2.1-or-later
"""Names of files that come from a cage: one check for every half that receives one, and what it is called if taken.

Delivery halves start once a request, so this file imports only what costs nothing: no dataclass, no regular expression,
no typing.
"""

from __future__ import annotations

import os
import unicodedata

from cage_runtime.errors import InvalidName
from cage_runtime.text import escape

FILE_NAME_BYTES = 255
RENAMES_MAX = 1000
TRANSFER_BYTES_MAX = 64 * 1024**3
"""These three are cage_runtime.model's (a test holds them equal), which takes longer to import than a delivery."""
CHUNK = 1024 * 1024
"""Bytes copied at a time."""
EXTENSION_BYTES = 32
"""A longer suffix is part of the name, when a number has to go before it."""
HIDDEN = ".incoming-"
"""Begins the names of what is on its way in an inbox; nothing else can be called so."""
MARK = ".given"
"""Ends the name of the mark that what is hidden is given its name next."""

_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
"""Unicode categories that cannot be seen, reorder what is seen, or cannot be encoded."""
_GREEK_TWINS = frozenset("ΑΒΕΖΗΙΚΜΝΟΡΤΥΧινορυ")  # noqa: RUF001 - that is the point
"""Letters of Greek that look like Latin ones; others go with Latin in formulas."""


def check_file_name(untrusted_name: str) -> str:
    """The name in Unicode's NFC form, if it may become a directory entry in an inbox; else InvalidName."""
    reason = _fault_of(untrusted_name)
    name = "" if reason else unicodedata.normalize("NFC", untrusted_name)
    reason = reason or _fault_of(name)
    if reason:
        shown = escape(untrusted_name, limit=80)
        raise InvalidName(f'"{shown}" cannot be a file\'s name in an inbox: {reason}; rename it')
    return name


def _fault_of(untrusted_name: str) -> str | None:
    if not untrusted_name:
        return "it is empty"
    if len(untrusted_name) > FILE_NAME_BYTES or len(untrusted_name.encode("utf-8", "replace")) > FILE_NAME_BYTES:
        return f"it is longer than {FILE_NAME_BYTES} bytes"
    if "/" in untrusted_name:
        return 'it has a "/"'
    if untrusted_name in {".", ".."}:
        return "it means a directory"
    if any(unicodedata.category(character) in _HIDDEN for character in untrusted_name):
        return "it has a character that cannot be seen"
    if untrusted_name[0] == "-":
        return 'a leading "-" is read as an option'
    if untrusted_name[0].isspace() or untrusted_name[-1].isspace():
        return "it begins or ends with a space"
    if untrusted_name[-1] == ".":
        return "it ends with a dot"
    if not untrusted_name.isascii() and _looks_like_latin(untrusted_name):
        return "it has letters of another script among Latin ones that they look like"
    if untrusted_name.startswith(HIDDEN):
        return f'names with a leading "{HIDDEN}" are those of what is on its way'
    return None


def _looks_like_latin(untrusted_name: str) -> bool:
    """Whether a word of it has letters of two scripts that nobody tells apart by eye (Unicode TS 39 has them all)."""
    latin = twin = False
    for character in untrusted_name:
        if not character.isalpha():
            latin = twin = False
        elif character in _GREEK_TWINS or unicodedata.name(character, "").startswith("CYRILLIC "):
            twin = True
        elif character.isascii() or unicodedata.name(character, "").startswith("LATIN "):
            latin = True
        if latin and twin:
            return True
    return False


def candidate(name: str, ordinal: int) -> str:
    """The `ordinal`-th name to try for `name`: itself, then `stem (2).ext`, cut so that it stays a valid name."""
    if ordinal == 1:
        return name
    stem, extension = os.path.splitext(name)
    if len(extension.encode()) > EXTENSION_BYTES:
        stem, extension = name, ""
    tail = f" ({ordinal}){extension}"
    room = FILE_NAME_BYTES - len(tail.encode())
    return stem.encode()[:room].decode("utf-8", "ignore") + tail
