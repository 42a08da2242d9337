# SPDX-License-Identifier: LGPL-2.1-or-later
"""What caged does for mediator core halves: decide by policy for an instance, deliver into one, record.

A core half says which instance's gateway a request came through, and is believed in that because it is known by its
uid; the cage itself is believed in nothing.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cage_runtime.audit.event import Kind
from cage_runtime.audit.event import Record as Recorded
from cage_runtime.bucket import Bucket
from cage_runtime.config import Paths
from cage_runtime.daemon.asking import Asking, subject_of
from cage_runtime.daemon.cage import Cage
from cage_runtime.daemon.disposables import Disposables, template_of
from cage_runtime.daemon.grants import Subject
from cage_runtime.daemon.manager import Manager
from cage_runtime.daemon.prompts import End, Question, Waiter
from cage_runtime.daemon.rate import DECISIONS, Limits, later
from cage_runtime.daemon.receipts import Expected, Receipts
from cage_runtime.daemon.sessions import Sessions, Started
from cage_runtime.daemon.tickets import Flag, Ticket, Tickets
from cage_runtime.daemon.what import What
from cage_runtime.errors import (
    CageError,
    DefinitionError,
    NoSuchCage,
    NotAuthorized,
    PolicyRefused,
    PolicySyntaxError,
    RuntimeFailure,
    TooOften,
    UsageError,
    WrongState,
)
from cage_runtime.model import (
    CAGES_MAX,
    CORE_TARGET,
    DISPOSABLE_TARGET,
    REQUEST_ID_DIGITS,
    Action,
    CageState,
    Decision,
    Flow,
    Instance,
    Request,
    ServiceKind,
)
from cage_runtime.policy.engine import Policy, refusal_sentence
from cage_runtime.policy.loader import faults, load_or_refuse, load_policy
from cage_runtime.policy.parser import kind_of
from cage_runtime.policy.services import MayAsk, may_ask
from cage_runtime.text import escape

LOG = logging.getLogger(__name__)
ASKS_TOO_OFTEN = "this cage asks too often; try again in a moment"
TOO_OFTEN = "the rule's limit= lets it be used no more just now; try again later"
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
    asker: str = ""
    """The uuid of the instance whose gateway it came through, where that is another: it spends its own tokens."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Permission:
    """What was decided: from where to where, and with which bounds."""

    source: Cage
    target: Cage | None
    """None where a person is to choose it, and where it is no cage that there is."""
    decision: Decision
    ticket: str = ""
    """What a core half shows that acts on it."""


def _check_request(untrusted_id: str) -> None:
    if not _REQUEST_ID.match(untrusted_id):
        raise UsageError(f"the id of a request is {REQUEST_ID_DIGITS} hexadecimal digits")


