# SPDX-License-Identifier: LGPL-2.1-or-later
"""For each rule the smallest requests that it matches: what is true of these is true of all.

Whether a rule matches follows from names, levels, single compartments and tags that a label or a cage *has*, from
whose the two cages are, and from how the two labels stand to each other: the same, the target above, or neither.  So of
two requests with the same names, levels, persons and standing, the one whose cages have fewer compartments and tags is
matched by fewer rules.  If any request at all gets past all earlier rules to this one, then one of the smallest does;
and which compartments other than those that a rule names make two labels stand as they do, no rule can see: one of
them stands for all.  (Tests hold this against every label of small hosts.)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import count, product

from cage_runtime.model import Instance, Label, Levels, Request
from cage_runtime.policy.rule import AtLevel, Named, Rule, Source, Target

OURS, THEIRS = 1, 2
"""Owners of the cages of a case: two persons whom no rule knows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One request, and the cages that there are beside its source."""

    request: Request
    cages: tuple[Instance, ...] = ()

    def find(self, name: str) -> Instance | None:
        return next((cage for cage in (*self.cages, self.request.source) if cage.name == name), None)


@dataclass(frozen=True, kw_only=True, slots=True)
class Words:
    """What the rules of a policy tell apart on a host with these levels."""

    levels: Levels
    ranks: tuple[int, ...]
    """Of every run of levels that no rule names the first two: one, and one above it."""
    others: tuple[str, ...]
    """A compartment that no rule names; where rules name all, each of them."""
    nameless: tuple[str, str]
    """Names that no rule has, of a source and of a target."""
    service: str
    argument: str
    """One that no rule has."""

    @classmethod
    def of(cls, rules: Iterable[Rule], levels: Levels) -> Words:
        tokens = {token for rule in rules for token in (rule.source, rule.target)}
        named = {rule.service.name for rule in rules if rule.service}
        arguments = {rule.service.argument for rule in rules if rule.service}
        unnamed = sorted(levels.compartments - {found for token in tokens if (found := _needs(token).compartment)})
        names = {found for token in tokens if (found := _needs(token).name)}
        source = _new("source", names)
        return cls(
            levels=levels,
            ranks=tuple(_told_apart(levels, {found for token in tokens if (found := _needs(token).level)})),
            others=tuple(unnamed[:1] or sorted(levels.compartments)),
            nameless=(source, _new("target", names | {source})),
            service=_new("any.Service", named),
            argument=_new("any", arguments),
        )

    def label(self, rank: int, compartments: frozenset[str]) -> Label:
        return Label(level=self.levels.names[rank], rank=rank, compartments=compartments)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Needs:
    """What a cage has to have for a token to stand for it; None where that does not matter."""

    name: str | None = None
    level: str | None = None
    compartment: str | None = None
    tag: str | None = None


_NOTHING = _Needs()


def _needs(token: Source | Target) -> _Needs:
    match token:
        case Named():
            return _Needs(name=token.name)
        case AtLevel():
            return _Needs(level=token.level)
    return _NOTHING


def _new(word: str, known: set[str]) -> str:
    return next(found for number in count() if (found := f"{word}{number or ''}") not in known)


def _told_apart(levels: Levels, named: set[str]) -> Iterator[int]:
    unnamed = 0
    for rank, level in enumerate(levels.names):
        unnamed = 0 if level in named else unnamed + 1
        if unnamed <= 2:
            yield rank


def witnesses(rule: Rule, words: Words) -> Iterator[Case]:
    """The smallest requests among those that `rule` may match; all of them if `rule` matches any."""
    service = rule.service.name if rule.service else words.service
    argument = rule.service.argument if rule.service else None
    asked = words.argument if argument is None else argument
    for source, target in _pairs(rule, words):
        yield Case(request=Request(service=service, argument=asked, source=source, target_name=target.name),
                   cages=(target,))


def _pairs(rule: Rule, words: Words) -> Iterator[tuple[Instance, Instance]]:
    ours, theirs = _needs(rule.source), _needs(rule.target)
    for lower, upper in product(_ranks(ours, words), _ranks(theirs, words)):
        for mine, yours in _smallest(_of(ours), _of(theirs), words.others, lower - upper):
            source = _cage(ours, words.nameless[0], words.label(lower, mine), OURS)
            for owner in (THEIRS, OURS):
                yield source, _cage(theirs, words.nameless[1], words.label(upper, yours), owner)


def _ranks(needs: _Needs, words: Words) -> tuple[int, ...]:
    return words.ranks if needs.level is None else (words.levels.names.index(needs.level),)


def _of(needs: _Needs) -> frozenset[str]:
    return frozenset() if needs.compartment is None else frozenset({needs.compartment})


def _smallest(
    source: frozenset[str], target: frozenset[str], others: Iterable[str], step: int
) -> Iterator[tuple[frozenset[str], frozenset[str]]]:
    """Of sets of compartments that have what the rule needs of each, the smallest for every way in which the labels can
    stand to each other; `step` is how far the source's level is above the target's."""
    both = source | target
    yield source, target  # where neither is the case: the target does not dominate
    if source <= target:
        yield from ((source | {other}, target) for other in others if other not in target)
    yield source, both  # the target dominates
    if step == 0 and both == source:
        yield from ((source, both | {other}) for other in others if other not in both)
    yield both, both  # the same


def _cage(needs: _Needs, nameless: str, label: Label, owner: int) -> Instance:
    name = needs.name or nameless
    return Instance(name=name, uuid=f"the one called {name}", label=label, owner=owner)
