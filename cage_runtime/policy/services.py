# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a cage may ask for at all: by the rules and by what the cage itself is, and by nothing else.

Law of this room: whoever hears this may be told nothing of others.  No target is looked up, so that the answer is the
same whatever cages there are; no target, rule or argument is named.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from cage_runtime.model import SERVICES_TOLD_MAX, Action, Instance, Levels
from cage_runtime.policy.engine import Policy, is_current
from cage_runtime.policy.match import in_force, source_keys, token_key
from cage_runtime.policy.parser import kind_of
from cage_runtime.policy.rule import AnyCage, Anyone, AtLevel, Core, Default, InCompartment, Named, Rule

_ALL, _CAGES = token_key(Anyone()), token_key(AnyCage())
_NO_CAGE = {_ALL, token_key(Core()), token_key(Default())}


@dataclass(frozen=True, kw_only=True, slots=True)
class MayAsk:
    """What one cage may ask for."""

    services: Mapping[str, Action]
    """By name, or by family (`call.*`) where rules are about all services: allow where something of it goes without a
    question, ask where a person is asked about all that goes."""
    until: float
    """The time of day from which on a rule's `until=` makes it another; infinity where none does."""


@dataclass(kw_only=True, slots=True)
class _Seen:
    """What the rules so far have said of one service."""

    denied: set[str] = field(default_factory=set)
    """Targets of which nothing is left for later rules."""
    found: Action | None = None


def may_ask(policy: Policy, source: Instance, levels: Levels, now: float) -> MayAsk:
    """What `source` may ask for at the time of day `now`: each service that a rule allows it, or asks a person about,
    towards anything at all, unless earlier rules deny all of that; SERVICES_TOLD_MAX of them at most."""
    keys = frozenset(source_keys(source)) if policy.fault is None and is_current(source.label, levels) else frozenset()
    rules = [rule for rule in policy.rules if in_force(rule, now) and token_key(rule.source) in keys]
    ends = [rule.parameters.until for rule in rules if rule.parameters.until is not None]
    found: dict[str, Action] = {}
    for service, about in _by_service(policy, rules):
        if len(found) >= SERVICES_TOLD_MAX:
            break
        action = _action(policy, service, about, source, levels)
        if action is not None:
            found[service] = action
    return MayAsk(services=found, until=min(ends, default=math.inf))


def _by_service(policy: Policy, rules: list[Rule]) -> Iterable[tuple[str, list[Rule]]]:
    """Each service that a mediator has, with the rules about it; of a family those that rules name, and it."""
    about_all = [(number, rule) for number, rule in enumerate(rules) if rule.service is None]
    named: dict[str, list[tuple[int, Rule]]] = {service: [] for service in policy.kinds}
    for number, rule in enumerate(rules):
        if rule.service is not None and kind_of(rule.service.name, policy.kinds) is not None:
            named.setdefault(rule.service.name, []).append((number, rule))
    for service in sorted(named):
        # By number alone: rules have no order of their own.
        yield service, [rule for _, rule in sorted(named[service] + about_all, key=lambda each: each[0])]


def _action(policy: Policy, service: str, rules: Iterable[Rule], source: Instance, levels: Levels) -> Action | None:
    seen = _Seen()
    for rule in rules:
        key = token_key(rule.target)
        if rule.action is Action.DENY:
            if rule.service is None or rule.service.argument is None:
                seen.denied.add(key)
            if _ALL in seen.denied:
                break
        elif not _is_denied(key, seen) and _goes(policy, service, rule, source, levels):
            if rule.action is Action.ALLOW:
                return Action.ALLOW
            seen.found = Action.ASK
    return seen.found


def _is_denied(key: str, seen: _Seen) -> bool:
    return key in seen.denied or (_CAGES in seen.denied and key not in _NO_CAGE)


def _goes(policy: Policy, service: str, rule: Rule, source: Instance, levels: Levels) -> bool:
    """Whether there could be a target of the rule, other than the source, to which data may go as the rule has it."""
    target, label = rule.target, source.label
    if isinstance(target, Named) and target.name == source.name:
        return False
    if rule.parameters.declassify:
        return True
    two_way = policy.is_two_way(service, rule.parameters.direction)
    if isinstance(target, Core):
        return not two_way
    if isinstance(target, AtLevel):
        rank = levels.names.index(target.level)
        return rank == label.rank or (rank > label.rank and not two_way)
    if isinstance(target, InCompartment):
        return target.compartment in label.compartments or not two_way
    return True
