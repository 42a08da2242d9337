# SPDX-License-Identifier: LGPL-2.1-or-later
"""The benchmark of decisions decides what it says that it does; how fast, no unit test asks."""

from __future__ import annotations

from tests.bench import policy


def test_every_contender_is_measured_and_decides_as_it_is_to() -> None:
    rows = policy.rows(None, rounds=2)
    assert [row.contender for row in rows] == [policy.OURS, policy.OURS_FEW, policy.OURS_DENIED, policy.OURS_FULL]
    assert {(row.figure, row.unit, row.runs) for row in rows} == {("P9", "µs", 2)}
