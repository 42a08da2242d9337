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

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import count, product

from cage_runtime.model import CORE_TARGET, DISPOSABLE_TARGET, Instance, Label, Levels, Request
from cage_runtime.policy.match import is_narrow
from cage_runtime.policy.rule import (
    Anyone,
    AtLevel,
    Core,
    Default,
    Disposable,
    InCompartment,
    Named,
    Rule,
    SameOwner,
    Source,
    Tagged,
    Target,
)

DEFAULT = ""
"""The target of a request that names none."""
OURS, THEIRS = 1, 2
"""Owners of the cages of a case: two persons whom no rule knows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One request, and the cages that there are, by their names."""

    request: Request
    world: Mapping[str, Instance]

    def all(self) -> Iterable[Instance]:
        return self.world.values()

    def beside(self, *others: Instance) -> Case:
        """The same request where there are `others` too."""
        return replace(self, world={**{other.name: other for other in others}, **self.world})


NOBODY: Mapping[str, Label] = {}


@dataclass(frozen=True, kw_only=True, slots=True)
class Words:
    """What the rules of a policy tell apart on a host."""

    levels: Levels
    ranks: tuple[int, ...]
    """Of every run of levels that no rule names the first two: one, and one above it."""
    others: tuple[str, ...]
    """A compartment that no rule names; where rules name all, each of them."""
    nameless: tuple[str, ...]
    """Names that no rule has: of a source, of a target, and of a cage of each of `ranks`."""
    service: str
    """One that no rule has; no argument is an argument that no rule has."""
    services: Mapping[str, str]
    """Those that the host has, and what each is called: of a family one that no rule has, by the family's name."""

    disposables: tuple[str, ...]
    """Targets that ask for a cage made from the usual template, from each that there is, and from one that no rule
    has."""

    @classmethod
    def of(cls, rules: Iterable[Rule], levels: Levels, services: Iterable[str] = (),
           templates: Mapping[str, Label] = NOBODY) -> Words:
        """`services` are those of the host, and `templates` what a disposable cage made from each can have at most."""
        wanted, named = set(), set()
        for rule in rules:
            wanted |= {needs(rule.source), needs(rule.target)}
            if rule.service:
                named.add(rule.service.name)
        for label in templates.values():  # which make a difference as rules do
            wanted |= {Needs(level=label.level), *(Needs(compartment=each) for each in label.compartments)}
        names = {found.name for found in wanted}
        unnamed = sorted(levels.compartments - {found.compartment for found in wanted})
        ranks = tuple(_told_apart(levels, {found.level for found in wanted}))
        return cls(
            levels=levels,
            ranks=ranks,
            others=tuple(unnamed[:1] or sorted(levels.compartments)),
            nameless=tuple(_new(word, names) for word in ("source", "target", *(f"other-{rank}-" for rank in ranks))),
            service=_new("any.Service", named),
            disposables=(DISPOSABLE_TARGET, *(f"{DISPOSABLE_TARGET}:{name}" for name in (*templates, "any-template"))),
            services={_new(f"{name[:-1]}any", named) if name.endswith(".*") else name: name for name in services},
        )

    def label(self, rank: int, compartments: frozenset[str]) -> Label:
        return Label(level=self.levels.names[rank], rank=rank, compartments=compartments)

    def shown(self, request: Request) -> str:
        """The request's service, with its argument after a `+`; as what it stands for where no rule has it."""
        if request.service == self.service:
            return "any other service"
        name = self.services.get(request.service, request.service)
        return name + (f"+{request.argument}" if request.argument else "")


@dataclass(frozen=True, kw_only=True, slots=True)
class Needs:
    """What a cage has to have for a token to stand for it; None where that does not matter."""

    name: str | None = None
    level: str | None = None
    compartment: str | None = None
    tag: str | None = None


_NOTHING = Needs()


def needs(token: Source | Target) -> Needs:
    match token:
        case Named():
            return Needs(name=token.name)
        case AtLevel():
            return Needs(level=token.level)
        case InCompartment():
            return Needs(compartment=token.compartment)
        case Tagged():
            return Needs(tag=token.tag)
    return _NOTHING


