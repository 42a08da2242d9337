# SPDX-License-Identifier: LGPL-2.1-or-later
"""One cage floods every mediator at once, as its user and as a hostile half (M13): another is still served.

Law of this room: what is compared is what the flood costs more than a cage that computes, which is a matter of the
processors' scheduler and of cpu-weight; so this holds on a machine that others use, and where there is no controller.
What a quiet machine makes of it, and its 99th percentile, is scripts/bench --fairness.
"""

from __future__ import annotations

import statistics
import subprocess
from pathlib import Path

import pytest

from tests.bench import fairness
from tests.privileged.conftest import MakeCage
from tests.privileged.rules import policy
from tests.privileged.runtime import Runtime

ROUNDS = 6
FLOOR_MS = 100.0
"""Below that, it is a matter of who else uses the machine: some two dozen processes take turns for each answer."""


@pytest.mark.timeout(300)
def test_a_flood_costs_less_than_twice_what_computing_does(runtime: Runtime, cage: MakeCage) -> None:
    cages = {name: cage(name, "--level", "internal", "--ephemeral")
             for name in (fairness.QUIET, fairness.LOUD, fairness.FRIEND)}
    with policy(runtime, fairness.RULES):
        cages[fairness.FRIEND].sh(fairness.PREPARE)
        for name in (fairness.QUIET, fairness.LOUD):
            cages[name].enter("incage", "call", "Nothing", fairness.FRIEND)  # so that the gateway is there
        gateway = Path(runtime.run, "gateways", cages[fairness.LOUD].uuid, "bus")
        taken = fairness.measured(
            lambda name, *command: cages[name].popen(*command, stdin=subprocess.PIPE, stdout=subprocess.PIPE),
            gateway, ROUNDS, beside=fairness.BUSY)
    fairness.shown(taken)
    ratios = {what: statistics.median(by[fairness.FLOODED]) / max(statistics.median(by[fairness.BUSY]), FLOOR_MS)
              for what, by in taken.items()}
    assert max(ratios.values()) < fairness.LIMIT, ratios
