# SPDX-License-Identifier: LGPL-2.1-or-later
"""What caged does for mediator core halves: decide by policy for an instance, deliver into one, record.

A core half says which instance's gateway a request came through, and is believed in that because it is known by its
uid; the cage itself is believed in nothing.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from cage_runtime.audit.event import Kind
from cage_runtime.config import Paths
from cage_runtime.daemon.cage import Cage
from cage_runtime.daemon.disposables import Disposables
from cage_runtime.daemon.manager import Manager
from cage_runtime.daemon.rate import DECISIONS, Bucket
from cage_runtime.daemon.sessions import Sessions, Started
from cage_runtime.daemon.what import What
from cage_runtime.errors import (
    CageError,
    DefinitionError,
    NoSuchCage,
    PolicyRefused,
    PolicySyntaxError,
    RuntimeFailure,
    UsageError,
    WrongState,
)
from cage_runtime.model import CAGES_MAX, REQUEST_ID_DIGITS, Action, CageState, Decision, Instance, Request
from cage_runtime.policy.engine import Policy, refusal_sentence
from cage_runtime.policy.loader import faults, load_or_refuse, load_policy
from cage_runtime.text import escape

LOG = logging.getLogger(__name__)
_REQUEST_ID = re.compile(rf"[0-9a-f]{{{REQUEST_ID_DIGITS}}}\Z")


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """A request, as the core half of `mediator` asks about it: from where, what for, and to where."""

    mediator: str
    source: str
    """The uuid of the instance whose gateway it came through."""
    service: str
    argument: str
    target: str
    """The name that was asked for, empty where none was."""
    request: str
    """Its id."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Permission:
    """What was decided: from where to where, and with which bounds."""

    source: Cage
    target: Cage | None
    """None where a person is to choose it, and where it is no cage that there is."""
    decision: Decision


def _check_bounds(decision: Decision, what: What) -> None:
    """PolicyRefused where it turned out to be more than the rule lets through."""
    if decision.max_size is not None and what.size > decision.max_size:
        raise PolicyRefused(f"{what.size} bytes are more than the {decision.max_size} that the policy lets through at "
                            "once")


_AT_FIRST: Mapping[str, str] = {}


def _later(seconds: float, what: Callable[[], None]) -> None:
    asyncio.get_running_loop().call_later(seconds, what)


def _check_request(untrusted_id: str) -> None:
    if not _REQUEST_ID.match(untrusted_id):
        raise UsageError(f"the id of a request is {REQUEST_ID_DIGITS} hexadecimal digits")


