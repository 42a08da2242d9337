# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which rule is about a request: the first that matches, found without going through them.

Each token that can stand for the source or the target is looked up, so the work grows with the tokens of the two cages
and not with the rules.
"""

from __future__ import annotations

from collections.abc import Iterable

from cage_runtime.model import (
    CORE_TARGET,
    DISPOSABLE_TARGET,
    DISPOSABLE_TEMPLATE,
    Action,
    Instance,
    Request,
)
from cage_runtime.policy.rule import ANY, AnyCage, Default, Named, Relation, Rule, SameOwner, Source, Target

_ANY_CAGE, _OWNER, _DEFAULT = str(AnyCage()), str(SameOwner()), str(Default())
_DISPOSABLE_PREFIX = f"{DISPOSABLE_TARGET}:"
_USUAL_DISPOSABLE = f"{_DISPOSABLE_PREFIX}{DISPOSABLE_TEMPLATE}"
_Service = tuple[str, str]
_Places = dict[_Service, dict[str, dict[str, tuple[int, ...]]]]
"""By service, key of the source and key of the target the numbers of the rules that can be the first one to match."""


def canonical(untrusted_target: str) -> str:
    """A target as it is written in a request, with the template of a disposable cage also where that is the usual."""
    return _USUAL_DISPOSABLE if untrusted_target == DISPOSABLE_TARGET else untrusted_target


def is_disposable(untrusted_target: str) -> bool:
    return untrusted_target == DISPOSABLE_TARGET or untrusted_target.startswith(_DISPOSABLE_PREFIX)


def is_narrow(rule: Rule) -> bool:
    """Whether the rule is about cages of one person alone."""
    return rule.action is not Action.DENY and not isinstance(rule.target, Named)


def is_across(request: Request, target: Instance | None) -> bool:
    """Whether the two cages are those of two persons."""
    return target is not None and target.owner != request.source.owner


def in_force(rule: Rule, now: float) -> bool:
    return rule.parameters.until is None or now < rule.parameters.until


# The keys of the index.  A name's key cannot be taken for a token's, whatever a cage asks for as its target.
def token_key(token: Source | Target) -> str:
    """The key of a rule's source or target."""
    return f"={token.name}" if isinstance(token, Named) else str(token)


def source_keys(source: Instance) -> list[str]:
    """The keys of all tokens that can stand for the source."""
    return [ANY, _ANY_CAGE, f"={source.name}", *_own_keys(source)]


def _own_keys(cage: Instance) -> list[str]:
    keys = [f"@level:{cage.label.level}"]
    if cage.label.compartments:
        keys += [f"@compartment:{compartment}" for compartment in cage.label.compartments]
    if cage.tags:
        keys += [f"@tag:{tag}" for tag in cage.tags]
    return keys


def target_keys(request: Request, target: Instance | None) -> list[str]:
    """The keys of all tokens that can stand for the target; of one that there is not, those that go by what was
    written."""
    name, source = request.target_name, request.source
    if name == "":
        return [ANY, _DEFAULT]
    if name == CORE_TARGET:
        return [ANY, CORE_TARGET]
    if is_disposable(name):
        keys = [ANY, canonical(name)]
        if canonical(name) == _USUAL_DISPOSABLE:
            keys.append(DISPOSABLE_TARGET)
    else:
        keys = [ANY, f"={name}"]
    if target is None:
        return keys
    keys.append(_ANY_CAGE)
    keys += _own_keys(target)
    if target.owner == source.owner:
        keys.append(_OWNER)
    if target.label.dominates(source.label):
        keys.append(Relation.DOMINATES.value)
        if source.label.dominates(target.label):
            keys.append(Relation.SAME_LABEL.value)
    return keys


def mismatch(rule: Rule, request: Request, target: Instance | None, now: float) -> str:
    """Why `rule` does not match, one clause; empty where it does.  One rule at a time, for explanations."""
    if rule.service and rule.service.name != request.service:
        return f"it is about {rule.service.name}"
    if rule.service and rule.service.argument not in (None, request.argument):
        return f"it is about the argument +{rule.service.argument}"
    if not in_force(rule, now):
        return "its time is over"
    if token_key(rule.source) not in source_keys(request.source):
        return f"the source is not {rule.source}"
    if is_narrow(rule) and is_across(request, target):
        return "the target is another person's, and the rule does not name it"
    if token_key(rule.target) in target_keys(request, target):
        return ""
    return f"the target is not {rule.target}{' of the source' if isinstance(rule.target, Relation) else ''}"


class Index:
    """The rules by what has to be looked up for them."""

    def __init__(self, rules: Iterable[Rule]) -> None:
        self._rules = tuple(rules)
        self._places: _Places = {}
        self._across: _Places = {}
        """Those of the rules that there are between cages of different persons."""
        for number, rule in enumerate(self._rules):
            self._add(self._places, number, rule)
            if not is_narrow(rule):
                self._add(self._across, number, rule)

    def _add(self, places: _Places, number: int, rule: Rule) -> None:
        targets = places.setdefault(_service_key(rule), {}).setdefault(token_key(rule.source), {})
        before = targets.get(token_key(rule.target), ())
        # Of two rules that match the same requests only the first can ever decide, but that its time can be over.
        if not before or self._rules[before[-1]].parameters.until is not None:
            targets[token_key(rule.target)] = (*before, number)

    def first(self, request: Request, target: Instance | None, now: float) -> Rule | None:
        """The first rule that matches and whose time is not over."""
        places = self._across if is_across(request, target) else self._places
        sources, targets = source_keys(request.source), target_keys(request, target)
        rules = self._rules
        first = none = len(rules)
        for service in ((request.service, f"+{request.argument}"), (request.service, ANY), (ANY, ANY)):
            by_source = places.get(service)
            if by_source is None:
                continue
            for source in sources:
                by_target = by_source.get(source)
                if by_target is None:
                    continue
                for key in targets:
                    for number in by_target.get(key, ()):
                        if number >= first:
                            break
                        if in_force(rules[number], now):
                            first = number
                            break
        return rules[first] if first < none else None


def _service_key(rule: Rule) -> _Service:
    if rule.service is None:
        return ANY, ANY
    return rule.service.name, ANY if rule.service.argument is None else f"+{rule.service.argument}"
