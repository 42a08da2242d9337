# SPDX-License-Identifier: LGPL-2.1-or-later
"""Verdicts: the first rule that matches decides, and what no rule matches is denied.

What a cage hears of a refusal must not tell it whether the target exists.  So there are two verdicts: `decide` is the
truth, for the record and for the administrator; `public_refusal` is worked out from the request alone.

A rule that allows is narrowed to one person's cages, unless it names the target: `*` and labels say nothing of whose
documents go to whom.  A rule that denies is never narrowed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from cage_runtime.errors import PolicySyntaxError
from cage_runtime.model import Action, Decision, Flow, Instance, Label, Levels, Request
from cage_runtime.policy.rule import ANY, Anyone, AtLevel, Named, Relation, Rule
from cage_runtime.text import escape

_ServiceKey = tuple[str, str]
_PairKey = tuple[str, str]
_Index = dict[_ServiceKey, dict[_PairKey, int]]

NO_RULE = "no rule matches it, and only a rule that allows it would change that"
DENIED = "the rule denies it, and only an allowing rule before that one would change it"
ALLOWED = "the rule allows it"
ASKS = "the rule has a person asked"
TO_ITSELF = "a cage and its target must be two different cages"
NO_SUCH_CAGE = "there is no cage of that name"
NOT_REACHABLE = "no cage of that name can be reached from here"
NO_POLICY = "the policy of this host cannot be read and refuses everything until the administrator mends it"
OTHER_PERSON = "it allows within one person's cages alone, the target is another's, and no rule names it as the target"
NEEDS_DECLASSIFY = 'the rule allows it, but for this flow would need "declassify"'


@dataclass(frozen=True, kw_only=True)
class Policy:
    """Rules in force, in their order.  Where they could not be read `fault` says why, and nothing is allowed."""

    rules: tuple[Rule, ...] = ()
    fault: str | None = None
    _index: _Index = field(init=False, repr=False, compare=False, default_factory=dict)
    _index_across: _Index = field(init=False, repr=False, compare=False, default_factory=dict)
    """The rules that there are between cages of different persons."""

    def __post_init__(self) -> None:
        for number, rule in enumerate(self.rules):
            for index in (self._index,) if is_narrow(rule) else (self._index, self._index_across):
                pairs = index.setdefault(_service_key(rule), {})
                # Of two rules that match the same requests only the first can ever decide.
                pairs.setdefault((_token_key(rule.source), _token_key(rule.target)), number)

    @classmethod
    def refusing(cls, error: PolicySyntaxError) -> Policy:
        """The policy that stands for one that could not be loaded."""
        return cls(fault=error.sentence)

    def decide(self, request: Request, target: Instance | None, levels: Levels) -> Decision:
        """The true verdict; `target` is the cage that `request.target_name` names, None where there is none.

        Never allowed without a target.  Not for the eyes of a cage: see `public_refusal`.
        """
        flow = request.source.label.flow_to(target.label) if target else None
        if self.fault is not None:
            return _deny("", self.fault, flow)
        if _to_itself(request, target):
            return _deny("", TO_ITSELF, flow)
        for instance in (request.source, target):
            if instance and not _is_current(instance.label, levels):
                return _deny("", f'the label of cage "{instance.name}" is none of this host\'s levels.toml', flow)
        if target and target.name != request.target_name:
            return _deny("", f'the target "{target.name}" is not the one that was asked for', flow)
        needs_declassify = _needs_declassify(request.source, target)
        verdict = _verdict(self.first(request, target), flow, needs_declassify)
        if verdict.action is not Action.DENY:
            choices = (request.target_name,) if verdict.action is Action.ASK else ()
            verdict = replace(verdict, target=request.target_name, choices=choices)
        if target is None and verdict.action is not Action.DENY:
            return _deny(verdict.rule, NO_SUCH_CAGE, None)
        if verdict.action is Action.DENY and target and target.owner != request.source.owner:
            return self._across(request, target, verdict)
        return verdict

    def _across(self, request: Request, target: Instance, verdict: Decision) -> Decision:
        """`verdict`, with the reason why no rule before the one that decided has allowed it, where one would have."""
        within = self.first(request, replace(target, owner=request.source.owner))
        if within is None or not is_narrow(within):
            return verdict
        return replace(verdict, reason=f"{verdict.reason} (not by {within.place}: {OTHER_PERSON})")

    def public_refusal(self, request: Request) -> Decision:
        """What the source may hear when `decide` did not allow `request`: the verdict as for an unknown target."""
        if self.fault is not None:
            return _deny("", NO_POLICY, None)
        if _to_itself(request, None):
            return _deny("", TO_ITSELF, None)
        verdict = _verdict(self.first(request, None), None, NEEDS_DECLASSIFY)
        return verdict if verdict.action is Action.DENY else _deny("", NOT_REACHABLE, None)

    def first(self, request: Request, target: Instance | None) -> Rule | None:
        """The first rule that matches.  The work does not grow with the rules: each token that can stand for the
        source or the target is looked up, and the earliest of the at most 45 rules found is the one."""
        sources = (ANY, _name_key(request.source.name), _level_key(request.source.label.level))
        targets = _target_keys(request, target)
        across = target is not None and target.owner != request.source.owner
        index = self._index_across if across else self._index
        first = len(self.rules)
        for service in ((request.service, f"+{request.argument}"), (request.service, ANY), (ANY, ANY)):
            pairs = index.get(service)
            if pairs is None:
                continue
            for source_key in sources:
                for target_key in targets:
                    number = pairs.get((source_key, target_key), first)
                    if number < first:
                        first = number
        return self.rules[first] if first < len(self.rules) else None

    def explain(self, request: Request, target: Instance | None) -> list[tuple[Rule, str]]:
        """Every rule up to the one that decides, with the reason why it did not match; that one's reason is empty."""
        explained = []
        for rule in self.rules:
            why = mismatch(rule, request, target)
            explained.append((rule, why))
            if not why:
                break
        return explained


