# SPDX-License-Identifier: LGPL-2.1-or-later
"""An evaluator that is obviously right, and that can be made wrong: what the proofs have to find."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from enum import StrEnum

from cage_runtime.model import Action, Decision, Flow, Instance, Levels, Request
from cage_runtime.policy.rule import (
    AnyCage,
    Anyone,
    AtLevel,
    Core,
    Default,
    Disposable,
    InCompartment,
    Named,
    Relation,
    Rule,
    SameOwner,
    Source,
    Tagged,
    Target,
)

CORE = "@core"


class Wrong(StrEnum):
    """Ways in which an engine may leak."""

    ASK = "a person's yes stands for declassify"
    ANSWERS = "what comes back is forgotten"
    REDIRECTS = "after a redirect the first pair counts"
    CHOICES = "what a person chooses is not evaluated again"
    CORE = "the core hands on what it answers"


@dataclass(frozen=True, kw_only=True)
class Naive:
    """Rule by rule, in the order of the lines."""

    rules: tuple[Rule, ...]
    two_way: Callable[[str], bool] = lambda _service: False
    wrong: frozenset[Wrong] = frozenset()

    def first(self, request: Request, target: Instance | None) -> Rule | None:
        return next((rule for rule in self.rules if matches(rule, request, target)), None)

    def decide(self, request: Request, find: Callable[[str], Instance | None], levels: Levels, now: float, *,
               chosen: str | None = None, cages: Callable[[], Iterable[Instance]] = tuple,
               sent: tuple[Rule, ...] = ()) -> Decision:
        target = find(request.target_name)
        rule = self.first(request, target)
        if rule is None or rule.action is Action.DENY or request.target_name == request.source.name or rule in sent:
            return deny(rule)
        if chosen is not None and chosen != request.target_name:
            if Wrong.CHOICES in self.wrong:
                return self._verdict(rule, request, find(chosen), chosen, unseen=True)
            return self.decide(replace(request, target_name=chosen), find, levels, now)
        if rule.parameters.target and rule.parameters.target != request.target_name:
            if Wrong.REDIRECTS in self.wrong and find(rule.parameters.target):
                return self._verdict(rule, request, find(rule.parameters.target), rule.parameters.target, unseen=True)
            onward = replace(request, target_name=rule.parameters.target)
            return self.decide(onward, find, levels, now, sent=(*sent, rule))
        if rule.action is Action.ASK and not request.target_name:
            others = [cage.name for cage in cages() if cage.name != request.source.name]
            kept = [name for name in others if Wrong.CHOICES in self.wrong or self.decide(
                replace(request, target_name=name), find, levels, now).action is not Action.DENY]
            return Decision(action=Action.ASK, rule=rule.place, reason="", choices=tuple(kept)) if kept else deny(rule)
        return self._verdict(rule, request, target, request.target_name)

    def _verdict(self, rule: Rule, request: Request, target: Instance | None, name: str, *,
                 unseen: bool = False) -> Decision:
        two_way = self.two_way(request.service)
        flow = Flow.UP if name == CORE else request.source.label.flow_to(target.label) if target else None
        if flow is None:
            return deny(rule)
        free = (Flow.LEVEL,) if two_way and Wrong.ANSWERS not in self.wrong else (Flow.LEVEL, Flow.UP)
        if name == CORE and Wrong.CORE in self.wrong:
            free = (Flow.UP,)
        if Wrong.ASK in self.wrong and rule.action is Action.ASK:
            unseen = True
        if flow not in free and not rule.parameters.declassify and not unseen:
            return deny(rule)
        return Decision(action=rule.action, rule=rule.place, reason="", flow=flow, target=name,
                        parameters=rule.parameters, two_way=two_way)


def deny(rule: Rule | None) -> Decision:
    return Decision(action=Action.DENY, rule=rule.place if rule else "", reason="")


def matches(rule: Rule, request: Request, target: Instance | None) -> bool:
    service = rule.service is None or (rule.service.name == request.service
                                       and rule.service.argument in (None, request.argument))
    narrow = rule.action is not Action.DENY and not isinstance(rule.target, Named)
    if not service or (narrow and target is not None and target.owner != request.source.owner):
        return False
    return source_is(rule.source, request) and target_is(rule.target, request, target)


def source_is(token: Source, request: Request) -> bool:
    return cage_is(token, request.source) or isinstance(token, Anyone)


def cage_is(token: Source | Target, cage: Instance) -> bool:
    """Whether `token` stands for the cage by what it has."""
    match token:
        case Named():
            return token.name == cage.name
        case AtLevel():
            return token.level == cage.label.level
        case InCompartment():
            return token.compartment in cage.label.compartments
        case Tagged():
            return token.tag in cage.tags
    return isinstance(token, AnyCage)


def target_is(token: Target, request: Request, target: Instance | None) -> bool:
    name = request.target_name
    match token:
        case Anyone():
            return True
        case Named():
            return token.name == name
        case Core():
            return name == CORE
        case Default():
            return name == ""
        case Disposable():
            usual = (None, "disposable")
            asked = name.partition(":")[2] or "disposable"
            return name.startswith("@disposable") and (token.template == asked or {token.template, asked} <= {*usual})
        case SameOwner():
            return target is not None and target.owner == request.source.owner
        case Relation():
            flow = request.source.label.flow_to(target.label) if target else None
            return flow is Flow.LEVEL or (flow is Flow.UP and token is Relation.DOMINATES)
    return target is not None and cage_is(token, target)
