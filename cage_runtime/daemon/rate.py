# SPDX-License-Identifier: LGPL-2.1-or-later
"""How often a cage may ask: a bucket of tokens, one for each request, that fills again with time."""

from __future__ import annotations

from cage_runtime.model import DECISIONS_BURST, DECISIONS_PER_SECOND

FULL_SECONDS = DECISIONS_BURST / DECISIONS_PER_SECOND
"""Time in which an empty bucket is full again."""


class Bucket:
    """The tokens of one instance; times are in seconds of any one clock."""

    def __init__(self, now: float) -> None:
        self._tokens, self._since = float(DECISIONS_BURST), now
        self.refused = 0
        """Requests without a token that are still to be recorded."""

    def take(self, now: float) -> bool:
        """Take a token, or count the request as one that had none."""
        self._tokens = min(DECISIONS_BURST, self._tokens + (now - self._since) * DECISIONS_PER_SECOND)
        self._since = now
        if self._tokens < 1:
            self.refused += 1
            return False
        self._tokens -= 1
        return True

    def give_back(self) -> None:
        """The request was one that costs whoever makes it more than whoever decides."""
        self._tokens = min(DECISIONS_BURST, self._tokens + 1)