def refusal_sentence(request: Request, decision: Decision) -> str:
    """One sentence for a person: what was refused, why, and by which rule."""
    service = escape(request.service + (f"+{request.argument}" if request.argument else ""), limit=130)
    rule = f" (rule {decision.rule})" if decision.rule else ""
    return f'{service} to "{escape(request.target_name, limit=40)}" is refused: {decision.reason}{rule}'


def mismatch(rule: Rule, request: Request, target: Instance | None) -> str:
    """Why `rule` does not match, one clause; empty where it does.  One rule at a time, for explanations."""
    if rule.service and rule.service.name != request.service:
        return f"it is about {rule.service.name}"
    if rule.service and rule.service.argument not in (None, request.argument):
        return f"it is about the argument +{rule.service.argument}"
    if not _stands_for(rule.source, request.source.name, request.source.label):
        return f"the source is not {rule.source}"
    if is_narrow(rule) and target is not None and target.owner != request.source.owner:
        return "the target is another person's, and the rule does not name it"
    if isinstance(rule.target, Relation):
        related = target is not None and _related(rule.target, request.source.label, target.label)
        return "" if related else f"the target is not {rule.target} of the source"
    label = target.label if target else None
    return "" if _stands_for(rule.target, request.target_name, label) else f"the target is not {rule.target}"


def is_narrow(rule: Rule) -> bool:
    """Whether the rule is about cages of one person alone."""
    return rule.action is not Action.DENY and not isinstance(rule.target, Named)


def _stands_for(token: Anyone | Named | AtLevel, name: str, label: Label | None) -> bool:
    match token:
        case Anyone():
            return True
        case Named():
            return token.name == name
        case AtLevel():
            return label is not None and token.level == label.level


def _related(relation: Relation, source: Label, target: Label) -> bool:
    return target.dominates(source) and (relation is Relation.DOMINATES or source.dominates(target))


def _verdict(rule: Rule | None, flow: Flow | None, needs_declassify: str) -> Decision:
    """The decision by the rule that matched; without a known target the flow counts as incomparable."""
    if rule is None:
        return _deny("", NO_RULE, flow)
    if rule.action is Action.DENY:
        return _deny(rule.place, DENIED, flow)
    if flow not in (Flow.UP, Flow.LEVEL) and not rule.parameters.declassify:
        return _deny(rule.place, needs_declassify, flow)
    reason = ALLOWED if rule.action is Action.ALLOW else ASKS
    return Decision(action=rule.action, rule=rule.place, reason=reason, flow=flow, parameters=rule.parameters,
                    rule_text=str(rule))


def _deny(place: str, reason: str, flow: Flow | None) -> Decision:
    return Decision(action=Action.DENY, rule=place, reason=reason, flow=flow)


def _to_itself(request: Request, target: Instance | None) -> bool:
    return request.target_name == request.source.name or (target is not None and target.uuid == request.source.uuid)


def _is_current(label: Label, levels: Levels) -> bool:
    """False for a label from before levels.toml changed: its rank must not be compared with today's."""
    known = label.rank < len(levels.names) and levels.names[label.rank] == label.level
    return known and label.compartments <= levels.compartments


def _needs_declassify(source: Instance, target: Instance | None) -> str:
    if target is None:
        return NEEDS_DECLASSIFY
    return f"{NEEDS_DECLASSIFY}: data would go from {_shown(source.label)} to {_shown(target.label)}"


def _shown(label: Label) -> str:
    compartments: Iterable[str] = sorted(label.compartments)
    return "+".join([label.level, *compartments])


# The keys of the index.  A name's key cannot be taken for a token's, whatever a cage asks for as its target.
def _name_key(name: str) -> str:
    return f"={name}"


def _level_key(level: str) -> str:
    return f"@level:{level}"


def _token_key(token: Anyone | Named | AtLevel | Relation) -> str:
    return _name_key(token.name) if isinstance(token, Named) else str(token)


def _service_key(rule: Rule) -> _ServiceKey:
    if rule.service is None:
        return ANY, ANY
    return rule.service.name, ANY if rule.service.argument is None else f"+{rule.service.argument}"


def _target_keys(request: Request, target: Instance | None) -> list[str]:
    keys = [ANY, _name_key(request.target_name)]
    if target is not None:
        source, label = request.source.label, target.label
        keys.append(_level_key(label.level))
        if label.dominates(source):
            keys.append(Relation.DOMINATES.value)
            if source.dominates(label):
                keys.append(Relation.SAME_LABEL.value)
    return keys
