# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the programs cost, counted in the guest's instructions (performance: P10), in a context and on the host."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
from pathlib import Path

import pytest

from cage_runtime.spawner.lsm.contexts import Contexts
from tests.kernels.lsm.conftest import WIDE

Costs = dict[str, float]
RESULTS = Path("/task/results/cost.json")
TIMES = 5
GATE = "read -r go && exec measure"


def measured(contexts: Contexts | None = None) -> Costs:
    """By a process of a context of its own, where there are `contexts`."""
    process = subprocess.Popen(["/bin/bash", "-c", GATE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    if contexts:
        pidfd = os.pidfd_open(process.pid)
        contexts.enter(pidfd, contexts.new(WIDE))
        os.close(pidfd)
    told, _ = process.communicate("go\n")
    assert process.returncode == 0
    costs: Costs = json.loads(told)
    return costs


def settled(contexts: Contexts | None = None) -> Costs:
    """The medians of some: what the kernel has at hand of memory differs from one process to the next."""
    found = [measured(contexts) for _ in range(TIMES)]
    return {name: statistics.median(costs[name] for costs in found) for name in found[0]}


@pytest.fixture(scope="module")
def ratios() -> dict[str, Costs]:
    measured()  # what is read for the first time costs more
    bare = settled()
    contexts = Contexts.open()
    with_programs = {"host": settled(), "context": settled(contexts)}
    contexts.close()
    found = {where: {name: round(costs[name] / bare[name], 3) for name in bare}
             for where, costs in with_programs.items()}
    RESULTS.write_text(json.dumps({"bare": bare, **with_programs, "ratios": found}, indent=2) + "\n", encoding="ascii")
    print(json.dumps(found))  # noqa: T201
    return found


@pytest.mark.parametrize(("where", "what", "bound"), [
    ("context", "open+close", 1.15), ("context", "exec", 1.05), ("context", "connect", 1.3),
    ("context", "getppid", 1.01),
    ("context", "stat", 1.02), ("host", "open+close", 1.1), ("host", "exec", 1.02), ("host", "connect", 1.1),
    ("host", "getppid", 1.01), ("host", "stat", 1.02)])
def test_it_costs_no_more_than(ratios: dict[str, Costs], where: str, what: str, bound: float) -> None:
    assert ratios[where][what] <= bound
