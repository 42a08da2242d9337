# SPDX-License-Identifier: LGPL-2.1-or-later
"""A Mediation with its Asking, between cages that are only said to be, with a clock that is set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import pytest

from cage_runtime.audit.event import Event, Kind
from cage_runtime.audit.event import Record as Recorded
from cage_runtime.config import Definition, Paths, Session
from cage_runtime.daemon import mediation
from cage_runtime.daemon.agents import Agents, Person
from cage_runtime.daemon.asking import AnswerOptions, Asking
from cage_runtime.daemon.asking_service import Shown
from cage_runtime.daemon.cage import Cage
from cage_runtime.daemon.connections import Connections
from cage_runtime.daemon.grants import Grants
from cage_runtime.daemon.manager import Manager
from cage_runtime.daemon.mediation import Asked, Mediation, Permission
from cage_runtime.daemon.prompts import Waiter
from cage_runtime.daemon.receipts import Receipts
from cage_runtime.daemon.sessions import Sessions
from cage_runtime.daemon.state import Record, now
from cage_runtime.daemon.tickets import Tickets
from cage_runtime.daemon.what import What
from cage_runtime.errors import NoSuchCage, PolicyRefused, RuntimeFailure
from cage_runtime.model import CageState, Levels, ServiceKind
from cage_runtime.policy.engine import Policy
from cage_runtime.policy.parser import parse
from cage_runtime.policy.rule import Rule

LEVELS = Levels(names=("public", "secret"), colours={"public": "#2e7d32", "secret": "#b71c1c"})
KINDS = {"files.Send": ServiceKind(one_way=True, parameters=frozenset({"max-size", "max-files", "types"})),
         "keys.Sign": ServiceKind(one_way=False, parameters=frozenset(), looks_first=True)}
REQUEST = "0123456789abcdef" * 2
OWNER = Person(uid=1000, is_root=False)
STRANGER = Person(uid=1001, is_root=False)
ROOT = Person(uid=0, is_root=True)


def cage(name: str, level: str, *, life: str = "", private: bool = False, owner: int = OWNER.uid) -> Cage:
    definition = Definition(level=level, session=Session(private=private))
    record = Record(name=name, uuid=f"uuid-{name}{life}", created=now(), owner=owner, definition=definition)
    return Cage(record=record, label=LEVELS.label(level), state=CageState.RUNNING)


def asked(target: str, source: str = "work", request: str = REQUEST, argument: str = "") -> Asked:
    return Asked(mediator="files", source=f"uuid-{source}", service="files.Send", argument=argument, target=target,
                 request=request)


def rules(text: str, **parameters: Any) -> Policy:
    """The policy of these lines, all with the parameters besides."""
    parsed = parse(text.encode(), file="test", levels=LEVELS, kinds=KINDS)
    return Policy(rules=tuple(_with(rule, **parameters) for rule in parsed), kinds=KINDS)


def _with(rule: Rule, **parameters: Any) -> Rule:
    return replace(rule, parameters=replace(rule.parameters, **parameters)) if parameters else rule


class World:
    """A manager with three cages of one person's, who is asked; `heard` is what his agents and mediators are told."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, policy: Policy) -> None:
        self.levels, self.tmp_path = LEVELS, tmp_path
        self.known = {name: cage(name, level) for name, level in (
            ("work", "public"), ("vault", "secret"), ("peer", "public"))}
        self.recorded: list[tuple[str, dict[str, str]]] = []
        self.full = False
        self.time = 1000.0
        self.due: list[tuple[float, Callable[[], None]]] = []
        self.heard: list[tuple[Any, ...]] = []
        self.gone: dict[str, Callable[[], None]] = {}
        monkeypatch.setattr(mediation, "load_or_refuse", lambda *_: policy)
        self.agents = Agents(cast(Any, self), cast(Connections, self))
        self.agents.register(":agent", OWNER)
        self.begin()

    def begin(self) -> None:
        """As a caged that has just been started, after what was kept under RUN."""
        clock = lambda: self.time  # noqa: E731
        self.asking = Asking(
            cast(Manager, self), self.agents, cast(Connections, self),
            Grants(self.tmp_path / "grants.json", "this-boot", clock=clock), tell=self._tell, show=Shown(LEVELS),
            clock=clock, later=self.later)
        self.mediation = Mediation(cast(Manager, self), cast(Sessions, self), Paths(), self.asking, kinds=KINDS,
                                   tickets=Tickets(self.tmp_path / "tickets.json", "this-boot", clock=clock),
                                   clock=clock, time_of_day=clock, later=self.later)
        self.mediation.receipts = Receipts(self.tmp_path, self.record)
        self.asking.begin()
        self.recorded.clear()

    # --- what they stand on ----------------------------------------------------------------------------------
    def record(self, kind: Kind, about: Cage | None, fields: dict[str, str]) -> Recorded:
        if self.full:
            raise RuntimeFailure("the chain takes nothing")
        told = ({"cage": about.name, "uuid": about.uuid} if about else {}) | fields
        self.recorded.append((str(kind), told))
        moment = datetime.fromtimestamp(self.time, UTC)
        return Recorded(sequence=len(self.recorded), previous="0" * 64, event=Event.at(moment, kind, told))

    def cages(self) -> list[Cage]:
        return list(self.known.values())

    def get(self, name: str) -> Cage | None:
        return self.known.get(name)

    def find(self, name: str) -> Cage:
        if name not in self.known:
            raise NoSuchCage("there is none")
        return self.known[name]

    def by_uuid(self, uuid: str) -> Cage | None:
        return next((cage for cage in self.known.values() if cage.uuid == uuid), None)

    def later(self, seconds: float, what: Callable[[], None]) -> None:
        self.due.append((self.time + seconds, what))

    def when_gone(self, sender: str, what: Callable[[], None]) -> None:
        self.gone[sender] = what

    def emit(self, _path: str, _interface: str, member: str, _signature: str, arguments: tuple[Any, ...], *,
             to: str = "") -> None:
        self.heard.append((to, member, *arguments))

    def _tell(self, waiter: Waiter) -> None:
        self.heard.append((waiter.sender, "Answered", waiter.request))

    def run_until(self, moment: float) -> None:
        self.time = moment
        due = [what for when, what in self.due if when <= moment]
        self.due = [(when, what) for when, what in self.due if when > moment]
        for what in due:
            what()

    # --- what is done with them ------------------------------------------------------------------------------
    def decide(self, target: str, source: str = "work", request: str = REQUEST) -> Permission:
        return self.mediation.decide(asked(target, source, request))

    def confirm(self, target: str, request: str = REQUEST, sender: str = ":files", source: str = "work",
                argument: str = "", **what: Any) -> Permission:
        return self.mediation.confirm(asked(target, source, request, argument), What(**what), sender)

    def refused(self, target: str, source: str = "work") -> str:
        with pytest.raises(PolicyRefused) as refusal:
            self.decide(target, source)
        return refusal.value.sentence

    def not_confirmed(self, target: str, **what: Any) -> str:
        with pytest.raises(PolicyRefused) as refusal:
            self.confirm(target, **what)
        return refusal.value.sentence

    @property
    def prompts(self) -> list[dict[str, Any]]:
        return [{key: variant.value for key, variant in self.asking.shown(prompt).items()}
                for prompt in self.asking.prompts(OWNER)]

    def answer(self, action: str, person: Person = OWNER, *, id_: str = "", **given: Any) -> None:
        """Of the one prompt that there is, or the one of that id."""
        id_ = id_ or self.prompts[0]["id"]
        options = AnswerOptions(target=given.get("target", ""), for_=given.get("seconds"),
                                session=given.get("session", False))
        self.asking.answer(id_, person, action, options)

    def put_in_force(self, policy: Policy) -> None:
        """As `reload`, but for the files."""
        self.mediation.policy = policy
        self.asking.policy_changed(self.mediation._asks)

    def set_state(self, name: str, state: CageState) -> None:
        self.known[name].state = state
        self.mediation.cage_changed(self.known[name], True)

    def destroy(self, name: str) -> None:
        gone = self.known.pop(name)
        self.mediation.cage_changed(gone, False)

    def create(self, name: str, level: str, **given: Any) -> None:
        self.known[name] = cage(name, level, **given)
        self.mediation.cage_changed(self.known[name], True)

    def kinds(self) -> list[str]:
        return [kind for kind, _ in self.recorded]
