# SPDX-License-Identifier: LGPL-2.1-or-later
"""What may flow between cages, gathered for a picture: one line for all services that are allowed in the same way."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from cage_runtime.model import Action, Flow, Instance
from cage_runtime.policy.cells import Engine, Host, Services, cells
from cage_runtime.policy.witness import DEFAULT


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """From `source` to `target`, a cage or the core."""

    source: str
    target: str
    action: Action
    two_way: bool
    declassify: bool
    """Whether it goes where only declassify lets it."""
    services: tuple[str, ...]
    rules: tuple[str, ...]


_Kind = tuple[str, str, Action, bool, bool]


def picture(engine: Engine, world: Mapping[str, Instance], host: Host) -> Iterable[Line]:
    """The lines between the cages of `world` and to the core, of services that the host has."""
    words = host.words(engine.rules)
    gathered: dict[_Kind, tuple[dict[str, None], dict[str, None]]] = {}
    for cell in cells(engine, world, host, Services(engine.rules, words)):
        request, decision = cell.case.request, cell.decision
        if decision.action is Action.DENY or request.target_name == DEFAULT or not host.has(request.service):
            continue
        if decision.target != request.target_name:
            continue  # what is redirected is drawn where it goes, where asking for that is allowed
        free = (Flow.LEVEL,) if decision.two_way else (Flow.LEVEL, Flow.UP)
        kind = (request.source.name, decision.target, decision.action, decision.two_way, decision.flow not in free)
        services, rules = gathered.setdefault(kind, ({}, {}))
        services[words.shown(request)] = None
        rules[decision.rule] = None
    for (source, target, action, two_way, declassify), (services, rules) in gathered.items():
        yield Line(source=source, target=target, action=action, two_way=two_way, declassify=declassify,
                   services=_unlike(services), rules=tuple(rules))


def _unlike(services: Iterable[str]) -> tuple[str, ...]:
    """The services, those with an argument where any other argument does not do the same."""
    found = set(services)
    return tuple(sorted(name for name in found if "+" not in name or name.partition("+")[0] not in found))
