# SPDX-License-Identifier: LGPL-2.1-or-later
"""Effective access, cell by cell: what each cage may ask of each, as the engine decides it.

Services that no rule tells apart are one cell: of a service every argument that no rule names, and every service that
no rule names, under names that no rule has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol

from cage_runtime.model import CORE_TARGET, Action, Decision, Instance, Label, Levels, Request, ServiceKind
from cage_runtime.policy.match import mismatch
from cage_runtime.policy.parser import NO_KINDS, kind_of
from cage_runtime.policy.rule import Rule, Source, Target, written
from cage_runtime.policy.witness import DEFAULT, NOBODY, Case, Words, needs

Find = Callable[[str], Instance | None]
_Pair = tuple[Source, Target]


class Engine(Protocol):
    """What decides; the proofs take nothing of it for granted but that its rules are these."""

    @property
    def rules(self) -> tuple[Rule, ...]: ...

    def decide(self, request: Request, find: Find, levels: Levels, now: float, *, chosen: str | None = None,
               cages: Callable[[], Iterable[Instance]] = tuple) -> Decision: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Host:
    """What a policy is asked about: the levels and the services there are, and the time."""

    levels: Levels
    now: float
    """Seconds of the epoch, for `until=`."""
    kinds: Mapping[str, ServiceKind] = field(default_factory=lambda: NO_KINDS)
    """The services that mediators have; a family by its own name, as `call.*`."""
    templates: Mapping[str, Label] = field(default_factory=lambda: NOBODY)
    """Those that a disposable cage can be made from, and the label that it has at most."""
    disposable: Callable[[Instance, str], Instance | None] = lambda _source, _target: None
    """What would be made for a source that asks for `@disposable` or `@disposable:TEMPLATE`; None for other targets."""

    def find(self, case: Case, name: str) -> Instance | None:
        """The cage that `name` stands for in what `case` asks."""
        return case.world.get(name) or self.disposable(case.request.source, name)

    def has(self, service: str) -> bool:
        """Whether a mediator offers `service`, or a family that it is of."""
        return kind_of(service, self.kinds) is not None

    def words(self, rules: Iterable[Rule]) -> Words:
        return Words.of(rules, self.levels, sorted(self.kinds), self.templates)


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One request and what is decided of it."""

    case: Case
    decision: Decision


def added(decision: Decision) -> list[str]:
    """The parameters of what is not denied, each as a rule has it."""
    return [] if decision.action is Action.DENY else list(written(decision.parameters))


def decided(engine: Engine, case: Case, host: Host, chosen: str | None = None) -> Decision:
    return engine.decide(case.request, partial(host.find, case), host.levels, host.now, chosen=chosen, cages=case.all)


def answers(engine: Engine, case: Case, host: Host, decision: Decision) -> Iterator[Decision]:
    """What may come of a request: the `decision`, or where a person is asked, that for each choice."""
    if not (decision.action is Action.ASK and decision.choices):
        yield decision
        return
    for choice in decision.choices:
        found = decided(engine, case, host, choice)
        yield found if found.action is Action.DENY else replace(found, action=Action.ASK)


class Services:
    """The services that some rules tell apart between two cages."""

    def __init__(self, rules: Iterable[Rule], words: Words) -> None:
        self._words = words
        self._of: dict[tuple[str | None, str | None], dict[_Pair, tuple[Rule, set[tuple[str, str]]]]] = {}
        """By the names in the two columns, so that of thousands of rules for named cages few are looked at."""
        for rule in rules:
            bucket = self._of.setdefault((needs(rule.source).name, needs(rule.target).name), {})
            pair = rule.source, rule.target
            if pair not in bucket:
                bucket[pair] = Rule(service=None, source=pair[0], target=pair[1], action=Action.DENY, place=""), set()
            if rule.service:
                bucket[pair][1].add((rule.service.name, rule.service.argument or ""))

    def between(self, source: Instance, name: str, target: Instance | None) -> list[tuple[str, str]]:
        """Service and argument, one of each kind; `name` is what is asked for and `target` the cage that has it."""
        words = self._words
        found = {(service, "") for service in (words.service, *words.services)}
        asked = Request(service=words.service, argument="", source=source, target_name=name)
        for key in ((source.name, name), (source.name, None), (None, name), (None, None)):
            for rule, services in self._of.get(key, {}).values():
                if services and not services <= found and not mismatch(rule, asked, target, 0.0):
                    found |= services
        return sorted(found | {(service, "") for service, _ in found})


def cells(engine: Engine, world: Mapping[str, Instance], host: Host, services: Services) -> Iterator[Cell]:
    """What every cage of `world` may ask of every other, of the core, and of nobody by name."""
    for source in world.values():
        for name in (*world, CORE_TARGET, DEFAULT):
            if name == source.name:
                continue
            for service, argument in services.between(source, name, world.get(name)):
                request = Request(service=service, argument=argument, source=source, target_name=name)
                case = Case(request=request, world=world)
                yield Cell(case=case, decision=decided(engine, case, host))
