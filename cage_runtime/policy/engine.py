# SPDX-License-Identifier: LGPL-2.1-or-later
"""Verdicts: the first rule that matches decides, and what no rule matches is denied.

What a cage hears of a refusal must not tell it whether the target exists.  So there are two verdicts: `decide` is the
truth, for the record and for the administrator; `public_refusal` is worked out from the request alone.

A rule that allows or asks is narrowed to one person's cages, unless it names the target: `*` and labels say nothing of
whose documents go to whom.  A rule that denies is never narrowed.

Where a rule sends a request on, or a person chooses its target, the new pair is decided like any other, and only what
all rules on the way let through is let through.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice

from cage_runtime.errors import PolicySyntaxError
from cage_runtime.model import (
    CAGES_MAX,
    CHOICES_MAX,
    CORE_TARGET,
    DISPOSABLE_TARGET,
    REDIRECTS_MAX,
    Action,
    Decision,
    Direction,
    Flow,
    Instance,
    Label,
    Levels,
    Parameters,
    Request,
    ServiceKind,
)
from cage_runtime.policy.match import Index, canonical, is_across, is_disposable, is_narrow, mismatch
from cage_runtime.policy.parser import ARGUMENT_PATTERN, SERVICE_PATTERN, kind_of
from cage_runtime.policy.rule import NO_PARAMETERS, Named, Rule
from cage_runtime.policy.stricter import stricter
from cage_runtime.text import escape

_SERVICE, _ARGUMENT = re.compile(SERVICE_PATTERN), re.compile(ARGUMENT_PATTERN)

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
BAD_SERVICE = "no service is called so"
BAD_ARGUMENT = 'an argument is 1 to 64 of A-Z, a-z, 0-9 and "._-", first a letter or digit'
NO_TARGET = "no target is named, and the rule names none"
SENT_ON = "no target is named, and where the rule sends it on it may not go"
NOTHING_TO_CHOOSE = "no target is named, and there is none that could be chosen"
NOT_OFFERED = "that target was not to be chosen"
ROUND = "rules send it on in a circle, or too often"
CONTRADICTION = "the rules on the way contradict each other in what they let through"
MORE_THAN_CALLER = "a disposable cage would be more than the cage that asks"

Find = Callable[[str], Instance | None]
"""The cage of that name; for `@disposable:TEMPLATE` the cage that would be made; None where there is none."""
Cages = Callable[[], Iterable[Instance]]


@dataclass(frozen=True, kw_only=True, slots=True)
class _World:
    """What a decision is made in."""

    find: Find
    levels: Levels
    now: float


@dataclass(frozen=True, kw_only=True, slots=True)
class _Verdict:
    """A decision, with the rules that had a part in it: those that sent the request on, and the last one."""

    decision: Decision
    rules: tuple[Rule, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Policy:
    """Rules in force, in their order.  Where they could not be read `fault` says why, and nothing is allowed."""

    rules: tuple[Rule, ...] = ()
    kinds: Mapping[str, ServiceKind] = field(default_factory=dict)
    """The services that mediators have; any other counts as two-way."""
    fault: str | None = None
    _index: Index = field(init=False, repr=False, compare=False)
    _named: frozenset[str] = field(init=False, repr=False, compare=False)
    """The targets that rules name that let something through: no other cage of another person can be reached."""
    _texts: dict[str, str] = field(init=False, repr=False, compare=False, default_factory=dict)
    """What is written at a place, of the rules that were needed so far."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "_index", Index(self.rules))
        named = (rule.target.name for rule in self.rules if isinstance(rule.target, Named) and not is_narrow(rule))
        object.__setattr__(self, "_named", frozenset(named))

    @classmethod
    def refusing(cls, error: PolicySyntaxError) -> Policy:
        """The policy that stands for one that could not be loaded."""
        return cls(fault=error.sentence)

    def decide(self, request: Request, find: Find, levels: Levels, now: float, *, chosen: str | None = None,
               cages: Cages = tuple) -> Decision:
        """The true verdict, at the time of day `now` (seconds of the epoch).

        Never allowed without a target.  Where it is to ask a person and `chosen` is what that one chose, the verdict on
        that: allowed or denied.  `cages` are those among which to choose where the request names no target.  Not for
        the eyes of a cage: see `public_refusal`.
        """
        if self.fault is not None:
            return _deny("", self.fault, None)
        if why := _malformed(request):
            return _deny("", why, None)
        world = _World(find=find, levels=levels, now=now)
        verdict = self._evaluate(request, world)
        if verdict.decision.action is Action.DENY:
            return verdict.decision
        if chosen is not None:
            return self._chosen(request, verdict, chosen, world)
        return verdict.decision if verdict.decision.action is Action.ALLOW else self._asking(
            request, verdict, world, cages)

    def first(self, request: Request, target: Instance | None, now: float) -> Rule | None:
        """The first rule that matches: that alone, without what becomes of it."""
        return self._index.first(request, target, now)

    def public_refusal(self, request: Request, now: float) -> Decision:
        """What the source may hear when `decide` did not allow `request`: the verdict as for an unknown target."""
        if self.fault is not None:
            return _deny("", NO_POLICY, None)
        if why := _malformed(request) or (TO_ITSELF if request.target_name == request.source.name else ""):
            return _deny("", why, None)
        rule = self.first(request, None, now)
        if rule is None:
            return _deny("", NO_RULE, None)
        if rule.action is Action.DENY:
            return _deny(rule.place, DENIED, None, rule.parameters)
        if request.target_name == "" and rule.parameters.target:
            return _deny(rule.place, SENT_ON, None)
        if request.target_name == "":
            return _deny(rule.place, NOTHING_TO_CHOOSE if rule.action is Action.ASK else NO_TARGET, None)
        if not rule.parameters.declassify and not rule.parameters.target:
            return _deny(rule.place, NEEDS_DECLASSIFY, None)
        return _deny("", NOT_REACHABLE, None)

    def explain(self, request: Request, target: Instance | None, now: float) -> list[tuple[Rule, str]]:
        """Every rule up to the one that decides, with the reason why it did not match; that one's reason is empty."""
        explained = []
        for rule in self.rules:
            why = mismatch(rule, request, target, now)
            explained.append((rule, why))
            if not why:
                break
        return explained

    def is_two_way(self, service: str, direction: Direction | None) -> bool:
        """Whether data comes back to the source, by a rule that says so of the direction."""
        kind = kind_of(service, self.kinds)
        if kind is None or direction is Direction.TWO_WAY:
            return True
        return not kind.one_way and not (direction is Direction.ONE_WAY and "direction" in kind.parameters)

    # --- one pair ----------------------------------------------------------------------------------------------
    def _evaluate(self, request: Request, world: _World, passed: tuple[Rule, ...] = ()) -> _Verdict:
        """The verdict on a pair, or on the one that the rules send it on to; `passed` are the rules before."""
        sent = len(passed)
        while True:
            target = _look_up(request, world)
            flow = _flow(request, target)
            if why := _unfit(request, target, world.levels):
                return _Verdict(decision=_deny("", why, flow))
            rule = self.first(request, target, world.now)
            if rule is None or rule.action is Action.DENY:
                return _Verdict(decision=self._denied(rule, request, target, world.now))
            redirect = rule.parameters.target
            if not redirect or canonical(redirect) == canonical(request.target_name):
                return self._passed(request, target, (*passed, rule))
            if len(passed) - sent >= REDIRECTS_MAX or any(earlier is rule for earlier in passed[sent:]):
                return _Verdict(decision=_deny(rule.place, ROUND, flow))
            passed = (*passed, rule)
            request = replace(request, target_name=redirect)

    def _denied(self, rule: Rule | None, request: Request, target: Instance | None, now: float) -> Decision:
        """The denial by the rule that matched, with the reason why no rule before it has allowed it, where one would
        have."""
        flow = _flow(request, target)
        denied = _deny("", NO_RULE, flow) if rule is None else _deny(rule.place, DENIED, flow, rule.parameters)
        if target is None or not is_across(request, target):
            return denied
        within = self.first(request, replace(target, owner=request.source.owner), now)
        if within is None or not is_narrow(within):
            return denied
        return replace(denied, reason=f"{denied.reason} (not by {within.place}: {OTHER_PERSON})")

    def _passed(self, request: Request, target: Instance | None, rules: tuple[Rule, ...]) -> _Verdict:
        """The verdict where all rules on the way, in their order, allow or ask."""
        rule, flow, parameters = rules[-1], _flow(request, target), rules[-1].parameters
        for earlier in rules[:-1]:
            both = stricter(earlier.parameters, parameters)
            if both is None:
                return _Verdict(decision=_deny(rule.place, CONTRADICTION, flow))
            parameters = both
        asking = next((each for each in rules if each.action is Action.ASK), None)
        two_way = self.is_two_way(request.service, parameters.direction)
        if request.target_name == "" and rule.action is Action.ALLOW:
            return _Verdict(decision=_deny(rule.place, NO_TARGET, None))
        if request.target_name and not parameters.declassify and not _goes(flow, two_way):
            return _Verdict(decision=_deny(rule.place, _needs_declassify(request, target, two_way), flow))
        if request.target_name not in ("", CORE_TARGET) and target is None:
            return _Verdict(decision=_deny(rule.place, NO_SUCH_CAGE, None))
        decision = Decision(
            action=Action.ASK if asking else Action.ALLOW, rule=(asking or rule).place,
            reason=ASKS if asking else ALLOWED, flow=flow, target=canonical(request.target_name),
            parameters=parameters, two_way=two_way, rule_text=self._text(rules),
        )
        return _Verdict(decision=decision, rules=rules)

    def _text(self, rules: tuple[Rule, ...]) -> str:
        for rule in rules:
            if rule.place not in self._texts:
                self._texts[rule.place] = str(rule)
        return "; ".join([self._texts[rule.place] for rule in rules])

    # --- a person's choice ---------------------------------------------------------------------------------------
    def _asking(self, request: Request, verdict: _Verdict, world: _World, cages: Cages) -> Decision:
        """The decision to ask, with what there is to choose."""
        decision = verdict.decision
        if decision.target:
            return replace(decision, choices=(decision.target,), default_target=self._preselected(verdict))
        choices, default = [], self._preselected(verdict)
        near = sorted(each.name for each in islice(cages(), CAGES_MAX)
                      if each.owner == request.source.owner or each.name in self._named)
        for name in (default, canonical(DISPOSABLE_TARGET), *near):
            if name and name not in choices and self._offered(request, verdict, name, world) is not None:
                choices.append(name)
                if len(choices) >= CHOICES_MAX:
                    break
        if not choices:
            return _deny(decision.rule, NOTHING_TO_CHOOSE, None)
        return replace(decision, choices=tuple(choices), default_target=default if default in choices else "")

    def _preselected(self, verdict: _Verdict) -> str:
        """What the rules want to have preselected: the last one's word counts."""
        named = [canonical(rule.parameters.default_target) for rule in verdict.rules if rule.parameters.default_target]
        target = verdict.decision.target
        return named[-1] if named and target in ("", named[-1]) else ""

    def _offered(self, request: Request, verdict: _Verdict, name: str, world: _World) -> Decision | None:
        """The verdict on a target that can be chosen; None where the policy does not let it, or sends it elsewhere."""
        found = self._evaluate(replace(request, target_name=name), world, verdict.rules).decision
        return found if found.action is not Action.DENY and found.target == name else None

    def _chosen(self, request: Request, verdict: _Verdict, untrusted_chosen: str, world: _World) -> Decision:
        """The verdict on what a person has chosen: a denial of that pair stands."""
        decision, chosen = verdict.decision, canonical(untrusted_chosen)
        if not decision.target:
            offered = self._offered(request, verdict, chosen, world)
            # Grants and records go by the rule that has asked.
            decision = replace(offered, rule_text=decision.rule_text) if offered else decision
        if not chosen or decision.target != chosen:
            return _deny(decision.rule, NOT_OFFERED, decision.flow)
        return replace(decision, action=Action.ALLOW)