def _new(word: str, known: set[str] | set[str | None]) -> str:
    return next(found for number in count() if (found := f"{word}{number or ''}") not in known)


def _told_apart(levels: Levels, named: set[str | None]) -> Iterator[int]:
    unnamed = 0
    for rank, level in enumerate(levels.names):
        unnamed = 0 if level in named else unnamed + 1
        if unnamed <= 2:
            yield rank


def witnesses(rule: Rule, words: Words, *, of_each: bool = False) -> Iterator[Case]:
    """The smallest requests among those that `rule` may match; all of them if `rule` matches any.

    Where the rule is about all services that is one that no rule has, and with `of_each` each that the host has too:
    fewer rules match the former, and the latter may be of another kind.
    """
    services = (rule.service.name,) if rule.service else (words.service, *(words.services if of_each else ()))
    argument = rule.service.argument if rule.service else None
    asked = argument or ""
    for (source, name, target), service in product(_asks(rule, words), services):
        request = Request(service=service, argument=asked, source=source, target_name=name)
        yield Case(request=request, world={each.name: each for each in (source, target) if each})


def _asks(rule: Rule, words: Words) -> Iterator[tuple[Instance, str, Instance | None]]:
    """Source, name of the target, and the target where it is a cage that there is."""
    if not isinstance(rule.target, Core | Default | Disposable):
        for source, target in _pairs(rule, words):
            yield source, target.name, target
    ours, nameless = needs(rule.source), words.nameless
    for rank, name in product(_ranks(ours, words), _other_targets(rule.target, words)):
        for more in ((), words.others[:1]):
            label = words.label(rank, _of(ours) | frozenset(more))
            yield _cage(ours, nameless[0], label, OURS), name, None


def _other_targets(token: Target, words: Words) -> tuple[str, ...]:
    """What a request may name that is no cage of this host, and `token` may stand for."""
    match token:
        case Anyone():
            return words.nameless[1], CORE_TARGET, DEFAULT, *words.disposables
        case Named():
            return (token.name,)
        case Core():
            return (CORE_TARGET,)
        case Default():
            return (DEFAULT,)
        case Disposable():
            return (str(token),)
    return words.disposables


def _pairs(rule: Rule, words: Words) -> Iterator[tuple[Instance, Instance]]:
    ours, theirs = needs(rule.source), needs(rule.target)
    for lower, upper in product(_ranks(ours, words), _ranks(theirs, words)):
        # Some are the same two: a set, in the order in which they were found.
        for mine, yours in dict.fromkeys(_smallest(_of(ours), _of(theirs), words.others, lower - upper)):
            source = _cage(ours, words.nameless[0], words.label(lower, mine), OURS)
            for name in _target_names(rule, words):
                yield source, _cage(theirs, name, words.label(upper, yours), _owner(rule))


def _owner(rule: Rule) -> int:
    """Whose the target is: another person's, of which fewer rules are, where this one can be about that."""
    return OURS if is_narrow(rule) or isinstance(rule.target, SameOwner) else THEIRS


def _target_names(rule: Rule, words: Words) -> tuple[str, ...]:
    """A name that no rule has; and the one that the rule would send the request to, where it does not go elsewhere."""
    sent = rule.parameters.target
    return words.nameless[1:2] + ((sent,) if sent and not sent.startswith("@") else ())


def _cage(wanted: Needs, nameless: str, label: Label, owner: int) -> Instance:
    tags = frozenset() if wanted.tag is None else frozenset({wanted.tag})
    return cage_like(wanted.name or nameless, label, owner, tags)


def _ranks(wanted: Needs, words: Words) -> tuple[int, ...]:
    return words.ranks if wanted.level is None else (words.levels.names.index(wanted.level),)


def _of(wanted: Needs) -> frozenset[str]:
    return frozenset() if wanted.compartment is None else frozenset({wanted.compartment})


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


def cage_like(name: str, label: Label, owner: int = OURS, tags: frozenset[str] = frozenset()) -> Instance:
    return Instance(name=name, uuid=f"of {name}", label=label, owner=owner, tags=tags)
