# SPDX-License-Identifier: LGPL-2.1-or-later
"""How often a person may do what is recorded, and how many persons that is kept of."""

from __future__ import annotations

import pytest

from cage_runtime.bucket import Bucket
from cage_runtime.daemon import rate
from cage_runtime.daemon.rate import RECORDED, Persons
from cage_runtime.model import RECORDED_BURST, RECORDED_PER_SECOND, RECORDED_WAIT_SECONDS

TURN = 1 / RECORDED_PER_SECOND


def drained(now: float = 0.0) -> Bucket:
    bucket = Bucket(RECORDED, now)
    assert [bucket.reserve(now, 0.0) for _ in range(RECORDED_BURST)] == [0.0] * RECORDED_BURST
    return bucket


def test_each_waits_behind_the_one_before_and_who_would_wait_too_long_takes_nothing() -> None:
    bucket, waits = drained(), []
    while (wait := bucket.reserve(0.0, RECORDED_WAIT_SECONDS)) is not None:
        waits.append(wait)
    assert waits == pytest.approx([TURN * number for number in range(1, len(waits) + 1)])
    assert waits[-1] == pytest.approx(RECORDED_WAIT_SECONDS)
    for _ in range(1000):
        assert bucket.reserve(0.0, RECORDED_WAIT_SECONDS) is None
    # As if those who were refused had never come.
    assert bucket.reserve(TURN, RECORDED_WAIT_SECONDS) == pytest.approx(RECORDED_WAIT_SECONDS)


def test_who_asks_for_one_thing_after_the_other_is_never_refused() -> None:
    bucket, now = Bucket(RECORDED, 0.0), 0.0
    for _ in range(10 * RECORDED_BURST):
        wait = bucket.reserve(now, RECORDED_WAIT_SECONDS)
        assert wait is not None
        assert wait <= TURN + 1e-6
        now += wait
    assert now == pytest.approx(9 * RECORDED_BURST * TURN)


def test_in_an_hour_there_are_no_more_than_in_an_hour_there_may_be() -> None:
    """Whatever the moments at which it is asked."""
    bucket = Bucket(RECORDED, 0.0)
    done = sum(bucket.reserve(tick * 0.037, RECORDED_WAIT_SECONDS) is not None for tick in range(int(3600 / 0.037)))
    assert done <= RECORDED_BURST + (3600 + RECORDED_WAIT_SECONDS) * RECORDED_PER_SECOND


def test_one_person_takes_nothing_from_another() -> None:
    persons = Persons(RECORDED)
    while persons.of(1000, 0.0).reserve(0.0, 0.0) is not None:
        continue
    assert persons.of(1001, 0.0).reserve(0.0, 0.0) == 0.0
    assert persons.of(1000, 0.0).reserve(0.0, 0.0) is None


def test_no_more_persons_are_kept_than_may_be_and_none_is_forgotten_who_has_asked_too_often(
    monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rate, "PERSONS_MAX", 3)
    persons = Persons(RECORDED)
    for uid in (1, 2, 3):
        persons.of(uid, 0.0).take(0.0)
    first = persons.of(1, 0.0)
    assert persons.of(4, 0.0) is persons.of(5, 0.0)
    assert persons.of(1, 0.0) is first
    assert len(persons._buckets) == 3
    # Once those of the others are full again they are as good as new.
    first.take(TURN)
    sixth = persons.of(6, TURN)
    assert sixth is persons.of(6, TURN)
    assert persons.of(1, TURN) is first
    assert set(persons._buckets) == {1, 6}


def test_what_is_still_to_be_recorded_of_a_person_is_not_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rate, "PERSONS_MAX", 1)
    persons = Persons(RECORDED)
    bucket = persons.of(1, 0.0)
    while bucket.take(0.0):
        continue
    persons.of(2, 1000.0)
    assert persons.of(1, 1000.0) is bucket
