# SPDX-License-Identifier: LGPL-2.1-or-later
"""The flow proof: whether data can get from any label to one that does not dominate it (law 8).

Nothing is assumed of the engine: it is asked, and what it allows is followed step by step.  It is asked about the
cages that there are, and, for those that there could be, about the smallest requests of every rule (witness.py), among
which there is one that leaks if any request leaks: one that a rule lets down, or sideways, or whose answer comes back
down, is let so with fewer compartments and tags too, for fewer rules stand before it.  A chain that leaks has a step that
does, because dominance is transitive; it is looked for all the same, and shown whole.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from cage_runtime.model import Action, Decision, Instance, Label, Levels
from cage_runtime.policy.witness import Case

CORE = "@core"


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
        label = "+".join([self.label.level, *sorted(self.label.compartments)])
        return f"{self.name} ({label})" if self.name else f"any cage of {label}"


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

    def __str__(self) -> str:
        how = [self.service]
        if self.back:
            how.append("which answers")
        if self.action is Action.ASK:
            how.append("if a person says so")
        if self.declassify:
            how.append("declassify")
        return f"{self.source} to {self.target}: {', '.join(how)} (rule {self.rule})"


Chain = tuple[Step, ...]


def steps(source: Instance, target: Node, service: str, decision: Decision) -> Iterator[Step]:
    """What `decision` lets data do between the two; nothing where it denies."""
    if decision.action is Action.DENY:
        return
    here = Node(name=source.name, label=source.label)
    ways = [(here, target, False), (target, here, True)] if decision.two_way else [(here, target, False)]
    for begin, end, back in ways:
        yield Step(source=begin, target=end, service=service, action=decision.action, rule=decision.rule, back=back,
                   declassify=decision.parameters.declassify and not end.dominates(begin))


def leaks(found: Iterable[Step]) -> list[Chain]:
    """The shortest chains without declassify from a node to one that does not dominate it; of those that end with the
    same step of the same rule one alone."""
    return list(_unlike(_chains([step for step in found if not step.declassify])))


def opened(found: Sequence[Step]) -> list[Chain]:
    """The shortest chains from a node to one that does not dominate it, where declassify lets them."""
    return [chain for chain in _chains(found) if any(step.declassify for step in chain)]


def _chains(found: Sequence[Step]) -> Iterator[Chain]:
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
