# SPDX-License-Identifier: LGPL-2.1-or-later
"""How fast a core half hears what one cage says.

What is one call too many counts for more: it costs the core much, and whoever says it nothing.  A cage that is heard
later because of it stands in its own way alone.
"""

from __future__ import annotations

from collections.abc import Callable

from cage_runtime.model import HEARD_BURST, HEARD_PER_SECOND, REFUSED_COUNTS


class Pace:
    def __init__(self, clock: Callable[[], float]) -> None:
        """`clock` in seconds, of any one beginning."""
        self._clock = clock
        self._left, self._since = float(HEARD_BURST), clock()

    def heard(self, messages: int) -> float:
        """Count them; in how many seconds the next may be heard."""
        now = self._clock()
        self._left = min(HEARD_BURST, self._left + (now - self._since) * HEARD_PER_SECOND) - messages
        self._since = now
        return max(0.0, -self._left / HEARD_PER_SECOND)

    def refused(self) -> None:
        """One of the messages that were heard was a call too many, or malformed."""
        self._left -= REFUSED_COUNTS