class Mediation:
    def __init__(self, manager: Manager, sessions: Sessions, paths: Paths, asking: Asking, *,
                 tickets: Tickets, kinds: Mapping[str, ServiceKind], clock: Callable[[], float] = time.monotonic,
                 time_of_day: Callable[[], float] = time.time,
                 later: Callable[[float, Callable[[], None]], None] = later) -> None:
        self._manager, self._sessions, self._paths, self._asking = manager, sessions, paths, asking
        self._disposables = Disposables(manager, paths)
        self.receipts = Receipts(Path(paths.state, "audit"), manager.record)
        self._clock, self._later, self._time, self._kinds = clock, later, time_of_day, kinds
        self._tickets = tickets
        self._buckets: dict[str, Bucket] = {}
        self._limits = Limits()
        self._told: dict[Instance, MayAsk] = {}
        """What cages may ask for by the policy in force, so that asking again costs nothing."""
        self.policy: Policy = load_or_refuse(paths, manager.levels, kinds)
        self._say(self.policy)

    def _say(self, policy: Policy) -> None:
        if policy.fault is None:
            self._manager.record(Kind.POLICY_LOADED, None, {"rules": str(len(policy.rules))})
        else:
            self._manager.record(Kind.POLICY_REFUSED, None, {"why": policy.fault})

    def reload(self) -> None:
        """Put the policy on disk in force; DefinitionError where it is bad, and then the one in force stays."""
        try:
            policy = load_policy(self._paths, self._manager.levels, self._kinds)
        except PolicySyntaxError as error:
            self._manager.record(Kind.POLICY_REFUSED, None, {"why": error.sentence})
            # Towards a cage a policy that cannot be read is a refusal; to whoever wrote it, it is a fault of a file.
            raise DefinitionError(f"{error.sentence}; the policy in force stays, and cagectl policy check tells all "
                                  "that is wrong") from error
        self._say(policy)
        self.policy = policy
        self._told.clear()
        self._asking.policy_changed(self._asks)

    def _asks(self, subject: Subject) -> str:
        """The text of the rule by which a person is asked about that, empty where nobody is."""
        cage = self._manager.by_uuid(subject.source)
        if cage is None or cage.label is None:
            return ""
        decision = self._evaluate(Request(service=subject.service, argument=subject.argument, source=cage.instance(),
                                          target_name=subject.asked))
        return decision.rule_text if decision.action is Action.ASK else ""

    def cage_changed(self, cage: Cage, present: bool) -> None:
        self._asking.cage_changed(cage, present)
        if not present:
            self._limits.forget(cage.uuid)
            self.receipts.forget(cage.uuid)

    def check(self) -> list[str]:
        """What is wrong with the policy on disk, a sentence a fault; then with the one in force, if that is another."""
        found = faults(self._paths, self._manager.levels, self._kinds)
        in_force = self.policy.fault
        if in_force is not None and in_force not in found:
            found.append(f"the policy in force denies everything, until cagectl policy reload: {in_force}")
        return found

    def decide(self, asked: Asked) -> Permission:
        """The permission at first sight, where policy gives one; otherwise PolicyRefused, fit for the source cage.

        What the cage hears is the same for a target that is forbidden and for one that does not exist; the chain
        gets the truth.
        """
        source = self._source(asked)
        asker = self.running(asked.asker) if asked.asker else source
        if not self._take(self._bucket(asker.uuid), asker.name, asker.uuid):
            raise TooOften(ASKS_TOO_OFTEN)
        request = _request(asked, source)
        permission = self._permission(source, self._evaluate(request))
        decision, why = permission.decision, ""
        if decision.action is Action.ASK:
            said = self._asking.refused(subject_of(self._question(asked, permission, What())))
            why = said.why if said else ""
        if decision.action is not Action.DENY and not why and not self._within(source, asked.service, decision):
            why = TOO_OFTEN
        self._judge(asked, request, permission, why)
        return self._with_ticket(asked, permission)

    def confirm(self, asked: Asked, what: What, sender: str = "") -> Permission:
        """The permission right before it is used, for `what` it turned out to be and for the instance that it is of.

        Where a person is to be asked its decision is to ask, until there is an answer: the connection `sender` is told
        when it is time to call again.
        """
        waiter = Waiter(sender=sender, request=asked.request)
        try:
            permission = self._confirmed(asked, what, waiter)
        except CageError:
            self._asking.withdraw(waiter)
            raise
        if permission.decision.action is Action.ASK:
            return self._with_ticket(asked, permission)
        self._asking.withdraw(waiter)
        if what.receipt:
            self.receipts.expect(asked.source, asked.request, _expected(asked, permission.decision))
        if what.files:
            self._bucket(permission.source.uuid).give_back()  # many files are no flood: each of them was copied
        return self._with_ticket(asked, permission, confirmed=True)

    def _with_ticket(self, asked: Asked, permission: Permission, *, confirmed: bool = False) -> Permission:
        """It, with what its core half is to show that acts on it.  What a person is still to be asked about is not
        `confirmed`, whoever says so."""
        decision, target = permission.decision, permission.target
        flags = {Flag.CONFIRMED: confirmed and decision.action is Action.ALLOW,
                 Flag.AUTOSTART: decision.parameters.autostart}
        return replace(permission, ticket=self._tickets.issue(Ticket(
            mediator=asked.mediator, service=asked.service, source=permission.source.uuid,
            target=target.uuid if target else decision.target, request=asked.request,
            flags=frozenset(flag for flag, is_set in flags.items() if is_set))))

    def services(self, source_uuid: str) -> list[tuple[str, str]]:
        """What the instance may ask for at all, as service and action; PolicyRefused where it asks too often."""
        source = self.running(source_uuid)
        if not self._take(self._bucket(source.uuid), source.name, source.uuid):
            raise TooOften(ASKS_TOO_OFTEN)
        instance, now = source.instance(), self._time()
        known = self._told.get(instance)
        if known is None or now >= known.until:
            if len(self._told) >= CAGES_MAX:
                self._told.clear()
            known = self._told[instance] = may_ask(self.policy, instance, self._manager.levels, now)
        return [(service, action.value) for service, action in known.services.items()]

    def withdraw(self, sender: str, request_id: str) -> None:
        """Whoever made the request is gone."""
        self._asking.withdraw(Waiter(sender=sender, request=request_id))

    def _confirmed(self, asked: Asked, what: What, waiter: Waiter) -> Permission:
        source = self._source(asked)
        request, said = _request(asked, source), None
        permission = self._permission(source, self._evaluate(request))
        _check_same(asked, permission, what.target_uuid, what.target)
        if permission.decision.action is Action.ASK:
            _check_bounds(permission.decision, what)  # nobody is bothered about what is refused anyway
            said = self._asking.outcome(self._question(asked, permission, what), waiter)
            if said is None:
                return permission
        why, by = (said.why, said.by) if said else ("", "")
        if said is not None and said.target is not None:
            asking, permission = permission, self._permission(source, self._evaluate(request, chosen=said.target.name))
            _check_same(asked, permission, said.target.uuid, what.target)
            if not self._within_chosen(source, asked.service, asking.decision, permission.decision):
                why = TOO_OFTEN
        self._judge(asked, request, permission, why, when="at delivery", by=by)
        _check_bounds(permission.decision, what)
        return permission

    def _source(self, asked: Asked) -> Cage:
        _check_request(asked.request)
        return self.running(asked.source)

    def _evaluate(self, request: Request, *, chosen: str | None = None) -> Decision:
        """What policy says now; where a person is asked, of the target that was `chosen`."""
        def find(name: str) -> Instance | None:
            return self._find(request.source.uuid, name)

        def cages() -> Iterable[Instance]:
            return filter(None, map(_instance, self._manager.cages()))

        return self.policy.decide(request, find, self._manager.levels, self._time(), chosen=chosen, cages=cages)

    def _find(self, source_uuid: str, name: str) -> Instance | None:
        """The cage of that name, or the disposable one that would be made for the source."""
        if not name.startswith(DISPOSABLE_TARGET):
            return _instance(self._manager.get(name))
        source = self._manager.by_uuid(source_uuid)
        return self._disposables.instance(source, name) if source is not None else None

    def _permission(self, source: Cage, decision: Decision) -> Permission:
        return Permission(source=source, target=self._manager.get(decision.target), decision=decision)

    def _within(self, source: Cage, service: str, decision: Decision) -> bool:
        """Whether the rule's limit= lets the source use the service once more."""
        limit = decision.parameters.limit
        return limit is None or self._limits.take(source.uuid, service, limit, self._clock())

    def _within_chosen(self, source: Cage, service: str, asking: Decision, chosen: Decision) -> bool:
        """As `_within`, for the rule about the pair that a person chose, where its limit= is another than that of the
        rule that asked, of which `decide` has taken."""
        same = chosen.parameters.limit == asking.parameters.limit
        return same or chosen.action is Action.DENY or self._within(source, service, chosen)

    def _judge(self, asked: Asked, request: Request, permission: Permission, why: str = "", *, when: str = "",
               by: str = "") -> None:
        """Record what was decided; PolicyRefused where that is no, by policy or for the reason `why`."""
        decision = permission.decision
        refused = bool(why) or decision.action is Action.DENY
        fields = {
            "mediator": asked.mediator, "service": asked.service, "argument": asked.argument, "target": asked.target,
            "decision": Action.DENY.value if refused else decision.action.value, "rule": decision.rule,
            "reason": why or decision.reason, "flow": decision.flow.value if decision.flow else "", "when": when,
            "answer": by, "to": decision.target if decision.target != asked.target else "", "request": asked.request,
        }
        optional = ("flow", "when", "answer", "to")
        self._manager.record(Kind.DECISION, permission.source,
                             {key: value for key, value in fields.items() if value or key not in optional})
        if decision.parameters.notify and (refused or when):
            self._asking.notify(permission.source, {
                "kind": "decision", "action": fields["decision"], "service": asked.service, "argument": asked.argument,
                "target": decision.target or asked.target, "rule": decision.rule})
        if why:
            kind = TooOften if why == TOO_OFTEN else PolicyRefused
            raise kind(refusal_sentence(request, replace(decision, reason=why, rule="")))
        if refused:
            raise PolicyRefused(refusal_sentence(request, self.policy.public_refusal(request, self._time())))

    def _question(self, asked: Asked, permission: Permission, what: What) -> Question:
        source, target, decision = permission.source, permission.target, permission.decision
        choices = decision.choices or (decision.target,)
        if what.target:
            choices = tuple(name for name in choices if name == what.target)
        return Question(
            source=_end(source.instance()), owner=source.record.owner, private=source.private, mediator=asked.mediator,
            service=asked.service, argument=asked.argument, asked=asked.target, target=target.uuid if target else "",
            choices=tuple(self._choice(source.uuid, name) for name in choices),
            default=decision.default_target if decision.default_target in choices else "",
            flow=decision.flow, rule=decision.rule, rule_text=decision.rule_text,
            stands=int(decision.parameters.stands or 0), digest=what.digest(), what=what,
            transform=decision.parameters.transform)

    def _choice(self, source_uuid: str, name: str) -> End:
        found = self._find(source_uuid, name)
        return End(name=name) if found is None else _end(found)

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

    def running(self, uuid: str) -> Cage:
        """The cage, where that instance of it runs; WrongState where it does not, NoSuchCage where it is gone."""
        cage = self._manager.by_uuid(uuid)
        if cage is None:
            raise NoSuchCage("the cage that asks is gone")
        if cage.state is not CageState.RUNNING:
            raise WrongState("the cage that asks does not run any more")
        return cage

    # --- what is done by a ticket --------------------------------------------------------------------------------
    async def deliver(self, mediator: str, untrusted_ticket: str, arguments: list[str],
                      descriptors: Sequence[int]) -> Started:
        """Start the mediator's delivery half in the instance that the ticket is for; WrongState where that does not
        run, unless the rule that permitted the request has it started."""
        ticket = self._tickets.read(untrusted_ticket, mediator)
        kind = kind_of(ticket.service, self._kinds)
        if kind is None or not kind.looks_first:
            _check_confirmed(ticket)
        cage = self._manager.by_uuid(ticket.target)
        if cage is not None and cage.state is not CageState.RUNNING and Flag.AUTOSTART in ticket.flags:
            await self._manager.start(cage)
        if cage is None or cage.state is not CageState.RUNNING:
            raise WrongState("the target does not run; start it, and send again")
        return await self._sessions.deliver(cage, mediator, arguments, descriptors)

    async def dispose(self, mediator: str, untrusted_ticket: str) -> tuple[Cage, str]:
        """A new disposable cage for the request that the ticket is of, and a ticket for that cage; RuntimeFailure where
        there can be none."""
        ticket = self._tickets.read(untrusted_ticket, mediator)
        _check_confirmed(ticket)
        template = template_of(ticket.target)
        if template is None:
            raise NotAuthorized("what was permitted is to no disposable cage")
        source = self.running(ticket.source)
        LOG.info("%s asks for a disposable cage of %s for the request %s", mediator, source.name, ticket.request)
        cage = await self._disposables.make(source, template)
        return cage, self._tickets.issue(replace(ticket, target=cage.uuid, flags=frozenset({Flag.CONFIRMED})))

    def shown(self, mediator: str, untrusted_ticket: str) -> Cage:
        """The running cage of which something may be shown by the ticket, which is to the core."""
        ticket = self._tickets.read(untrusted_ticket, mediator)
        _check_confirmed(ticket)
        if ticket.target != CORE_TARGET:
            raise NotAuthorized("what was permitted is not to the core")
        return self.running(ticket.source)

    def person(self, source_uuid: str) -> int:
        """The uid of whose cage the instance is; NoSuchCage where it does not run."""
        return self.running(source_uuid).record.owner

    def note(self, mediator: str, source_uuid: str, source_name: str, target_uuid: str, service: str,
             details: dict[str, str]) -> Recorded:
        """Record what came of a permitted request, also where there is no such source or target any more."""
        target = self._manager.by_uuid(target_uuid)
        about = {"mediator": mediator, "target": target.name if target else target_uuid, "service": service}
        return self._record_of(Kind.TRANSFER, source_uuid, source_name, about | details | about)

    def receipt(self, mediator: str, source_uuid: str, source_name: str, target_uuid: str, service: str,
                details: dict[str, str], outcome: str) -> str:
        """As `note`, and the receipt of it for its source; empty where nothing is known of such a request of it."""
        request = details.get("request", "")
        about = self.receipts.about(source_uuid, request, mediator, service, outcome)
        record = self.note(mediator, source_uuid, source_name, target_uuid, service, about | details | about)
        return self.receipts.make(source_uuid, request, record) if about else ""

    def malformed(self, mediator: str, source_uuid: str, source_name: str, service: str, fault: str) -> None:
        """Record a call that no honest cage half makes."""
        if self._take(self._bucket(source_uuid), source_name, source_uuid):
            about = {"mediator": mediator, "service": service, "fault": fault}
            self._record_of(Kind.MALFORMED, source_uuid, source_name, about)

    def _record_of(self, kind: Kind, uuid: str, name: str, fields: dict[str, str]) -> Recorded:
        """Record something of the instance, which has the `name` that its mediator's core half knows if it is gone."""
        cage = self._manager.by_uuid(uuid)
        about = {"cage": cage.name if cage else name, "uuid": uuid}
        return self._manager.record(kind, cage, about | fields | about)


