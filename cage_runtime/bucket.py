# SPDX-License-Identifier: LGPL-2.1-or-later
"""How often somebody may: a bucket of tokens, one for each time, that fills again with time."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Rate:
    """How many may come at once, and how many a second after that."""

    burst: int
    per_second: float

    @property
    def full_seconds(self) -> float:
        """Time in which an empty bucket is full again."""
        return self.burst / self.per_second


class Bucket:
    """The tokens of one cage or person; times are in seconds of any one clock."""

    def __init__(self, rate: Rate, now: float) -> None:
        self._rate = rate
        self._tokens, self._since = float(rate.burst), now
        self.refused = 0
        """Times without a token that are still to be recorded."""

    def _fill(self, now: float) -> None:
        self._tokens = min(self._rate.burst, self._tokens + (now - self._since) * self._rate.per_second)
        self._since = now

    def take(self, now: float) -> bool:
        """Take a token, or count the time as one that had none."""
        if not self.take_of(1, now):
            self.refused += 1
            return False
        return True

    def take_of(self, wanted: int, now: float) -> int:
        """How many of `wanted` tokens there are; they are gone then."""
        self._fill(now)
        taken = max(0, min(wanted, int(self._tokens)))
        self._tokens -= taken
        return taken

    def wait(self, now: float) -> float:
        """The seconds until there is a token that nobody has reserved."""
        self._fill(now)
        return max(0.0, (1 - self._tokens) / self._rate.per_second)

    def reserve(self, now: float, longest: float) -> float | None:
        """Take the next token that nobody has reserved, and say in how many seconds it is there; None, and nothing
        taken, where that is later than in `longest` seconds."""
        wait = self.wait(now)
        if wait > longest:
            return None
        self._tokens -= 1
        return wait

    def give_back(self) -> None:
        """It was one that costs whoever makes it more than whoever decides."""
        self._tokens = min(self._rate.burst, self._tokens + 1)

    def is_as_new(self, now: float) -> bool:
        """Whether nothing is lost with it."""
        self._fill(now)
        return self._tokens == self._rate.burst and not self.refused
