# SPDX-License-Identifier: LGPL-2.1-or-later
"""Asking persons: open questions and standing answers, in step with cages and policy, told to agents, recorded.

Law of this room: what a person says is recorded before it counts, and it is heard by nobody but `Mediation`, which
decides again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import msgspec
from dbus_fast import Variant

from cage_runtime.audit.event import Kind
from cage_runtime.daemon.agents import Agents, Person
from cage_runtime.daemon.cage import Cage
from cage_runtime.daemon.connections import Connections
from cage_runtime.daemon.grants import Grant, Grants, Subject, no_such_grant
from cage_runtime.daemon.manager import Manager
from cage_runtime.daemon.options import text
from cage_runtime.daemon.prompts import End, Hooks, Outcome, Prompt, Prompts, Question, Waiter, no_such_prompt
from cage_runtime.daemon.rate import later
from cage_runtime.daemon.state import now
from cage_runtime.errors import CageError, UsageError
from cage_runtime.model import GRANT_SECONDS_MAX, Action, CageState
from cage_runtime.text import escape

LOG = logging.getLogger(__name__)
SAID_NO = "a person refused it"
STANDS_NO = "a person refused it for some time"
ACTIVE = (CageState.RUNNING, CageState.PAUSED)


class AnswerOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The options of AnswerPrompt, as the bus carries them."""

    target: str = ""
    for_: int | None = msgspec.field(name="for", default=None)
    """Seconds that the answer stands; 0 for this once."""
    session: bool = False
    """It stands until the source stops."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stands:
    """How long an answer stands: this once, for so many seconds, or until the source stops."""

    seconds: int = 0
    session: bool = False

    @property
    def once(self) -> bool:
        return not self.seconds and not self.session

    def __str__(self) -> str:
        return "this session" if self.session else f"{self.seconds} s" if self.seconds else "once"


Show = Callable[[Prompt, float], dict[str, Variant]]
"""A prompt, with the seconds for which it is open, as a person is shown it."""


class Asking:
    def __init__(self, manager: Manager, agents: Agents, connections: Connections, grants: Grants, *,
                 tell: Callable[[Waiter], None], show: Show, clock: Callable[[], float] = time.monotonic,
                 later: Callable[[float, Callable[[], None]], None] = later) -> None:
        """`tell` has whoever waits ask again."""
        self._manager, self._agents, self._connections, self._grants = manager, agents, connections, grants
        self._later = later
        self._following: set[str] = set()
        self._begun = False
        hooks = Hooks(opened=self._opened, closed=self._closed, look=tell)
        self._prompts = Prompts(hooks, clock=clock, later=later)
        self._show = show

    def begin(self) -> None:
        """Take up what an earlier caged has kept, once it is known which cages there are."""
        self._grants.load()
        self._begun = True
        for grant in self._grants.all():
            self._end_on_time(grant)
        for cage in self._manager.cages():
            self.cage_changed(cage, True)
        there = {cage.uuid for cage in self._manager.cages()}
        for grant in self._grants.all():
            if grant.subject.source not in there or grant.target_uuid not in there | {""}:
                self._revoke(grant, "one of the cages is gone")

    # --- for requests ----------------------------------------------------------------------------------------
    def outcome(self, question: Question, waiter: Waiter) -> Outcome | None:
        """What a person has said to the question, now or for a time; None where one is being asked, and whoever waits
        will be told.  PolicyRefused where no more questions may be open."""
        grant = self._grants.of(subject_of(question))
        if grant is not None:
            self._prompts.withdraw(waiter)
            return _outcome_of(grant)
        outcome = self._prompts.ask(question, waiter)
        if outcome is None and waiter.sender not in self._following:
            self._following.add(waiter.sender)
            self._connections.when_gone(waiter.sender, lambda: self._gone(waiter.sender))
        return outcome

    def refused(self, subject: Subject) -> Outcome | None:
        """The standing answer that refuses it, if there is one."""
        grant = self._grants.of(subject)
        return _outcome_of(grant) if grant is not None and grant.action is Action.DENY else None

    def _gone(self, sender: str) -> None:
        self._following.discard(sender)
        self._prompts.gone(sender)

    def withdraw(self, waiter: Waiter) -> None:
        self._prompts.withdraw(waiter)

    # --- for persons -----------------------------------------------------------------------------------------
    def prompts(self, person: Person) -> list[Prompt]:
        return [prompt for prompt in self._prompts.all()
                if person.sees(prompt.question.owner, private=prompt.question.private)]

    def unseen(self, person: Person) -> int:
        """How many questions that are this person's to see no program shows to anybody."""
        return sum(not self._agents.there(prompt.question.owner, private=prompt.question.private)
                   for prompt in self.prompts(person))

    def shown(self, prompt: Prompt) -> dict[str, Variant]:
        return self._show(prompt, self._prompts.left(prompt))

    def prompt(self, untrusted_id: str, person: Person) -> Prompt:
        """NoSuchPrompt also where it is not this person's to answer."""
        prompt = self._prompts.find(untrusted_id)
        if not person.sees(prompt.question.owner, private=prompt.question.private):
            raise no_such_prompt(untrusted_id)
        return prompt

    def answer(self, untrusted_id: str, person: Person, untrusted_action: str, options: AnswerOptions) -> None:
        """Have the prompt answered; UsageError for what was not offered, and then it stays open."""
        prompt = self.prompt(untrusted_id, person)
        action = _action(untrusted_action)
        stands = _stands(prompt.question, action, options)
        question, target = prompt.question, None
        if action is Action.ALLOW:
            target = question.choice(options.target)
        elif options.target:
            raise UsageError("no target is chosen by an answer that denies")
        grant = None if stands.once else self._new_grant(question, action, target.name if target else "",
                                                         target.uuid if target else "", stands)
        self._record(Kind.PROMPT_ANSWERED, prompt.question, {
            "prompt": prompt.id, "answer": action.value, "target": target.name if target else question.asked,
            "stands": str(stands)})
        if grant is None:
            why = "" if target else SAID_NO
            self._prompts.answer(prompt, Outcome(target=target, why=why, by=f"prompt {prompt.id}"))
            return
        self._record_grant(Kind.GRANT_MADE, grant)
        self._grants.add(grant)
        self._end_on_time(grant)
        self._answer_equal(grant)

    def _answer_equal(self, grant: Grant) -> None:
        """Questions that the grant answers are none any more, the one that it was made by first of all: it is the
        grant that answers those who wait, for as long as it stands."""
        for prompt in self._prompts.all():
            if subject_of(prompt.question) == grant.subject:
                self._prompts.drop(prompt, "answered")

    def grants(self, person: Person) -> list[Grant]:
        return [grant for grant in self._grants.all() if person.sees(grant.owner, private=grant.private)]

    def grant(self, untrusted_id: str, person: Person) -> Grant:
        """NoSuchGrant also where it is not this person's to revoke."""
        grant = self._grants.find(untrusted_id)
        if not person.sees(grant.owner, private=grant.private):
            raise no_such_grant(untrusted_id)
        return grant

    def left(self, grant: Grant) -> float | None:
        return self._grants.left(grant)

    def revoke(self, untrusted_id: str, person: Person) -> None:
        grant = self.grant(untrusted_id, person)
        self._record_grant(Kind.GRANT_REVOKED, grant, {"why": "a person revoked it"})
        self._grants.remove(grant)

    def _new_grant(self, question: Question, action: Action, name: str, uuid: str, stands: Stands) -> Grant:
        subject = subject_of(question)
        self._grants.check_room(subject)
        return Grant(
            id=self._grants.new_id(), action=action, subject=subject, owner=question.owner, private=question.private,
            source_name=question.source.name, target_name=name or question.asked, target_uuid=uuid or question.target,
            since=now(), ends=None if stands.session else self._grants.ends_after(stands.seconds), rule=question.rule)

    def notify(self, source: Cage, about: Mapping[str, str]) -> None:
        """Tell the owner of the source something that wants no answer; values are untrusted."""
        colour = self._manager.levels.colours.get(source.level, "")
        words = {"source": source.name, "source-level": source.level, "source-colour": colour, **about}
        self._agents.notified(source.record.owner, text({key: escape(value) for key, value in words.items()}),
                              private=source.private)

    # --- in step with cages and policy -----------------------------------------------------------------------
    def cage_changed(self, cage: Cage, present: bool) -> None:
        """Nothing is asked for a source that has ended, nor about a target that is gone (M17)."""
        if not self._begun:
            return
        runs = present and cage.state in ACTIVE
        for prompt in self._prompts.all():
            question = prompt.question
            uuids = {choice.uuid for choice in question.choices}
            if (question.source.uuid == cage.uuid and not runs) or (not present and cage.uuid in uuids):
                self._prompts.drop(prompt, "moot")
        for grant in self._grants.all():
            if not present and cage.uuid in (grant.subject.source, grant.target_uuid):
                self._revoke(grant, f"{cage.name} is gone")
            elif not runs and grant.ends is None and grant.subject.source == cage.uuid:
                self._revoke(grant, f"{cage.name} has stopped")

    def policy_changed(self, asks: Callable[[Subject], str]) -> None:
        """Have what the new policy makes moot be gone; `asks` is the text of the rule that asks now, empty where none
        does."""
        for prompt in self._prompts.all():
            if asks(subject_of(prompt.question)) != prompt.question.rule_text:
                self._prompts.drop(prompt, "moot")
        for grant in self._grants.all():
            if asks(grant.subject) != grant.subject.rule_text:
                self._revoke(grant, "the rule that asked decides it no more")

    def _end_on_time(self, grant: Grant) -> None:
        """Its end is recorded; where the host was suspended meanwhile, that is later than it ends."""
        left = self._grants.left(grant)
        if left is not None:
            self._later(left + 1, self._end_expired)

    def _end_expired(self) -> None:
        for grant in self._grants.expired():
            self._end(grant, Kind.GRANT_EXPIRED, {})

    def _revoke(self, grant: Grant, why: str) -> None:
        self._end(grant, Kind.GRANT_REVOKED, {"why": why})

    def _end(self, grant: Grant, kind: Kind, more: Mapping[str, str]) -> None:
        """It is gone whether or not that can be recorded or written down: nothing is permitted by that."""
        try:
            self._grants.remove(grant)
            self._record_grant(kind, grant, more)
        except CageError as error:
            LOG.error("not recorded: the standing answer %s of %s: %s", grant.id, grant.source_name, error.sentence)

    # --- telling ---------------------------------------------------------------------------------------------
    def _opened(self, prompt: Prompt) -> None:
        question = prompt.question
        self._record(Kind.PROMPT_OPENED, question, {
            "prompt": prompt.id, "rule": question.rule,
            "target": question.asked or " ".join(choice.name for choice in question.choices)})
        self._tell(question, "PromptAdded", "a{sv}", (self.shown(prompt),))

    def _closed(self, prompt: Prompt, reason: str) -> None:
        self._tell(prompt.question, "PromptRemoved", "ss", (prompt.id, reason))
        if reason == "answered":
            return
        try:
            self._record(Kind.PROMPT_WITHDRAWN, prompt.question, {"prompt": prompt.id, "why": reason})
        except CageError as error:
            LOG.error("not recorded: the question %s was %s: %s", prompt.id, reason, error.sentence)

    def _tell(self, question: Question, member: str, signature: str, arguments: tuple[object, ...]) -> None:
        self._agents.tell(question.owner, member, signature, arguments, private=question.private)

    def _record(self, kind: Kind, question: Question, more: Mapping[str, str]) -> None:
        self._manager.record(kind, None, {
            "cage": question.source.name, "uuid": question.source.uuid, "mediator": question.mediator,
            "service": question.service, "argument": question.argument, **more})

    def _record_grant(self, kind: Kind, grant: Grant, more: Mapping[str, str] | None = None) -> None:
        subject = grant.subject
        self._manager.record(kind, None, {
            "cage": grant.source_name, "uuid": subject.source, "grant": grant.id, "service": subject.service,
            "argument": subject.argument, "target": grant.target_name, "answer": grant.action.value,
            "rule": grant.rule, **({"operation": subject.operation} if subject.operation else {}), **(more or {})})


