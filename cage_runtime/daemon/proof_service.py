# SPDX-License-Identifier: LGPL-2.1-or-later
"""caged on the system bus for whoever asks what the policy lets happen, of org.cageruntime.Core1.Manager."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
from dbus_fast import Variant

from cage_runtime.bus import Answer, Call, Handler
from cage_runtime.daemon.access import Access
from cage_runtime.daemon.cage import no_such_cage
from cage_runtime.daemon.options import NoOptions, options, text
from cage_runtime.daemon.proofs import Proofs, Question, Tried
from cage_runtime.model import Levels
from cage_runtime.policy.cells import added
from cage_runtime.policy.check import Finding
from cage_runtime.policy.diff import Change
from cage_runtime.policy.explain import Explanation
from cage_runtime.policy.flow import Step
from cage_runtime.policy.picture import Line
from cage_runtime.policy.rule import Rule
from cage_runtime.policy.witness import needs


class DiffOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="kebab"):
    before_alone: bool = False
    after_alone: bool = False


class ProofService:
    def __init__(self, access: Access, proofs: Proofs, levels: Levels) -> None:
        self._access, self._proofs, self._levels = access, proofs, levels
        self.handlers: dict[str, Handler] = {
            "ExplainPolicy": self._explain, "ProvePolicy": self._prove, "SimulatePolicy": self._simulate,
            "DiffPolicy": self._diff, "Graph": self._graph,
        }

    async def _explain(self, call: Call) -> Answer:
        _, service, argument, name, given = call.arguments
        source, target = await self._access.to_pair(call)
        options(given, NoOptions)
        if target is None and not self._proofs.speaks_of(name):
            raise no_such_cage(name)
        question = Question(source=source, service=service, argument=argument, target=target.name if target else name)
        found = await self._proofs.explain(question)
        # The text of the policy may name other cages.
        known = None if await self._access.sees_all(call) else {source.name, question.target}
        return Answer(values=(_explained(found, known),))

    async def _prove(self, call: Call) -> Answer:
        await self._access.to_host(call)
        options(call.arguments[0], NoOptions)
        return Answer(values=([_finding(found) for found in await self._proofs.prove()],))

    async def _simulate(self, call: Call) -> Answer:
        source, service, argument, target, files, given = call.arguments
        await self._access.to_host(call)
        options(given, NoOptions)
        question = Question(source=self._access.known(source), service=service, argument=argument, target=target)
        found = await self._proofs.simulate(question, Tried(untrusted_files=_texts(files)))
        return Answer(values=(_explained(found, None),))

    async def _diff(self, call: Call) -> Answer:
        before, after, given = call.arguments
        await self._access.to_host(call)
        wanted = options(given, DiffOptions)
        changes = await self._proofs.diff(Tried(untrusted_files=_texts(before), alone=wanted.before_alone),
                                          Tried(untrusted_files=_texts(after), alone=wanted.after_alone))
        return Answer(values=([_change(change) for change in changes],))

    async def _graph(self, call: Call) -> Answer:
        view = await self._access.to_all(call)
        options(call.arguments[0], NoOptions)
        cages, lines = await self._proofs.graph(view.cages)
        levels = [text({"name": name, "colour": self._levels.colours.get(name, "")}) for name in self._levels.names]
        shown = [{**text({"name": cage.name, "level": cage.label.level}),
                  "compartments": Variant("as", sorted(cage.label.compartments))} for cage in cages]
        return Answer(values=({"levels": Variant("aa{sv}", levels), "cages": Variant("aa{sv}", shown),
                               "flows": Variant("aa{sv}", [_line(line) for line in lines])},))


def _texts(untrusted_files: Mapping[str, Iterable[int]]) -> dict[str, bytes]:
    return {name: bytes(content) for name, content in untrusted_files.items()}


def _explained(found: Explanation, known: set[str] | None) -> dict[str, Variant]:
    """With the rules that nearly match; where `known` are all the cages that may be named, without those of others."""
    decision = found.decision
    near = [text({"rule": near.rule.place, "text": str(near.rule), "why": near.why})
            for near in found.near if known is None or _names(near.rule) <= known]
    return {
        **text({"action": decision.action.value, "rule": decision.rule, "reason": decision.reason,
                "flow": decision.flow.value if decision.flow else "", "target": decision.target,
                "parameters": " ".join(added(decision)), "note": found.note, "change": found.change}),
        "passed": Variant("aa{sv}", near),
    }


def _names(rule: Rule) -> set[str]:
    """The cages that the rule names."""
    named = {needs(rule.source).name, needs(rule.target).name, rule.parameters.target, rule.parameters.default_target}
    return {name for name in named if name and not name.startswith("@")}


def _finding(found: Finding) -> dict[str, Variant]:
    return {**text({"kind": found.kind.value, "text": found.text}), "rules": Variant("as", list(found.rules)),
            "chain": Variant("aa{sv}", [_step(step) for step in found.chain])}


def _step(step: Step) -> dict[str, Variant]:
    return {**text({"source": str(step.source), "target": str(step.target), "service": step.service,
                    "action": step.action.value, "rule": step.rule}),
            "back": Variant("b", step.back), "declassify": Variant("b", step.declassify)}


def _change(change: Change) -> dict[str, Variant]:
    return text({"source": change.source, "service": change.service, "target": change.target, "before": change.before,
                 "after": change.after, "rule-before": change.rule_before, "rule-after": change.rule_after})


def _line(line: Line) -> dict[str, Any]:
    return {**text({"source": line.source, "target": line.target, "action": line.action.value}),
            "two-way": Variant("b", line.two_way), "declassify": Variant("b", line.declassify),
            "services": Variant("as", list(line.services)), "rules": Variant("as", list(line.rules))}
