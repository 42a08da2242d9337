# SPDX-License-Identifier: LGPL-2.1-or-later
"""What was measured, what was to be reached, and how both are shown: pure.

Law of this room: absolute times drift from machine to machine, so only ratios measured side by side are judged and
compared; a peer that was not there is a missing row, never a guess.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum

WORSE = 1.15
"""A ratio that has grown by this factor since the saved result is called worse: less than that is noise."""


class Outcome(StrEnum):
    REACHED = "reached"
    MISSED = "not reached"
    UNKNOWN = "peer missing"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One contender's samples; `unit` is ms, KiB or MiB, and smaller is better."""

    figure: str
    contender: str
    unit: str
    runs: int
    median: float
    minimum: float
    maximum: float


@dataclass(frozen=True, kw_only=True)
class Bound:
    """`ours` is to be at most `limit` times `peer`, or at most `limit` where there is no peer."""

    figure: str
    ours: str
    peer: str | None
    limit: float
    stretch: bool = False


@dataclass(frozen=True, kw_only=True)
class Verdict:
    figure: str
    ours: str
    peer: str | None
    limit: float
    stretch: bool
    ratio: float | None
    """None where a contender is missing."""
    outcome: Outcome


@dataclass(frozen=True, kw_only=True)
class Change:
    """A verdict's ratio, now and in the saved result."""

    figure: str
    ours: str
    peer: str | None
    before: float
    now: float

    @property
    def worse(self) -> bool:
        return self.now > self.before * WORSE


def summary(figure: str, contender: str, unit: str, samples: Sequence[float]) -> Row:
    """The row of `samples`; ValueError where there are none."""
    if not samples:
        raise ValueError(f"{figure}: {contender} was never measured")
    return Row(figure=figure, contender=contender, unit=unit, runs=len(samples), median=statistics.median(samples),
               minimum=min(samples), maximum=max(samples))


def judge(bounds: Iterable[Bound], rows: Sequence[Row]) -> list[Verdict]:
    """A verdict for every bound whose own contender was measured."""
    medians = {(row.figure, row.contender): row.median for row in rows}
    verdicts = []
    for bound in bounds:
        ours = medians.get((bound.figure, bound.ours))
        if ours is None:
            continue
        peer = 1.0 if bound.peer is None else medians.get((bound.figure, bound.peer))
        ratio = ours / peer if peer else None
        verdicts.append(Verdict(**asdict(bound), ratio=ratio, outcome=_outcome(ratio, bound.limit)))
    return verdicts


def _outcome(ratio: float | None, limit: float) -> Outcome:
    if ratio is None:
        return Outcome.UNKNOWN
    return Outcome.REACHED if ratio <= limit else Outcome.MISSED


def changes(before: Iterable[Verdict], now: Iterable[Verdict]) -> list[Change]:
    """What can be compared: verdicts that have a ratio in both results."""
    known = {(v.figure, v.ours, v.peer, v.stretch): v.ratio for v in before if v.ratio is not None}
    found = []
    for verdict in now:
        old = known.get((verdict.figure, verdict.ours, verdict.peer, verdict.stretch))
        if verdict.ratio is not None and old is not None:
            found.append(Change(figure=verdict.figure, ours=verdict.ours, peer=verdict.peer, before=old,
                                now=verdict.ratio))
    return found


# --- shown ---------------------------------------------------------------------------------------------------------
def table(heads: Sequence[str], lines: Sequence[Sequence[str]], *, right: frozenset[int] = frozenset()) -> str:
    """Columns as wide as they need to be; those of `right` are numbers."""
    widths = [max(len(line[column]) for line in [heads, *lines]) for column in range(len(heads))]
    shown = []
    for line in [heads, *lines]:
        cells = [cell.rjust(width) if column in right else cell.ljust(width)
                 for column, (cell, width) in enumerate(zip(line, widths, strict=True))]
        shown.append("  ".join(cells).rstrip())
    return "\n".join(shown)


def rows_shown(rows: Sequence[Row], ours: frozenset[tuple[str, str]]) -> str:
    """Every row; a peer's says what part of its time the figure's first contender of ours takes."""
    first: dict[str, float] = {}
    for row in rows:
        if (row.figure, row.contender) in ours:
            first.setdefault(row.figure, row.median)
    lines = []
    for row in rows:
        base = first.get(row.figure)
        ratio = f"{base / row.median:.2f}" if base and row.median and (row.figure, row.contender) not in ours else ""
        lines.append([row.figure, row.contender, f"{row.median:.2f}", f"{row.minimum:.2f}", f"{row.maximum:.2f}",
                      row.unit, str(row.runs), ratio])
    heads = ["", "what", "median", "min", "max", "", "runs", "ours / it"]
    return table(heads, lines, right=frozenset({2, 3, 4, 6, 7}))


def verdicts_shown(verdicts: Sequence[Verdict], changed: Sequence[Change]) -> str:
    before = {(c.figure, c.ours, c.peer): c for c in changed}
    lines = []
    for verdict in verdicts:
        against = f"{verdict.limit:g} of {verdict.peer}" if verdict.peer else f"{verdict.limit:g}"
        change = before.get((verdict.figure, verdict.ours, verdict.peer))
        then = "" if change is None else f"{change.before:.2f}{' worse' if change.worse else ''}"
        lines.append([verdict.figure, verdict.ours, f"<= {against}", "stretch" if verdict.stretch else "bound",
                      "-" if verdict.ratio is None else f"{verdict.ratio:.2f}", verdict.outcome.value, then])
    heads = ["", "what", "to reach", "", "measured", "", "saved"]
    return table(heads, lines, right=frozenset({4}))
