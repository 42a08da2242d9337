# SPDX-License-Identifier: LGPL-2.1-or-later
"""Why a request is decided as it is, and the least that would change it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from cage_runtime.model import CORE_TARGET, DISPOSABLE_TARGET, Action, Decision, Parameters
from cage_runtime.policy.cells import Host, decided
from cage_runtime.policy.engine import Policy
from cage_runtime.policy.match import mismatch
from cage_runtime.policy.rule import Anyone, Core, Disposable, Named, Rule, Service, Target
from cage_runtime.policy.witness import DEFAULT, Case
from cage_runtime.text import escape

NEAR_MAX = 20
"""Rules that are told to have nearly matched: those next before the one that decides."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Near:
    """A rule that stands before the one that decides, and would match but for one thing."""

    rule: Rule
    why: str
    """Why it does not match, in a clause."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Explanation:
    decision: Decision
    near: tuple[Near, ...]
    change: str
    """The least that would have it allowed, in a clause; empty where it is allowed, and where no rule would."""
    note: str = ""
    """What else is amiss with what is asked, in a clause."""


def explain(policy: Policy, case: Case, host: Host) -> Explanation:
    """What `policy` decides of the request, and why."""
    decision = decided(policy, case, host)
    near = tuple(_near(policy, case, decision, host)) if policy.fault is None else ()
    service = case.request.service
    note = "" if host.has(service) else f'no mediator offers "{escape(service, limit=60)}"'
    return Explanation(decision=decision, near=near[-NEAR_MAX:], change=_change(policy, case, decision, host),
                       note=note)


def _near(policy: Policy, case: Case, decision: Decision, host: Host) -> Iterator[Near]:
    for rule in policy.rules:
        if rule.place == decision.rule:
            return
        if rule.service and rule.service.name != case.request.service:
            continue
        blank = Rule(service=None, source=Anyone(), target=Anyone(), action=Action.DENY, place="")
        alone = (replace(blank, service=rule.service), replace(blank, source=rule.source),
                 replace(blank, target=rule.target))
        amiss = [why for part in alone if (why := _mismatch(part, case, host))]
        if len(amiss) < 2:
            yield Near(rule=rule, why=amiss[0] if amiss else _mismatch(rule, case, host))


def _mismatch(rule: Rule, case: Case, host: Host) -> str:
    name = case.request.target_name
    return mismatch(rule, case.request, host.find(case, name), host.now)


def _change(policy: Policy, case: Case, decision: Decision, host: Host) -> str:
    """A line is only told if a policy that has it allows the request."""
    if decision.action is not Action.DENY or policy.fault is not None or case.request.target_name == DEFAULT:
        return ""
    request = case.request
    service = Service(name=request.service, argument=request.argument or None)
    for parameters in (Parameters(), Parameters(declassify=True)):
        line = Rule(service=service, source=Named(name=request.source.name), target=_token(request.target_name),
                    action=Action.ALLOW, parameters=parameters, place="")
        if decided(Policy(rules=(line,), kinds=policy.kinds), case, host).action is Action.ALLOW:
            before = f"a line before {decision.rule}" if decision.rule else "a line"
            return f"{before}, such as: {line}"
    return ""


def _token(untrusted_target: str) -> Target:
    word, _, template = untrusted_target.partition(":")
    if untrusted_target == CORE_TARGET:
        return Core()
    return Disposable(template=template or None) if word == DISPOSABLE_TARGET else Named(name=untrusted_target)
