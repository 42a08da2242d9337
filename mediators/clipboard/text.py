# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a clip of text is made into before anybody pastes it: characters, and nothing that a terminal would obey.

Law of this room: what is left is text and lines.  Pasting it, bracketed or not, is typing it.
"""

from __future__ import annotations

import re

from cage_runtime.errors import TransferFailed

_SEQUENCES = re.compile(
    # CSI, with its parameters and final byte: among them the end of a bracketed paste, ESC [ 201 ~
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"
    # OSC, DCS, SOS, PM, APC: to their end, or, where they have none, to that of the line
    r"|(?:\x1b[\]PX^_]|[\x9d\x90\x98\x9e\x9f])[^\x1b\x9c\x07\n]*(?:\x1b\\|\x9c|\x07)?"
    # any other escape sequence, ESC and its intermediate and final bytes
    r"|\x1b[ -/]*[0-~]?"
)
"""As ECMA-48 has them, in their 7-bit and 8-bit forms."""
_LINES = re.compile(r"\r\n?|\x85|\u2028|\u2029")
_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # C0 but TAB and LF, DEL, C1
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # what turns the direction of writing
    "\U000e0000-\U000e007f]"  # tags, with which a whole text can be hidden
)


def clean(untrusted_content: bytes) -> str:
    """The text of a clip; TransferFailed where it is none."""
    try:
        untrusted_text = untrusted_content.decode()
    except UnicodeDecodeError as error:
        raise TransferFailed("the clip is not UTF-8") from error
    if "\0" in untrusted_text:
        raise TransferFailed("the clip has a NUL, and is no text")
    lines = _LINES.sub("\n", untrusted_text)
    return _HIDDEN.sub("", _SEQUENCES.sub("", lines))
