# SPDX-License-Identifier: LGPL-2.1-or-later
"""M13: who says much is heard later, and who is refused much later still."""

from __future__ import annotations

import pytest

from cage_runtime.model import HEARD_BURST, HEARD_PER_SECOND, REFUSED_COUNTS
from mediators.pace import Pace


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_some_are_heard_at_once_and_the_next_in_their_time(clock: Clock) -> None:
    pace = Pace(clock)
    assert pace.heard(HEARD_BURST) == 0
    assert pace.heard(8) == pytest.approx(8 / HEARD_PER_SECOND)
    clock.now += 8 / HEARD_PER_SECOND
    assert pace.heard(0) == pytest.approx(0, abs=1e-9)


def test_nothing_is_saved_up(clock: Clock) -> None:
    pace = Pace(clock)
    clock.now += 3600
    assert pace.heard(HEARD_BURST) == 0
    assert pace.heard(1) > 0


def test_what_is_refused_counts_for_more(clock: Clock) -> None:
    pace, calls = Pace(clock), 0
    while not pace.heard(1):
        pace.refused()
        calls += 1
    assert calls == HEARD_BURST // (1 + REFUSED_COUNTS) + 1
    clock.now += 60
    pace.heard(HEARD_BURST)
    pace.refused()
    assert pace.heard(0) == pytest.approx(REFUSED_COUNTS / HEARD_PER_SECOND)
