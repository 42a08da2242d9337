# SPDX-License-Identifier: LGPL-2.1-or-later
"""The flow proof: whether data can get from any label to one that does not dominate it (law 8).

Nothing is assumed of the engine: it is asked, and what it allows is followed step by step.  It is asked about the
cages that there are, and, for those that there could be, about the smallest requests of every rule (witness.py), among
which there is one that leaks if any request leaks: one that a rule lets down, or sideways, or whose answer comes back
down, is let so with fewer compartments and tags too, for fewer rules stand before it.  A chain that leaks has a step
that does, because dominance is transitive: of the cages that there could be, steps are enough.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from cage_runtime.model import CORE_TARGET, Action, Decision, Instance, Label
from cage_runtime.policy.cells import Cell, Engine, Host, Services, answers, cells, decided
from cage_runtime.policy.match import is_disposable
from cage_runtime.policy.rule import Rule
from cage_runtime.policy.witness import DEFAULT, Case, Words, cage_like, witnesses


@dataclass(frozen=True, kw_only=True, slots=True)
class Node:
    """Where data can be: a cage, or any cage of a label where `name` is empty; the core where `label` is None."""

    name: str
    label: Label | None

    def dominates(self, other: Node) -> bool:
        """What the core has, only the core may have; it may have everything."""
        if self.label is None or other.label is None:
            return self.label is None
        return self.label.dominates(other.label)

    def __str__(self) -> str:
        if self.label is None:
            return "the core"
        return f"{self.name} ({self.label})" if self.name else f"any cage of {self.label}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """What one decision lets data do."""

    source: Node
    target: Node
    service: str
    """With its argument after a `+`."""
    action: Action
    rule: str
    """FILE:LINE."""
    back: bool
    """Whether it is the answer of a two-way service."""
    declassify: bool
    """Whether it goes where the label does not let it, because the rule says declassify."""

    @property
    def leaks(self) -> bool:
        return not self.declassify and not self.target.dominates(self.source)

    def __str__(self) -> str:
        how = [self.service]
        if self.back:
            how.append("its answer")
        if self.action is Action.ASK:
            how.append("where a person says so")
        if self.declassify:
            how.append("declassify")
        return f"{self.source} to {self.target}: {', '.join(how)} (rule {self.rule})"


Chain = tuple[Step, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Proof:
    """What was found: nothing of the host's data goes down but by `opened`, if there are no `leaks`."""

    leaks: tuple[Chain, ...]
    opened: tuple[Chain, ...]
    """Between the cages that there are, the shortest from each to each that does not dominate it; and of every rule
    with declassify that is in none of those, one step between cages that there could be."""


def prove(engine: Engine, world: Mapping[str, Instance], host: Host) -> Proof:
    """Follow what `engine` allows; `world` is the cages that there are, by their names."""
    words = host.words(engine.rules)
    could_be = list(_witnessed(engine, host, words))
    there = list(_between(engine, world, host, words))
    chains = _chains(sorted(there, key=lambda step: step.declassify))
    opened = [chain for chain in chains if any(step.declassify for step in chain) and not _only_by_the_way(chain)]
    shown = {step.rule for chain in opened for step in chain if step.declassify}
    for step in could_be:
        if step.declassify and step.rule not in shown and _may_be(step.source, world) and _may_be(step.target, world):
            shown.add(step.rule)
            opened.append((step,))
    leaks = _unlike((*_chains([step for step in there if not step.declassify]),
                     *((step,) for step in could_be if step.leaks)))
    return Proof(leaks=tuple(leaks), opened=tuple(sorted(opened, key=len)))


def _only_by_the_way(chain: Chain) -> bool:
    """Whether it begins or ends in a cage that is made for a request: what that has its caller had, and what it gets
    goes no further than the cage before it, to which the way is told of its own."""
    ends = chain[0].source.name, chain[-1].target.name
    return len(chain) > 1 and any(is_disposable(name) for name in ends)


def _may_be(node: Node, world: Mapping[str, Instance]) -> bool:
    """Whether there is no cage of the node's name that has another label."""
    return node.name not in world or world[node.name].label == node.label


