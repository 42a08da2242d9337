# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the bench says of its samples."""

from __future__ import annotations

import pytest

from tests.bench.figures import (
    Bound,
    Change,
    Outcome,
    Row,
    Verdict,
    changes,
    judge,
    rows_shown,
    summary,
    table,
    verdicts_shown,
)

OURS = Bound(figure="P2", ours="cage", peer="crun exec", limit=0.6)


def row(contender: str, median: float, figure: str = "P2") -> Row:
    return Row(figure=figure, contender=contender, unit="ms", runs=20, median=median, minimum=median, maximum=median)


def verdict(ratio: float | None, *, peer: str | None = "crun exec", stretch: bool = False) -> Verdict:
    return Verdict(figure="P2", ours="cage", peer=peer, limit=0.6, stretch=stretch, ratio=ratio,
                   outcome=Outcome.UNKNOWN if ratio is None else Outcome.REACHED)


def test_a_summary_is_median_and_bounds() -> None:
    made = summary("P2", "cage", "ms", [5.0, 1.0, 3.0, 100.0])
    assert (made.median, made.minimum, made.maximum, made.runs) == (4.0, 1.0, 100.0, 4)


def test_nothing_measured_is_no_summary() -> None:
    with pytest.raises(ValueError, match="P2: cage was never measured"):
        summary("P2", "cage", "ms", [])


@pytest.mark.parametrize(("ours", "outcome"), [(6.0, Outcome.REACHED), (6.1, Outcome.MISSED)])
def test_the_bound_itself_is_reached(ours: float, outcome: Outcome) -> None:
    (judged,) = judge([OURS], [row("cage", ours), row("crun exec", 10.0)])
    assert judged.outcome is outcome
    assert judged.ratio == pytest.approx(ours / 10)


def test_a_missing_peer_is_no_verdict_and_no_guess() -> None:
    (judged,) = judge([OURS], [row("cage", 1.0), row("crun exec", 1.0, figure="P3")])
    assert (judged.outcome, judged.ratio) == (Outcome.UNKNOWN, None)


def test_what_was_not_measured_is_not_judged() -> None:
    assert judge([OURS], [row("crun exec", 1.0)]) == []


def test_without_a_peer_the_median_itself_is_judged() -> None:
    (judged,) = judge([Bound(figure="P2", ours="cage", peer=None, limit=4.0)], [row("cage", 5.0)])
    assert (judged.ratio, judged.outcome) == (5.0, Outcome.MISSED)


@pytest.mark.parametrize(("before", "now", "worse"), [(1.0, 1.15, False), (1.0, 1.16, True), (1.0, 0.5, False)])
def test_a_ratio_is_worse_when_it_grew_by_more_than_noise(before: float, now: float, worse: bool) -> None:
    (change,) = changes([verdict(before)], [verdict(now)])
    assert change == Change(figure="P2", ours="cage", peer="crun exec", before=before, now=now)
    assert change.worse is worse


@pytest.mark.parametrize(("before", "now"), [
    (verdict(None), verdict(1.0)),
    (verdict(1.0), verdict(None)),
    (verdict(1.0, peer="nsenter"), verdict(1.0)),
    (verdict(1.0, stretch=True), verdict(1.0)),
])
def test_only_like_is_compared_with_like(before: Verdict, now: Verdict) -> None:
    assert changes([before], [now]) == []


def test_a_table_is_as_wide_as_its_cells() -> None:
    shown = table(["what", "ms"], [["a long name", "1"], ["b", "22"]], right=frozenset({1}))
    assert shown == "what         ms\na long name   1\nb            22"


def test_peers_are_shown_with_our_part_of_their_time() -> None:
    lines = rows_shown([row("cage", 3.0), row("crun exec", 6.0)], frozenset({("P2", "cage")})).splitlines()
    assert lines[1].split() == ["P2", "cage", "3.00", "3.00", "3.00", "ms", "20"]
    assert lines[2].split()[-1] == "0.50"


def test_verdicts_are_shown_with_what_they_were() -> None:
    now = [verdict(0.5), verdict(None, peer="nsenter")]
    lines = verdicts_shown(now, changes([verdict(0.4)], now)).splitlines()
    assert lines[1].split("  ")[-1].strip() == "0.40 worse"
    assert "reached" in lines[1]
    assert lines[2].rstrip().endswith("peer missing")