def _outcome_of(grant: Grant) -> Outcome:
    by = f"grant {grant.id}"
    if grant.action is Action.DENY:
        return Outcome(target=None, why=STANDS_NO, by=by)
    return Outcome(target=End(name=grant.target_name, uuid=grant.target_uuid), by=by)


def subject_of(question: Question) -> Subject:
    return Subject(source=question.source.uuid, service=question.service, argument=question.argument,
                   asked=question.asked, target=question.target, rule_text=question.rule_text,
                   operation=question.what.operation)


def _action(untrusted_action: str) -> Action:
    if untrusted_action not in (Action.ALLOW, Action.DENY):
        raise UsageError("an answer is allow or deny")
    return Action(untrusted_action)


def _stands(question: Question, action: Action, options: AnswerOptions) -> Stands:
    """How long the answer stands; UsageError where that is longer than it may."""
    if options.session and options.for_ is not None:
        raise UsageError("an answer stands for a time or for this session, not for both")
    allows = action is Action.ALLOW
    if options.session:
        if allows and question.stands:
            raise UsageError(f"the rule lets an answer stand for {question.stands} s at most, and no session long")
        return Stands(session=True)
    if options.for_ is None:
        return Stands(seconds=question.stands if allows else 0)
    most = question.stands if allows and question.stands else GRANT_SECONDS_MAX
    if not 0 <= options.for_ <= most:
        raise UsageError(f"an answer to this stands for {most} s at most")
    return Stands(seconds=options.for_)
