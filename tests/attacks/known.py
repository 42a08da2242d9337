# SPDX-License-Identifier: LGPL-2.1-or-later
"""What is known to get through, and why; a test of it fails as soon as it is held, so that it goes from this list."""

from __future__ import annotations

import pytest

KNOWN: dict[tuple[int, str], str] = {}
"""By attack and attempt: what would have to hold it, and does not on this host."""


def known(attack: int, attempt: str) -> tuple[pytest.MarkDecorator, ...]:
    why = KNOWN.get((attack, attempt))
    return () if why is None else (pytest.mark.xfail(reason=why, strict=True),)