# --- asking --------------------------------------------------------------------------------------------------------
def _witnessed(engine: Engine, host: Host, words: Words) -> Iterator[Step]:
    """What the smallest requests of every rule come to."""
    seen = set()
    for rule in engine.rules:
        # Of two rules that differ in their places alone only the first decides anything.
        alike = replace(rule, place="")
        if rule.action is Action.DENY or alike in seen:
            continue
        seen.add(alike)
        for case in witnesses(rule, words, of_each=True):
            for world in _worlds(rule, case, words):
                yield from _steps(engine, Cell(case=world, decision=decided(engine, world, host)), host, words)


def _worlds(rule: Rule, case: Case, words: Words) -> Iterator[Case]:
    """The case, and where it goes elsewhere than it asks, with cages of every level that it could go to."""
    yield case
    for redirected in {rule.parameters.target, rule.parameters.default_target}:
        for rank in words.ranks if redirected and not redirected.startswith("@") else ():
            yield case.beside(cage_like(redirected, words.label(rank, frozenset())))
    if rule.action is Action.ASK and case.request.target_name == DEFAULT:
        others = zip(words.nameless[2:], words.ranks, strict=True)
        yield case.beside(*(cage_like(name, words.label(rank, frozenset())) for name, rank in others))


def _between(engine: Engine, world: Mapping[str, Instance], host: Host, words: Words) -> Iterator[Step]:
    """What the cages that there are may do, one step of each kind from each to each."""
    services, seen = Services(engine.rules, words), set()
    for cell in cells(engine, world, host, services):
        if cell.decision.action is Action.DENY:
            continue
        for step in _steps(engine, cell, host, words):
            if (kind := (step.source, step.target, step.declassify)) not in seen:
                seen.add(kind)
                yield step


def _steps(engine: Engine, cell: Cell, host: Host, words: Words) -> Iterator[Step]:
    """What the request and its decision let data do."""
    case, source = cell.case, cell.case.request.source
    here = Node(name="" if source.name in words.nameless else source.name, label=source.label)
    for decision in answers(engine, case, host, cell.decision):
        if decision.action is Action.DENY:
            continue
        target = _node(decision, case, host, words)
        for begin, end, back in ((here, target, False), (target, here, True))[: 2 if decision.two_way else 1]:
            yield Step(source=begin, target=end, service=words.shown(case.request), action=decision.action,
                       rule=decision.rule, back=back,
                       declassify=decision.parameters.declassify and not end.dominates(begin))


def _node(decision: Decision, case: Case, host: Host, words: Words) -> Node:
    name = decision.target or case.request.target_name
    if name == CORE_TARGET:
        return Node(name=CORE_TARGET, label=None)
    target = host.find(case, name)
    if target is None:
        raise AssertionError(f"{decision.rule} allows what goes to {name!r}, which is no cage")
    return Node(name="" if name in words.nameless else name, label=target.label)


# --- chains --------------------------------------------------------------------------------------------------------
def _chains(found: Sequence[Step]) -> Iterator[Chain]:
    """The shortest chain from each node to each that does not dominate it."""
    leaving: dict[Node, dict[Node, Step]] = {}
    for step in found:
        leaving.setdefault(step.source, {}).setdefault(step.target, step)
    for start in leaving:
        yield from _from(start, leaving)


def _from(start: Node, leaving: Mapping[Node, Mapping[Node, Step]]) -> Iterator[Chain]:
    reached: dict[Node, Step | None] = {start: None}
    waiting = deque([start])
    while waiting:
        node = waiting.popleft()
        for target, step in leaving.get(node, {}).items():
            if target in reached:
                continue
            reached[target] = step
            waiting.append(target)
            if not target.dominates(start):
                yield _back(target, reached)


def _back(node: Node, reached: Mapping[Node, Step | None]) -> Chain:
    chain: list[Step] = []
    while step := reached[node]:
        chain.append(step)
        node = step.source
    return tuple(reversed(chain))


def _unlike(chains: Iterable[Chain]) -> Iterator[Chain]:
    """Of chains that leak by the same step of the same rule the shortest, of the simplest labels."""
    seen = set()
    for chain in sorted(chains, key=_size):
        leaking = next(step for step in chain if step.leaks)
        if (leaking.rule, leaking.back) not in seen:
            seen.add((leaking.rule, leaking.back))
            yield chain


def _size(chain: Chain) -> tuple[int, int]:
    labels = [node.label for step in chain for node in (step.source, step.target) if node.label]
    return len(chain), sum(len(label.compartments) for label in labels)