class Mediation:
    def __init__(self, manager: Manager, sessions: Sessions, paths: Paths, *,
                 clock: Callable[[], float] = time.monotonic,
                 later: Callable[[float, Callable[[], None]], None] = _later) -> None:
        self._manager, self._sessions, self._paths = manager, sessions, paths
        self._disposables = Disposables(manager, paths)
        self._clock, self._later = clock, later
        self._buckets: dict[str, Bucket] = {}
        self.policy: Policy = load_or_refuse(paths, manager.levels)
        self._say(self.policy)

    def _say(self, policy: Policy) -> None:
        if policy.fault is None:
            self._manager.record(Kind.POLICY_LOADED, None, {"rules": str(len(policy.rules))})
        else:
            self._manager.record(Kind.POLICY_REFUSED, None, {"why": policy.fault})

    def reload(self) -> None:
        """Put the policy on disk in force; DefinitionError where it is bad, and then the one in force stays."""
        try:
            policy = load_policy(self._paths, self._manager.levels)
        except PolicySyntaxError as error:
            self._manager.record(Kind.POLICY_REFUSED, None, {"why": error.sentence})
            # Towards a cage a policy that cannot be read is a refusal; to whoever wrote it, it is a fault of a file.
            raise DefinitionError(f"{error.sentence}; the policy in force stays, and cagectl policy check tells all "
                                  "that is wrong") from error
        self._say(policy)
        self.policy = policy

    def check(self) -> list[str]:
        """What is wrong with the policy on disk, a sentence a fault; then with the one in force, if that is another."""
        found = faults(self._paths, self._manager.levels)
        in_force = self.policy.fault
        if in_force is not None and in_force not in found:
            found.append(f"the policy in force denies everything, until cagectl policy reload: {in_force}")
        return found

    def _target(self, name: str) -> Instance | None:
        try:
            return self._manager.find(name).instance()
        except CageError:
            return None

    def decide(self, asked: Asked) -> Permission:
        """The permission at first sight, where policy gives one; otherwise PolicyRefused, fit for the source cage.

        What the cage hears is the same for a target that is forbidden and for one that does not exist; the chain
        gets the truth.
        """
        source = self._source(asked)
        if not self._take(self._bucket(source.uuid), source.name, source.uuid):
            raise PolicyRefused("this cage asks too often; try again in a moment")
        return self._decided(asked, source)

    async def confirm(self, asked: Asked, what: What) -> Permission:
        """The permission right before it is used, for `what` it turned out to be and for the instance that it is of."""
        source = self._source(asked)
        permission = self._decided(asked, source, {"when": "at delivery"})
        if permission.target is not None and what.target_uuid not in ("", permission.target.uuid):
            raise PolicyRefused(f'"{escape(asked.target, limit=40)}" is not the cage that it was when this was asked '
                                "for; ask for it again")
        _check_bounds(permission.decision, what)
        if what.files:
            self._bucket(source.uuid).give_back()  # many files are no flood: each of them was copied
        return permission

    def _source(self, asked: Asked) -> Cage:
        _check_request(asked.request)
        return self._running(asked.source)

    def _decided(self, asked: Asked, source: Cage, when: Mapping[str, str] = _AT_FIRST) -> Permission:
        request = Request(service=asked.service, argument=asked.argument, source=source.instance(),
                          target_name=asked.target)
        decision = self.policy.decide(request, self._target(asked.target), self._manager.levels)
        flow = {"flow": decision.flow.value} if decision.flow else {}
        self._manager.record(Kind.DECISION, source, {
            "mediator": asked.mediator, "service": asked.service, "argument": asked.argument, "target": asked.target,
            "decision": decision.action.value, "rule": decision.rule, "reason": decision.reason, **flow, **when,
            "request": asked.request,
        })
        if decision.action is not Action.ALLOW or decision.flow is None:
            raise PolicyRefused(refusal_sentence(request, self.policy.public_refusal(request)))
        return Permission(source=source, target=self._manager.find(asked.target), decision=decision)

    # --- how often ---------------------------------------------------------------------------------------------
    def _bucket(self, uuid: str) -> Bucket:
        if uuid not in self._buckets:
            if len(self._buckets) >= CAGES_MAX:
                there = {cage.uuid for cage in self._manager.cages()}
                self._buckets = {known: bucket for known, bucket in self._buckets.items() if known in there}
            self._buckets[uuid] = Bucket(DECISIONS, self._clock())
        return self._buckets[uuid]

    def _take(self, bucket: Bucket, name: str, uuid: str) -> bool:
        """Whether the instance may ask; those of its requests that may not are recorded together, later."""
        may = bucket.take(self._clock())
        if not may and bucket.refused == 1:
            self._later(DECISIONS.full_seconds, lambda: self._record_refused(bucket, name, uuid))
        return may

    def _record_refused(self, bucket: Bucket, name: str, uuid: str) -> None:
        reason = f"{bucket.refused} more requests were refused because the cage asks too often"
        try:
            self._manager.record(Kind.DECISION, None, {"cage": name, "uuid": uuid, "decision": Action.DENY.value,
                                                       "reason": reason})
        except RuntimeFailure as error:
            LOG.error("not recorded yet: %s of %s: %s", reason, name, error.sentence)
            self._later(DECISIONS.full_seconds, lambda: self._record_refused(bucket, name, uuid))
            return
        bucket.refused = 0

    def _running(self, uuid: str) -> Cage:
        cage = self._manager.by_uuid(uuid)
        if cage is None or cage.state is not CageState.RUNNING:
            raise NoSuchCage("the cage that asks does not run any more")
        return cage

    async def deliver(self, mediator: str, target_uuid: str, arguments: list[str], descriptors: Sequence[int],
                      request_id: str) -> Started:
        """Start the mediator's delivery half in the instance; WrongState where it does not run."""
        _check_request(request_id)
        cage = self._manager.by_uuid(target_uuid)
        if cage is None or cage.state is not CageState.RUNNING:
            raise WrongState("the target does not run; start it, and send again")
        return await self._sessions.deliver(cage, mediator, arguments, descriptors)

    async def dispose(self, mediator: str, source_uuid: str, untrusted_template: str, request_id: str) -> Cage:
        """A new disposable cage for a permitted request of the instance; RuntimeFailure where there can be none."""
        _check_request(request_id)
        source = self._running(source_uuid)
        LOG.info("%s asks for a disposable cage of %s for the request %s", mediator, source.name, request_id)
        return await self._disposables.make(source, untrusted_template)

    def note(self, mediator: str, source_uuid: str, source_name: str, target_uuid: str, service: str,
             details: dict[str, str]) -> None:
        """Record what came of a permitted request, also where there is no such source or target any more."""
        target = self._manager.by_uuid(target_uuid)
        about = {"mediator": mediator, "target": target.name if target else target_uuid, "service": service}
        self._record_of(Kind.TRANSFER, source_uuid, source_name, about | details | about)

    def malformed(self, mediator: str, source_uuid: str, source_name: str, service: str, fault: str) -> None:
        """Record a call that no honest cage half makes."""
        if self._take(self._bucket(source_uuid), source_name, source_uuid):
            about = {"mediator": mediator, "service": service, "fault": fault}
            self._record_of(Kind.MALFORMED, source_uuid, source_name, about)

    def _record_of(self, kind: Kind, uuid: str, name: str, fields: dict[str, str]) -> None:
        """Record something of the instance, which has the `name` that its mediator's core half knows if it is gone."""
        cage = self._manager.by_uuid(uuid)
        about = {"cage": cage.name if cage else name, "uuid": uuid}
        self._manager.record(kind, cage, about | fields | about)
