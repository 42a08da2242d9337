# SPDX-License-Identifier: LGPL-2.1-or-later
"""Rules that can never decide anything, because earlier ones always do.

A rule is told only where that is so for every cage that there could be: what is written for a cage that does not exist
yet, or for one that has another label tomorrow, is not dead.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cage_runtime.model import Levels
from cage_runtime.policy.engine import Policy, is_narrow, mismatch
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


def shadowed(rules: Sequence[Rule], levels: Levels) -> Iterator[Shadowed]:
    """The rules that can never match, in their order."""
    words, policy = Words.of(rules, levels), Policy(rules=tuple(rules))
    order = {rule.place: number for number, rule in enumerate(rules)}
    first: dict[object, Rule] = {}
    for rule in rules:
        twin = first.setdefault((*_columns(rule), is_narrow(rule)), rule)
        if twin is not rule:
            yield Shadowed(rule=rule, by=(twin,))
        elif by := _covering(rule, policy, words):
            yield Shadowed(rule=rule, by=tuple(sorted(by, key=lambda each: order[each.place])))


def _columns(rule: Rule) -> tuple[object, ...]:
    return rule.service, rule.source, rule.target


def _covering(rule: Rule, policy: Policy, words: Words) -> list[Rule]:
    """The rules that decide what `rule` would; none where it decides something itself."""
    found: dict[str, Rule] = {}
    for case in witnesses(rule, words):
        target = case.world.get(case.request.target_name)
        if mismatch(rule, case.request, target):
            continue
        first = policy.first(case.request, target)
        if first is rule or first is None:
            return []
        found[first.place] = first
    return list(found.values())
