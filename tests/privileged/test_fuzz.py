# SPDX-License-Identifier: LGPL-2.1-or-later
"""A hostile cage half at real core halves, for some seconds; for longer: scripts/fuzz bus."""

from __future__ import annotations

from tests.fuzz import bus
from tests.fuzz.hostile import NAMES
from tests.privileged.conftest import MakeCage
from tests.privileged.runtime import Runtime

HOSTILE_SECONDS = 12.0


def test_a_hostile_cage_half_leaves_the_core_as_it_was(runtime: Runtime, cage: MakeCage) -> None:
    """No crash, no leak, and another cage is served meanwhile; how fast, only a long run can tell."""
    report = bus.run(runtime, cage, HOSTILE_SECONDS, 1)
    assert report.faults == [], bus.shown(report)
    assert report.did["honest"] > 200, bus.shown(report)
    assert report.served > 6
    assert set(NAMES) < report.after.keys()