def _instance(cage: Cage | None) -> Instance | None:
    """None also for a cage whose definition is not to be trusted."""
    try:
        return None if cage is None else cage.instance()
    except CageError:
        return None


def _check_confirmed(ticket: Ticket) -> None:
    """NotAuthorized where it is of a first look alone, or a person has not been asked."""
    if Flag.CONFIRMED not in ticket.flags:
        raise NotAuthorized("what was decided was not confirmed, and nothing is done by it")


def _request(asked: Asked, source: Cage) -> Request:
    return Request(service=asked.service, argument=asked.argument, source=source.instance(), target_name=asked.target)


def _expected(asked: Asked, decision: Decision) -> Expected:
    """What its receipt may say of the target: that it is another than the one asked for, or which level it has, is
    nothing that the source may hear."""
    level = decision.flow is Flow.LEVEL and not decision.parameters.one_way
    return Expected(mediator=asked.mediator, service=asked.service, one_way=decision.parameters.one_way, level=level,
                    target=asked.target or (decision.target if level else ""))


def _end(cage: Instance) -> End:
    return End(name=cage.name, uuid=cage.uuid, level=cage.label.level,
               compartments=tuple(sorted(cage.label.compartments)))


def _check_same(asked: Asked, permission: Permission, uuid: str, name: str = "") -> None:
    """PolicyRefused where `uuid` is not the instance any more that the request is permitted towards (M17), or `name` is
    neither where policy leads it nor to be chosen; each of them empty where it was not known."""
    decision = permission.decision
    led = (decision.target,) if decision.target else decision.choices
    elsewhere = decision.action is not Action.DENY and name != "" and name not in led
    if elsewhere or (permission.target is not None and uuid not in ("", permission.target.uuid)):
        # Of where policy or a person has led the request the source does not hear.
        target = f'"{escape(asked.target, limit=40)}"' if asked.target else "the target"
        raise PolicyRefused(f"{target} is not the cage that it was when {escape(asked.service, limit=70)} was asked "
                            "for; ask for it again")


def _check_bounds(decision: Decision, what: What) -> None:
    """PolicyRefused where it turned out to be more than the rule lets through, or another thing."""
    bounds = decision.parameters
    if bounds.max_size is not None and what.size > bounds.max_size:
        raise PolicyRefused(f"{what.size} bytes are more than the {bounds.max_size} that the policy lets through at "
                            "once")
    if bounds.max_files is not None and what.files > bounds.max_files:
        raise PolicyRefused(f"{what.files} files are more than the {bounds.max_files} that the policy lets through at "
                            "once")
    if bounds.types and not what.types:
        raise PolicyRefused("of what type it is is not known, and the policy lets through some alone")
    for untrusted_type in what.types if bounds.types else ():
        if not any(_is_of(untrusted_type, type_) for type_ in bounds.types):
            raise PolicyRefused(f"{escape(untrusted_type, limit=80)} is of no type that the policy lets through: "
                                f"{', '.join(bounds.types)}")


def _is_of(untrusted_type: str, pattern: str) -> bool:
    """Whether the MIME type is the one of a rule, which may have any subtype."""
    kind, _, subtype = pattern.partition("/")
    return untrusted_type == pattern or (subtype == "*" and untrusted_type.partition("/")[0] == kind)
