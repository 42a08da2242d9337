# SPDX-License-Identifier: LGPL-2.1-or-later
"""Rules that can never decide anything, because earlier ones always do.

A rule is told only where that is so for every cage that there could be: what is written for a cage that does not exist
yet, or for one that has another label tomorrow, is not dead.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from cage_runtime.policy.cells import Host
from cage_runtime.policy.engine import Policy
from cage_runtime.policy.match import is_narrow, mismatch
from cage_runtime.policy.rule import Rule
from cage_runtime.policy.witness import Words, witnesses


@dataclass(frozen=True, kw_only=True, slots=True)
class Shadowed:
    """`rule` can never match; `by` are rules that match everything that it would, in their order."""

    rule: Rule
    by: tuple[Rule, ...]

    @property
    def duplicate(self) -> bool:
        """Whether one earlier rule has the same columns."""
        return len(self.by) == 1 and _columns(self.by[0]) == _columns(self.rule)


def shadowed(policy: Policy, host: Host) -> Iterator[Shadowed]:
    """The rules that can never match, in their order.

    A rule that is to match for some time is not taken to stand before another, and where it is over that is not why.
    """
    words = host.words(policy.rules)
    order = {id(rule): number for number, rule in enumerate(policy.rules)}
    twins: dict[object, Rule] = {}
    for rule in policy.rules:
        key = (*_columns(rule), is_narrow(rule))
        if key in twins:
            yield Shadowed(rule=rule, by=(twins[key],))
            continue
        if rule.parameters.until is None:
            twins[key] = rule
        if by := _covering(rule, policy, words, order):
            yield Shadowed(rule=rule, by=tuple(by[number] for number in sorted(by)))


def _columns(rule: Rule) -> tuple[object, ...]:
    return rule.service, rule.source, rule.target


def _covering(rule: Rule, policy: Policy, words: Words, order: Mapping[int, int]) -> dict[int, Rule]:
    """The rules that decide what `rule` would, by their numbers; none where it decides something itself."""
    found: dict[int, Rule] = {}
    for case in witnesses(rule, words):
        target = case.world.get(case.request.target_name)
        if mismatch(rule, case.request, target, -math.inf):
            continue
        first = policy.first(case.request, target, math.inf)
        if first is None or order[id(first)] >= order[id(rule)]:
            return {}
        found[order[id(first)]] = first
    return found
