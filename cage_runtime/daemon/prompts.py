# SPDX-License-Identifier: LGPL-2.1-or-later
"""Open questions: one for all equal requests, bounded, gone when nobody waits for its answer any more.

Law of this room: an answer is for the instances that the question named, and is no permission: whoever waits for it
has its request decided again.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass, field

from cage_runtime.daemon.state import now
from cage_runtime.daemon.what import What
from cage_runtime.errors import NoSuchPrompt, PolicyRefused, UsageError
from cage_runtime.model import (
    ANSWER_SECONDS,
    PROMPT_SECONDS,
    PROMPTS_MAX,
    PROMPTS_PER_CAGE,
    PROMPTS_PER_PERSON,
    WAITING_PER_CAGE,
    Flow,
)
from cage_runtime.text import escape

NOBODY = "nobody has answered in time"


@dataclass(frozen=True, kw_only=True, slots=True)
class End:
    """One of the two cages that a question is about: the instance, and its label as it is shown."""

    name: str
    uuid: str = ""
    """Empty where it is no cage, but the core or a disposable one that is still to be made."""
    level: str = ""
    compartments: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """What a person is asked; two that are equal are one: those with the same source and target instance, service,
    argument, rule and `what`."""

    source: End
    owner: int
    """The person who answers for the source."""
    private: bool
    """Nobody else does, root neither."""
    mediator: str
    service: str
    argument: str
    asked: str
    """The target's name as the source gave it, empty where it gave none."""
    target: str
    """The uuid of the instance that it is to go to; empty where that is still to be chosen, or is no cage."""
    choices: tuple[End, ...] = field(compare=False)
    """The targets that may be chosen; where there is one alone it is chosen already."""
    default: str = field(compare=False)
    """The one that the rule preselects, empty where none."""
    flow: Flow | None
    rule: str = field(compare=False)
    """FILE:LINE of the rule that asks."""
    rule_text: str
    stands: int = field(compare=False)
    """Seconds that the rule has an answer stand for, which is the longest, too; 0 where it says nothing."""
    digest: str
    """Of `what`, to the last character."""
    what: What = field(compare=False)
    transform: str = field(default="", compare=False)
    """What the rule has done with it on its way; empty for nothing."""

    def choice(self, untrusted_name: str) -> End:
        """The target that an answer names, or, where it names none, the only one; UsageError for one that was not
        offered (M10)."""
        if not untrusted_name and len(self.choices) == 1:
            return self.choices[0]
        for choice in self.choices:
            if choice.name == untrusted_name:
                return choice
        offered = ", ".join(choice.name for choice in self.choices)
        if not untrusted_name:
            raise UsageError(f"say which target: {offered}")
        raise UsageError(f'"{escape(untrusted_name, limit=40)}" was not offered; these are: {offered}')


