# SPDX-License-Identifier: LGPL-2.1-or-later
"""P9: what a decision takes that the last of a policy's rules makes, and what it takes qrexec's parser, of Qubes OS.

That parser is not ours to carry: a folder that has it, a checkout of qubes-core-qrexec, is given.
"""

from __future__ import annotations

import gc
import importlib
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from cage_runtime.model import COMPARTMENTS_MAX, TAGS_MAX, Action, Instance, Levels, Request, ServiceKind
from cage_runtime.policy.engine import Policy
from cage_runtime.policy.parser import parse
from tests.bench.figures import Bound, Row, summary

FEW, MANY = 80, 10_000
OURS, OURS_FEW = f"decide, the last of {MANY} rules", f"decide, the last of {FEW} rules"
OURS_DENIED, OURS_FULL = f"deny, none of {MANY} rules", f"decide, of {MANY} rules, labels and tags full"
QREXEC, QREXEC_FEW = f"qrexec, the last of {MANY} rules", f"qrexec, the last of {FEW} rules"
BOUNDS = (
    Bound(figure="P9", ours=OURS, peer=None, limit=20.0),
    Bound(figure="P9", ours=OURS, peer=OURS_FEW, limit=1.5),
    Bound(figure="P9", ours=OURS, peer=QREXEC, limit=0.05),
)
ROUNDS, AT_ONCE, WARM = 200, 20, 5
"""Samples of each, and decisions in one of ours: a clock is read too slowly for one alone."""

_COMPARTMENTS = [f"compartment-{n}" for n in range(COMPARTMENTS_MAX)]
_LEVELS = Levels(names=("public", "internal", "secret"), compartments=frozenset(_COMPARTMENTS))
_KINDS = {"files.Send": ServiceKind(one_way=True, parameters=frozenset({"max-size"}))}
Work = Callable[[], None]


def _pairs(count: int) -> list[str]:
    return [f"files.Send * cage-{n} cage-{n + 1} deny" for n in range(count - 1)]


def _cage(name: str, *, full: bool = False) -> Instance:
    label = _LEVELS.label("internal", _COMPARTMENTS if full else [])
    tags = frozenset(f"tag-{n}" for n in range(TAGS_MAX)) if full else frozenset[str]()
    return Instance(name=name, uuid=f"uuid-{name}", label=label, owner=1000, tags=tags)


def _ours(lines: list[str], action: Action, *, full: bool = False) -> Work:
    """AT_ONCE decisions, each of which is `action`."""
    policy = Policy(rules=parse("\n".join(lines).encode(), file="p", levels=_LEVELS, kinds=_KINDS), kinds=_KINDS)
    cages = {name: _cage(name, full=full) for name in ("work", "vault")}
    request = Request(service="files.Send", argument="", source=cages["work"], target_name="vault")

    def work() -> None:
        for _ in range(AT_ONCE):
            decision = policy.decide(request, cages.get, _LEVELS, 0.0)
        if decision.action is not action:
            raise RuntimeError(f"the decision was {decision}")

    return work


def _qrexec(folder: Path, count: int) -> Work:
    """One decision of theirs: theirs take long enough for the clock."""
    sys.path.insert(0, str(folder))
    try:
        parser: Any = importlib.import_module("qrexec.policy.parser")
    finally:
        sys.path.remove(str(folder))
    lines = [line.replace("-", "") for line in _pairs(count)]
    policy = parser.StringPolicy(policy="\n".join([*lines, "files.Send * @anyvm @anyvm allow"]))
    domains: dict[str, object] = {
        name: {"name": name, "tags": [], "type": "AppVM", "default_dispvm": None, "template_for_dispvms": False,
               "power_state": "Running", "uuid": f"00000000-0000-0000-0000-00000000000{n}"}
        for n, name in enumerate(("work", "vault"))
    }

    def work() -> None:
        request = parser.Request("files.Send", "+", "work", "vault", system_info={"domains": domains})
        if policy.evaluate(request).target != "vault":
            raise RuntimeError("qrexec decided otherwise")

    return work


def contenders(qrexec: Path | None) -> Iterator[tuple[str, int, Work]]:
    """Name, decisions in one call, and the call."""
    allow = "files.Send * @any @any allow"
    yield OURS, AT_ONCE, _ours([*_pairs(MANY), allow], Action.ALLOW)
    yield OURS_FEW, AT_ONCE, _ours([*_pairs(FEW), allow], Action.ALLOW)
    yield OURS_DENIED, AT_ONCE, _ours(_pairs(MANY), Action.DENY)
    yield OURS_FULL, AT_ONCE, _ours([*_pairs(MANY), allow], Action.ALLOW, full=True)
    if qrexec is not None:
        yield QREXEC, 1, _qrexec(qrexec, MANY)
        yield QREXEC_FEW, 1, _qrexec(qrexec, FEW)


def rows(qrexec: Path | None, rounds: int = ROUNDS) -> list[Row]:
    """Samples in turns, in µs a decision."""
    every = list(contenders(qrexec))
    samples: dict[str, list[float]] = {name: [] for name, _, _ in every}
    gc.collect()
    gc.disable()
    for number in range(WARM + rounds):
        for name, decisions, work in every[number % len(every):] + every[: number % len(every)]:
            began = time.perf_counter_ns()
            work()
            taken = (time.perf_counter_ns() - began) / 1000 / decisions
            if number >= WARM:
                samples[name].append(taken)
    gc.enable()
    return [summary("P9", name, "µs", taken) for name, taken in samples.items()]
