# SPDX-License-Identifier: LGPL-2.1-or-later
"""What one policy lets happen otherwise than another: not in their texts, in what is decided.

Held against each other are all requests that either policy tells apart: between the cages that there are, and between
any two cages of one person's of the labels that the rules speak of: every level by itself, and with each compartment
that a rule names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice, product

from cage_runtime.model import CORE_TARGET, Action, Decision, Instance, Request
from cage_runtime.policy.cells import Engine, Host, Services, added, decided
from cage_runtime.policy.witness import DEFAULT, Case, Words, cage_like, needs

LABELS_MAX = 64
"""Labels for which there need be no cage."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """One cell that differs."""

    source: str
    service: str
    target: str
    before: str
    after: str
    """The action, and what the rule adds to it; `deny` alone where no rule allows.  Where both are the same in that,
    where it goes or may be chosen to go."""
    rule_before: str
    rule_after: str
    """FILE:LINE, empty where none matches."""


def differences(before: Engine, after: Engine, world: Mapping[str, Instance], host: Host) -> Iterator[Change]:
    """Cell by cell, in the order of sources and targets."""
    rules = (*before.rules, *after.rules)
    words = host.words(rules)
    services = Services(rules, words)
    compartments = sorted({found for rule in rules for token in (rule.source, rule.target)
                           if (found := needs(token).compartment)})
    for there, names in ((world, {}), _labels(words, compartments)):
        for source, name in product(there.values(), (*there, CORE_TARGET, DEFAULT)):
            if name == source.name:
                continue
            for service, argument in services.between(source, name, there.get(name)):
                request = Request(service=service, argument=argument, source=source, target_name=name)
                case = Case(request=request, world=there)
                was, is_ = decided(before, case, host), decided(after, case, host)
                if _comes_to(was) != _comes_to(is_):
                    texts = _texts(was, is_, names)
                    yield Change(source=names.get(source.name, source.name), service=words.shown(request),
                                 target=names.get(name, name) or "@default", before=texts[0], after=texts[1],
                                 rule_before=was.rule, rule_after=is_.rule)


def _labels(words: Words, compartments: list[str]) -> tuple[dict[str, Instance], dict[str, str]]:
    """A cage of each label, under a name that no rule has, and what it is called; two of each, for what the same label
    may do with itself."""
    sets = [frozenset[str](), *(frozenset({each}) for each in compartments)]
    labels = [words.label(rank, more) for more, rank in islice(product(sets, words.ranks), LABELS_MAX)]
    world, names = {}, {}
    for number, (label, twin) in enumerate(product(labels, (1, 2))):
        name = f"{words.nameless[0]}-{number}"
        world[name] = cage_like(name, label)
        names[name] = f"any {label}" if twin == 1 else f"another {label}"
    return world, names


def _comes_to(decision: Decision) -> tuple[object, ...]:
    if decision.action is Action.DENY:
        return (Action.DENY,)
    return decision.action, decision.target, decision.parameters, decision.two_way, decision.choices


def _texts(was: Decision, is_: Decision, names: Mapping[str, str]) -> tuple[str, str]:
    """The two, so that they differ."""
    if _shown(was) != _shown(is_):
        return _shown(was), _shown(is_)
    before, after = (f"{_shown(each)} (to {_goes_to(each, names)})" for each in (was, is_))
    return before, after


def _shown(decision: Decision) -> str:
    """The action and parameters, as a rule has them."""
    return " ".join([decision.action.value, *added(decision)])


def _goes_to(decision: Decision, names: Mapping[str, str]) -> str:
    goes = (decision.target,) if decision.target else decision.choices
    return " or ".join(names.get(name, name) for name in goes)
