# SPDX-License-Identifier: LGPL-2.1-or-later
"""A bucket of tokens: several taken at once, and how long it is until there is one."""

from __future__ import annotations

import pytest

from cage_runtime.bucket import Bucket, Rate

RATE = Rate(burst=10, per_second=2.0)


def test_of_several_those_are_taken_that_there_are() -> None:
    bucket = Bucket(RATE, 0.0)
    assert [bucket.take_of(wanted, 0.0) for wanted in (0, 4, 100, 1)] == [0, 4, 6, 0]
    assert (bucket.take_of(100, 1.4), bucket.take_of(100, 1000.0)) == (2, 10)
    assert bucket.refused == 0, "nobody was told no"


def test_none_is_taken_of_what_is_reserved() -> None:
    bucket = Bucket(RATE, 0.0)
    while bucket.reserve(0.0, 3.0) is not None:
        continue
    assert bucket.take_of(5, 0.0) == 0
    assert bucket.wait(0.0) == pytest.approx(3.5)


def test_who_waits_as_long_as_it_says_has_one() -> None:
    bucket = Bucket(RATE, 0.0)
    assert bucket.wait(0.0) == 0.0
    assert bucket.take_of(10, 0.0) == 10
    assert not bucket.take(0.25)
    assert bucket.wait(0.25) == pytest.approx(0.25)
    assert bucket.take(0.5)
    assert bucket.refused == 1
