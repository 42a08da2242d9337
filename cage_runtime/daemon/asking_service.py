# SPDX-License-Identifier: LGPL-2.1-or-later
"""caged on the system bus for persons who are asked: prompts, grants and agents, of org.cageruntime.Core1.Manager.

What came from a cage was escaped and bounded before it is here.
"""

from __future__ import annotations

from dbus_fast import Variant

from cage_runtime.bus import Answer, Call, Handler
from cage_runtime.daemon.access import Access
from cage_runtime.daemon.agents import Agents, Person
from cage_runtime.daemon.asking import AnswerOptions, Asking
from cage_runtime.daemon.grants import Grant
from cage_runtime.daemon.notifications import Notifications
from cage_runtime.daemon.options import NoOptions, options, text
from cage_runtime.daemon.prompts import End, Prompt
from cage_runtime.model import Levels
from cage_runtime.text import escape


class AskingService:
    def __init__(self, access: Access, asking: Asking, agents: Agents, notifications: Notifications) -> None:
        self._access, self._asking, self._agents, self._notifications = access, asking, agents, notifications
        self.handlers: dict[str, Handler] = {
            "ListPrompts": self._list_prompts, "AnswerPrompt": self._answer, "ListGrants": self._list_grants,
            "RevokeGrant": self._revoke, "RegisterAgent": self._register, "NotificationAction": self._act,
        }

    def unseen(self, person: Person) -> int:
        """As Asking has it."""
        return self._asking.unseen(person)

    async def _list_prompts(self, call: Call) -> Answer:
        person = await self._access.to_own(call)
        options(call.arguments[0], NoOptions)
        return Answer(values=([self._asking.shown(prompt) for prompt in self._asking.prompts(person)],))

    async def _answer(self, call: Call) -> Answer:
        id_, action, given = call.arguments
        person = await self._access.to_own(call)
        self._asking.answer(id_, person, action, options(given, AnswerOptions))
        return Answer()

    async def _list_grants(self, call: Call) -> Answer:
        person = await self._access.to_own(call)
        options(call.arguments[0], NoOptions)
        return Answer(values=([self._shown_grant(grant) for grant in self._asking.grants(person)],))

    def _shown_grant(self, grant: Grant) -> dict[str, Variant]:
        subject, left = grant.subject, self._asking.left(grant)
        return {
            **text({"id": grant.id, "action": grant.action.value, "source": grant.source_name,
                    "service": escape(subject.service), "argument": escape(subject.argument),
                    "operation": escape(subject.operation),
                    "target": escape(grant.target_name), "asked": escape(subject.asked), "since": grant.since,
                    "rule": grant.rule}),
            "session": Variant("b", left is None), "seconds": Variant("u", int(left or 0)),
            "owner": Variant("u", grant.owner),
        }

    async def _revoke(self, call: Call) -> Answer:
        id_, given = call.arguments
        person = await self._access.to_own(call)
        options(given, NoOptions)
        self._asking.revoke(id_, person)
        return Answer()

    async def _register(self, call: Call) -> Answer:
        person = await self._access.to_own(call)
        options(call.arguments[0], NoOptions)
        self._agents.register(call.sender, person)
        return Answer()

    async def _act(self, call: Call) -> Answer:
        number, action, given = call.arguments
        person = await self._access.to_own(call)
        options(given, NoOptions)
        self._notifications.act(number, action, person)
        return Answer()


class Shown:
    """How a person is shown a prompt."""

    def __init__(self, levels: Levels) -> None:
        self._levels = levels

    def __call__(self, prompt: Prompt, seconds: float) -> dict[str, Variant]:
        question = prompt.question
        (target, *others), what = question.choices, question.what
        chosen = End(name="") if others else target
        return {
            **text({"id": prompt.id, "service": escape(question.service), "argument": escape(question.argument),
                    "asked": escape(question.asked), "default": question.default, "rule": question.rule,
                    "flow": question.flow.value if question.flow else "", "since": prompt.since,
                    "sha256": escape(what.sha256, limit=64), "transform": question.transform}),
            **self._end("source", question.source), **self._end("target", chosen),
            "choices": Variant("a{ss}", {choice.name: choice.level for choice in question.choices}),
            "colours": Variant("a{ss}", {choice.level: self._levels.colours[choice.level]
                                         for choice in question.choices if choice.level in self._levels.colours}),
            "owner": Variant("u", question.owner), "seconds": Variant("u", int(seconds)),
            "for": Variant("u", question.stands), "waiting": Variant("u", max(1, len(prompt.waiting))),
            "size": Variant("t", what.size), "files": Variant("u", what.files),
            "types": Variant("as", what.shown_types()), "lines": Variant("as", what.shown_lines()),
        }

    def _end(self, key: str, end: End) -> dict[str, Variant]:
        return {
            **text({key: end.name, f"{key}-level": end.level,
                    f"{key}-colour": self._levels.colours.get(end.level, "")}),
            f"{key}-compartments": Variant("as", list(end.compartments)),
        }
