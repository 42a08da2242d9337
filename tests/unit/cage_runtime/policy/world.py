# SPDX-License-Identifier: LGPL-2.1-or-later
"""Cages of two persons, with labels and tags, and policies about them, for the tests of the engine."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from cage_runtime.model import Decision, Instance, Label, Levels, Request, ServiceKind
from cage_runtime.policy.engine import Policy
from cage_runtime.policy.parser import parse

LEVELS = Levels(names=("public", "internal", "secret"), compartments=frozenset({"finance", "medical"}))
ALICE, BOB = 1000, 1001
NOON = datetime(2026, 11, 26, 12, tzinfo=UTC).timestamp()
KINDS = {
    "files.Send": ServiceKind(one_way=True, parameters=frozenset(
        {"max-size", "max-files", "types", "transform", "require"})),
    "clipboard.Paste": ServiceKind(one_way=True, parameters=frozenset({"max-size", "types"})),
    "open.Uri": ServiceKind(one_way=True, parameters=frozenset()),
    "notify.Show": ServiceKind(one_way=True, parameters=frozenset()),
    "call.*": ServiceKind(one_way=False, parameters=frozenset({"user", "direction", "max-size"})),
    "keys.Sign": ServiceKind(one_way=False, parameters=frozenset()),
}


def cage(name: str, level: str, *compartments: str, owner: int = ALICE, tags: Iterable[str] = ()) -> Instance:
    return Instance(name=name, uuid=f"uuid-of-{name}", label=LEVELS.label(level, compartments), owner=owner,
                    tags=frozenset(tags))


CAGES = {
    found.name: found
    for found in (
        cage("web", "public", tags=["net"]),
        cage("work", "internal", tags=["office"]),
        cage("mail", "internal", tags=["office", "net"]),
        cage("vault", "secret"),
        cage("books", "internal", "finance"),
        cage("clinic", "internal", "medical"),
        cage("archive", "secret", "finance", "medical"),
        cage("theirs", "internal", owner=BOB, tags=["office"]),
    )
}


@dataclass(kw_only=True)
class World:
    """What a policy is asked in, and how often it looked something up."""

    policy: Policy
    templates: dict[str, Callable[[Label], Label]] = field(default_factory=lambda: {
        "disposable": lambda label: label, "developer": lambda _: LEVELS.label("public")})
    """By name, the label of a disposable cage from the one of its caller."""
    now: float = NOON
    looked_up: list[str] = field(default_factory=list)

    def decide(self, source: str, target: str, service: str = "files.Send", argument: str = "",
               chosen: str | None = None) -> Decision:
        asked = CAGES[source]
        request = Request(service=service, argument=argument, source=asked, target_name=target)

        def find(name: str) -> Instance | None:
            self.looked_up.append(name)
            token, _, template = name.partition(":")
            if token == "@disposable" and template in self.templates:
                return Instance(name=name, uuid="", label=self.templates[template](asked.label), owner=asked.owner)
            return CAGES.get(name)

        return self.policy.decide(request, find, LEVELS, self.now, chosen=chosen, cages=CAGES.values)


def world(*lines: str) -> World:
    rules = parse("\n".join(lines).encode(), file="p", levels=LEVELS, kinds=KINDS)
    return World(policy=Policy(rules=rules, kinds=KINDS))