@dataclass(frozen=True, kw_only=True, slots=True)
class Waiter:
    """Who waits for an answer: a request, and the connection of the core half that has it."""

    sender: str
    request: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What a person said to a request, this once; without a `target` it was no."""

    target: End | None
    why: str = ""
    """For whoever asked, where it was no."""
    by: str = ""
    """For the record: which prompt or grant it is of."""


@dataclass(kw_only=True, slots=True)
class Prompt:
    """A question that is open."""

    id: str
    question: Question
    since: str
    """By RFC 3339."""
    ends: float
    """In seconds of the clock that `Prompts` has."""
    waiting: dict[Waiter, None] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Hooks:
    """What is told of prompts."""

    opened: Callable[[Prompt], None]
    """May raise, and then it is not open."""
    closed: Callable[[Prompt, str], None]
    """With the reason, one word: answered, expired, withdrawn, moot."""
    look: Callable[[Waiter], None]
    """Whoever waits has something to look at."""


class Prompts:
    def __init__(self, hooks: Hooks, *, clock: Callable[[], float],
                 later: Callable[[float, Callable[[], None]], None]) -> None:
        self._hooks, self._clock, self._later = hooks, clock, later
        self._prompts: dict[Question, Prompt] = {}
        self._by_id: dict[str, Prompt] = {}
        self._outcomes: dict[Waiter, tuple[Question, Outcome]] = {}

    def all(self) -> list[Prompt]:
        """Those that are open, the oldest first."""
        return list(self._by_id.values())

    def left(self, prompt: Prompt) -> float:
        """Seconds for which the prompt is still open."""
        return max(0.0, prompt.ends - self._clock())

    def find(self, untrusted_id: str) -> Prompt:
        prompt = self._by_id.get(untrusted_id)
        if prompt is None:
            raise no_such_prompt(untrusted_id)
        return prompt

    # --- asking ----------------------------------------------------------------------------------------------
    def ask(self, question: Question, waiter: Waiter) -> Outcome | None:
        """What was answered; None where a person is being asked, and `look` will say when to call again.
        PolicyRefused where no more questions may be asked."""
        answered, outcome = self._outcomes.pop(waiter, (None, None))
        if answered == question:
            return outcome
        self.withdraw(waiter, but=question)
        prompt = self._prompts.get(question)
        if prompt is None or waiter not in prompt.waiting:
            self._check_waiting(question)
        if prompt is None:
            prompt = self._open(question)
        prompt.waiting[waiter] = None
        return None

    def _check_waiting(self, question: Question) -> None:
        of_cage = [prompt for prompt in self.all() if prompt.question.source.uuid == question.source.uuid]
        if sum(len(prompt.waiting) for prompt in of_cage) >= WAITING_PER_CAGE:
            raise PolicyRefused(f"{WAITING_PER_CAGE} requests of this cage wait for an answer; wait until one has it")
        if question in self._prompts:
            return
        of_person = [prompt for prompt in self.all() if prompt.question.owner == question.owner]
        if len(of_cage) >= PROMPTS_PER_CAGE:
            raise PolicyRefused(f"{PROMPTS_PER_CAGE} questions about this cage are open; wait until one is answered")
        if len(of_person) >= PROMPTS_PER_PERSON or len(self._by_id) >= PROMPTS_MAX:
            raise PolicyRefused("too many questions are open; wait until one is answered")

    def _open(self, question: Question) -> Prompt:
        prompt = Prompt(id=secrets.token_hex(4), question=question, since=now(), ends=self._clock() + PROMPT_SECONDS)
        while prompt.id in self._by_id:
            prompt.id = secrets.token_hex(4)
        self._hooks.opened(prompt)
        self._prompts[question] = self._by_id[prompt.id] = prompt
        self._later(PROMPT_SECONDS, lambda: self._expire(prompt))
        return prompt

    # --- ending ----------------------------------------------------------------------------------------------
    def answer(self, prompt: Prompt, outcome: Outcome) -> None:
        """Have all who wait for the prompt hear what a person said."""
        self._end(prompt, "answered", outcome)

    def _expire(self, prompt: Prompt) -> None:
        if self._by_id.get(prompt.id) is prompt:
            self._end(prompt, "expired", Outcome(target=None, why=NOBODY, by=f"prompt {prompt.id}"))

    def drop(self, prompt: Prompt, reason: str = "moot") -> None:
        """The question is none any more: those who wait have theirs decided afresh."""
        self._end(prompt, reason, None)

    def withdraw(self, waiter: Waiter, *, but: Question | None = None) -> None:
        """Whoever waits is gone; a prompt that nobody waits for, too, unless it is the one that is asked just now."""
        self._outcomes.pop(waiter, None)
        for prompt in self.all():
            if waiter in prompt.waiting and prompt.question != but:
                del prompt.waiting[waiter]
                if not prompt.waiting:
                    self._end(prompt, "withdrawn", None)

    def gone(self, sender: str) -> None:
        """That connection has ended, and whatever waited there is gone."""
        waiters = {waiter for prompt in self.all() for waiter in prompt.waiting} | set(self._outcomes)
        for waiter in waiters:
            if waiter.sender == sender:
                self.withdraw(waiter)

    def _end(self, prompt: Prompt, reason: str, outcome: Outcome | None) -> None:
        del self._by_id[prompt.id], self._prompts[prompt.question]
        self._hooks.closed(prompt, reason)
        for waiter in prompt.waiting:
            if outcome is not None:
                self._keep(waiter, prompt.question, outcome)
            self._hooks.look(waiter)

    def _keep(self, waiter: Waiter, question: Question, outcome: Outcome) -> None:
        kept = self._outcomes[waiter] = (question, outcome)

        def forget() -> None:
            if self._outcomes.get(waiter) is kept:
                del self._outcomes[waiter]

        self._later(ANSWER_SECONDS, forget)


def no_such_prompt(untrusted_id: str) -> NoSuchPrompt:
    return NoSuchPrompt(f'there is no open question "{escape(untrusted_id, limit=40)}"; cagectl prompts list shows '
                        "those there are")
