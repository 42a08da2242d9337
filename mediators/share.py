# SPDX-License-Identifier: LGPL-2.1-or-later
"""How much a cage may have of a core half: some at once, and then more with time."""

from __future__ import annotations


class Share:
    """What a cage may have at once, and each second after that; seconds are of any one clock."""

    def __init__(self, burst: float, per_second: float, now: float) -> None:
        self._burst, self._per_second = burst, per_second
        self._there, self._since = burst, now

    def take(self, wanted: int, now: float) -> int:
        """How many of `wanted` there are; they are gone then."""
        self._fill(now)
        taken = min(wanted, int(self._there))
        self._there -= taken
        return taken

    def seconds_until_one(self, now: float) -> float:
        self._fill(now)
        return max(0.0, (1 - self._there) / self._per_second)

    def _fill(self, now: float) -> None:
        self._there = min(self._burst, self._there + (now - self._since) * self._per_second)
        self._since = now
