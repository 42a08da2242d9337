# SPDX-License-Identifier: LGPL-2.1-or-later
"""What caged does for mediator core halves: decide by policy for an instance, deliver into one, record.

A core half says which instance's gateway a request came through, and is believed in that because it is known by its
uid; the cage itself is believed in nothing.
"""

from __future__ import annotations

from cage_runtime.audit.event import Kind
from cage_runtime.config import Paths
from cage_runtime.daemon.cage import Cage
from cage_runtime.daemon.manager import Manager
from cage_runtime.daemon.sessions import Sessions, Started
from cage_runtime.errors import CageError, NoSuchCage, PolicyRefused, PolicySyntaxError, WrongState
from cage_runtime.model import Action, CageState, Decision, Instance, Request
from cage_runtime.policy.engine import Policy, refusal_sentence
from cage_runtime.policy.loader import load_or_refuse, load_policy


class Mediation:
    def __init__(self, manager: Manager, sessions: Sessions, paths: Paths) -> None:
        self._manager, self._sessions, self._paths = manager, sessions, paths
        self.policy: Policy = load_or_refuse(paths, manager.levels)
        self._say(self.policy)

    def _say(self, policy: Policy) -> None:
        if policy.fault is None:
            self._manager.record(Kind.POLICY_LOADED, None, {"rules": str(len(policy.rules))})
        else:
            self._manager.record(Kind.POLICY_REFUSED, None, {"why": policy.fault})

    def reload(self) -> None:
        """Put the policy on disk in force; a bad one is refused whole, and the one in force stays."""
        try:
            policy = load_policy(self._paths, self._manager.levels)
        except PolicySyntaxError as error:
            self._manager.record(Kind.POLICY_REFUSED, None, {"why": error.sentence})
            raise
        self._say(policy)
        self.policy = policy

    def check(self) -> list[str]:
        """What is wrong with the policy on disk, a sentence a fault."""
        try:
            load_policy(self._paths, self._manager.levels)
        except PolicySyntaxError as error:
            return [error.sentence]
        return []

    def _target(self, name: str) -> Instance | None:
        try:
            return self._manager.find(name).instance()
        except CageError:
            return None

    def explain(self, source: str, service: str, argument: str, target: str) -> Decision:
        """What would be decided, for the administrator."""
        instance = self._manager.find(source).instance()
        self._manager.find(target)
        request = Request(service=service, argument=argument, source=instance, target_name=target)
        return self.policy.decide(request, self._target(target), self._manager.levels)

    def decide(
        self, source_uuid: str, service: str, argument: str, target: str
    ) -> tuple[Cage, Cage, int]:
        """(source, target, most bytes or 0) where policy allows it; otherwise PolicyRefused, fit for the source cage.

        What the cage hears is the same for a target that is forbidden and for one that does not exist; the chain
        gets the truth.
        """
        source = self._running(source_uuid)
        request = Request(service=service, argument=argument, source=source.instance(), target_name=target)
        decision = self.policy.decide(request, self._target(target), self._manager.levels)
        flow = {"flow": decision.flow.value} if decision.flow else {}
        self._manager.record(Kind.DECISION, source, {
            "service": service, "argument": argument, "target": target, "decision": decision.action.value,
            "rule": decision.rule, "reason": decision.reason, **flow,
        })
        if decision.action is not Action.ALLOW:
            raise PolicyRefused(refusal_sentence(request, self.policy.public_refusal(request)))
        return source, self._manager.find(target), decision.max_size or 0

    def _running(self, uuid: str) -> Cage:
        cage = self._manager.by_uuid(uuid)
        if cage is None or cage.state is not CageState.RUNNING:
            raise NoSuchCage("the cage that asks does not run any more")
        return cage

    async def deliver(self, target_uuid: str, mediator: str, arguments: list[str], descriptor: int) -> Started:
        """Start the mediator's delivery half in the instance; WrongState where it does not run."""
        cage = self._manager.by_uuid(target_uuid)
        if cage is None or cage.state is not CageState.RUNNING:
            raise WrongState("the target does not run; start it, and send again")
        return await self._sessions.deliver(cage, mediator, arguments, descriptor)

    def note(self, source_uuid: str, target_uuid: str, service: str, details: dict[str, str]) -> None:
        """Record what came of a permitted request."""
        source, target = self._manager.by_uuid(source_uuid), self._manager.by_uuid(target_uuid)
        about = {"target": target.name if target else target_uuid, "service": service}
        self._manager.record(Kind.TRANSFER, source, {**details, **about})