def refusal_sentence(request: Request, decision: Decision) -> str:
    """One sentence for whoever is in the source cage: what was refused, why, and what tells by which rule.

    The place of the rule is the administrator's to know: its number would tell of a name whether the policy has it.
    """
    service = escape(request.service + (f"+{request.argument}" if request.argument else ""), limit=130)
    target = f' to "{escape(request.target_name, limit=40)}"' if request.target_name else ""
    rule = " (cagectl policy explain says which rule)" if decision.rule else ""
    return f"{service}{target} is refused: {decision.reason}{rule}"


def _deny(place: str, reason: str, flow: Flow | None, parameters: Parameters = NO_PARAMETERS) -> Decision:
    return Decision(action=Action.DENY, rule=place, reason=reason, flow=flow, parameters=parameters)


def _malformed(request: Request) -> str:
    """Why there can be no such request; empty where there can be (M1)."""
    if not _SERVICE.match(request.service):
        return BAD_SERVICE
    return BAD_ARGUMENT if request.argument and not _ARGUMENT.match(request.argument) else ""


def _look_up(request: Request, world: _World) -> Instance | None:
    """The target's instance, of what can have one."""
    return world.find(canonical(request.target_name)) if request.target_name not in ("", CORE_TARGET) else None


def _flow(request: Request, target: Instance | None) -> Flow | None:
    if target is not None:
        return request.source.label.flow_to(target.label)
    return Flow.UP if request.target_name == CORE_TARGET else None


