# SPDX-License-Identifier: LGPL-2.1-or-later
"""How many calls are being answered, and whose: what there is for all, one caller cannot use up (law 11).

A call counts from its arrival on, because many may arrive before the first has its turn.  Who makes it may not be known
by then: until it is, it counts for its connection, and takes nothing from those who are known.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from cage_runtime.errors import RuntimeFailure
from cage_runtime.model import CALLS_AT_ONCE, CALLS_PER_PERSON

Whose = int | str
"""A uid, or the connection of a caller whose uid is not known."""


class Shares:
    def __init__(self) -> None:
        self.share: Callable[[int], int] | None = None
        """How many calls of that uid's may be being answered at once; None where callers are not told apart."""
        self._held: Counter[Whose] = Counter()
        self._all: Counter[bool] = Counter()
        """Calls of callers who are known, and of those who are not."""

    def take(self, whose: Whose) -> None:
        """One more call is being answered; RuntimeFailure where it may not be."""
        known = isinstance(whose, int)
        if self.share is not None:
            held = self._held[whose]
            if held >= (self.share(whose) if isinstance(whose, int) else CALLS_PER_PERSON):
                raise RuntimeFailure(f"{held} calls of yours are being answered already; wait for one of them")
        if self._all[known] >= CALLS_AT_ONCE:
            raise RuntimeFailure("too many calls are being answered; try again")
        self._held[whose] += 1
        self._all[known] += 1

    def give_back(self, whose: Whose) -> None:
        self._all[isinstance(whose, int)] -= 1
        self._held[whose] -= 1
        if not self._held[whose]:
            del self._held[whose]
