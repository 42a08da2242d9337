# SPDX-License-Identifier: LGPL-2.1-or-later
"""How often somebody may ask: a bucket of tokens, one for each request, that fills again with time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from cage_runtime.model import (
    DECISIONS_BURST,
    DECISIONS_PER_SECOND,
    LIMITS_MAX,
    PERSONS_MAX,
    RECORDED_BURST,
    RECORDED_PER_SECOND,
    REFUSALS_BURST,
    REFUSALS_PER_SECOND,
    Limit,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Rate:
    """How many requests may come at once, and how many a second after that."""

    burst: int
    per_second: float

    @property
    def full_seconds(self) -> float:
        """Time in which an empty bucket is full again."""
        return self.burst / self.per_second


DECISIONS = Rate(burst=DECISIONS_BURST, per_second=DECISIONS_PER_SECOND)
RECORDED = Rate(burst=RECORDED_BURST, per_second=RECORDED_PER_SECOND)
REFUSALS = Rate(burst=REFUSALS_BURST, per_second=REFUSALS_PER_SECOND)


class Bucket:
    """The tokens of one cage or person; times are in seconds of any one clock."""

    def __init__(self, rate: Rate, now: float) -> None:
        self._rate = rate
        self._tokens, self._since = float(rate.burst), now
        self.refused = 0
        """Requests without a token that are still to be recorded."""

    def _fill(self, now: float) -> None:
        self._tokens = min(self._rate.burst, self._tokens + (now - self._since) * self._rate.per_second)
        self._since = now

    def take(self, now: float) -> bool:
        """Take a token, or count the request as one that had none."""
        self._fill(now)
        if self._tokens < 1:
            self.refused += 1
            return False
        self._tokens -= 1
        return True

    def reserve(self, now: float, longest: float) -> float | None:
        """Take the next token that nobody has reserved, and say in how many seconds it is there; None, and nothing
        taken, where that is later than in `longest` seconds."""
        self._fill(now)
        wait = max(0.0, (1 - self._tokens) / self._rate.per_second)
        if wait > longest:
            return None
        self._tokens -= 1
        return wait

    def give_back(self) -> None:
        """The request was one that costs whoever makes it more than whoever decides."""
        self._tokens = min(self._rate.burst, self._tokens + 1)

    def is_as_new(self, now: float) -> bool:
        """Whether nothing is lost with it."""
        self._fill(now)
        return self._tokens == self._rate.burst and not self.refused


class Persons:
    """A bucket for each person, by uid; for PERSONS_MAX of them, and one for all others together."""

    def __init__(self, rate: Rate) -> None:
        self._rate = rate
        self._buckets: dict[int, Bucket] = {}
        self.others: Bucket | None = None
        """The one of those whom there was no room for."""

    def of(self, uid: int, now: float) -> Bucket:
        if uid in self._buckets:
            return self._buckets[uid]
        if len(self._buckets) >= PERSONS_MAX:
            self._buckets = {known: one for known, one in self._buckets.items() if not one.is_as_new(now)}
        if len(self._buckets) >= PERSONS_MAX:
            self.others = self.others or Bucket(self._rate, now)
            return self.others
        return self._buckets.setdefault(uid, Bucket(self._rate, now))


def later(seconds: float, what: Callable[[], None]) -> None:
    """Have `what` done in so many seconds of the loop's clock."""
    asyncio.get_running_loop().call_later(seconds, what)


class Limits:
    """What rules' limit= leaves to each cage: a bucket for each pair of a cage and a service, and limit.  So many uses
    may come at once, and as many again as time brings them back."""

    def __init__(self) -> None:
        self._buckets: dict[tuple[str, str, Limit], Bucket] = {}

    def take(self, uuid: str, service: str, limit: Limit, now: float) -> bool:
        """Whether the instance may use the service once more; it has, then.  Not where there is no room to count."""
        bucket = self._buckets.get((uuid, service, limit))
        if bucket is None:
            if len(self._buckets) >= LIMITS_MAX:
                self._buckets = {known: one for known, one in self._buckets.items() if not one.is_as_new(now)}
            if len(self._buckets) >= LIMITS_MAX:
                return False
            rate = Rate(burst=limit.count, per_second=limit.count / limit.seconds)
            bucket = self._buckets[uuid, service, limit] = Bucket(rate, now)
        return bucket.reserve(now, longest=0.0) is not None

    def forget(self, uuid: str) -> None:
        """The cage is gone."""
        self._buckets = {known: bucket for known, bucket in self._buckets.items() if known[0] != uuid}