def _goes(flow: Flow | None, two_way: bool) -> bool:
    """Whether data may flow so without `declassify`; back as well where it is two-way."""
    return flow is Flow.LEVEL or (flow is Flow.UP and not two_way)


def _unfit(request: Request, target: Instance | None, levels: Levels) -> str:
    """Why the two cannot be a pair, whatever the rules say; empty where they can be."""
    source = request.source
    if request.target_name == source.name or (target is not None and target.uuid == source.uuid):
        return TO_ITSELF
    for instance in (source, target):
        if instance and not is_current(instance.label, levels):
            return f'the label of cage "{instance.name}" is none of this host\'s levels.toml'
    if target is None:
        return ""
    if target.name != canonical(request.target_name):
        return f'the target "{target.name}" is not the one that was asked for'
    if is_disposable(target.name) and not (source.label.dominates(target.label) and source.owner == target.owner):
        return MORE_THAN_CALLER
    return ""


def is_current(label: Label, levels: Levels) -> bool:
    """False for a label from before levels.toml changed: its rank must not be compared with today's."""
    known = label.rank < len(levels.names) and levels.names[label.rank] == label.level
    return known and label.compartments <= levels.compartments


def _needs_declassify(request: Request, target: Instance | None, two_way: bool) -> str:
    if target is None and request.target_name != CORE_TARGET:
        return NEEDS_DECLASSIFY
    ours, theirs = _shown(request.source.label), "the core" if target is None else _shown(target.label)
    back = ", and back" if two_way else ""
    return f"{NEEDS_DECLASSIFY}: data would go from {ours} to {theirs}{back}"


def _shown(label: Label) -> str:
    compartments: Iterable[str] = sorted(label.compartments)
    return "+".join([label.level, *compartments])
