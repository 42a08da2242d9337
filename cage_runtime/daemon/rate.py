# SPDX-License-Identifier: LGPL-2.1-or-later
"""How often cages and persons may ask: whose tokens there are, and of how many that is kept."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from cage_runtime.bucket import Bucket, Rate
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

DECISIONS = Rate(burst=DECISIONS_BURST, per_second=DECISIONS_PER_SECOND)
RECORDED = Rate(burst=RECORDED_BURST, per_second=RECORDED_PER_SECOND)
REFUSALS = Rate(burst=REFUSALS_BURST, per_second=REFUSALS_PER_SECOND)


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
