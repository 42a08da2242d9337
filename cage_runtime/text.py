# SPDX-License-Identifier: LGPL-2.1-or-later
"""Untrusted text on its way to a person or a log: the one escaping function (law 12, attacks M80 and M81)."""

from __future__ import annotations

import unicodedata

_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
"""Unicode general categories that move the cursor, change direction, or cannot be seen."""


def escape(untrusted: str | bytes, *, limit: int = 400) -> str:
    """`untrusted` as visible characters on one line, at most `limit` of them before a mark that says it was cut.

    Control characters (C0, C1, ESC), bidirectional overrides and every other invisible code point become
    backslash escapes, so that what a person sees is what was sent.
    """
    text = untrusted.decode("utf-8", "backslashreplace") if isinstance(untrusted, bytes) else untrusted
    shown = [_visible(character) for character in text[:limit]]
    return "".join(shown) + ("…" if len(text) > limit else "")


def is_visible(untrusted: str) -> bool:
    """Whether every character can be seen, on one line and in its place."""
    return not any(unicodedata.category(character) in _HIDDEN for character in untrusted)


_SHORT = {"\t": "\\t", "\n": "\\n", "\r": "\\r"}


def _visible(character: str) -> str:
    if character == "\\":
        return "\\\\"
    if unicodedata.category(character) not in _HIDDEN:
        return character
    # Written out: the codec unicode_escape is a file that Python loads when it is first used, and cage-init, which can
    # load nothing any more, would end.
    code = ord(character)
    long = f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
    return _SHORT.get(character, long)


def quoted(escaped: str) -> str:
    """`escaped`, the value of a field that `escape` has made visible, as one word that no value can reach out of."""
    if escaped and not any(character.isspace() or character in '"=' for character in escaped):
        return escaped
    return '"' + escaped.replace('"', '\\"') + '"'
