# SPDX-License-Identifier: LGPL-2.1-or-later
"""The text of a clip: what is left of it is characters and lines."""

from __future__ import annotations

import unicodedata

from cage_runtime.errors import TransferFailed
from mediators.clipboard.text import clean

MAY_RAISE = (TransferFailed,)


def run(untrusted: bytes) -> None:
    text = clean(untrusted)
    assert not [one for one in text if unicodedata.category(one) == "Cc" and one not in "\t\n"]
    assert clean(text.encode()) == text, "pasted and copied again it is the same"
    assert len(text.encode()) <= len(untrusted)
