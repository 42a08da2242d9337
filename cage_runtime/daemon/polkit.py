# SPDX-License-Identifier: LGPL-2.1-or-later
"""Asking polkit, org.freedesktop.PolicyKit1, whether a caller may do something (polkit(8)).

Law of this room: only a clear yes is one.  An answer of another shape, an error, an end in the middle and a time that
has run out are refusals with their reason; that there is no polkit is told apart (NobodyAnswers), for then root alone
may.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum

from dbus_fast import Variant

from cage_runtime.bus import Answer, Bus, Value
from cage_runtime.errors import CageError, NobodyAnswers, NotAuthorized
from cage_runtime.model import AUTHORISATION_SECONDS, QUESTION_SECONDS, QUESTIONS_PER_PERSON

AUTHORITY = ("org.freedesktop.PolicyKit1", "/org/freedesktop/PolicyKit1/Authority",
             "org.freedesktop.PolicyKit1.Authority")
_ALLOW_USER_INTERACTION = 1


class Verdict(StrEnum):
    YES = "yes"
    NO = "no"
    DISMISSED = "dismissed"
    """No, because whoever was asked did not want to answer."""
    CHALLENGE = "challenge"
    """No, and yes once somebody gives a password."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """May whoever has the connection `sender`, who is `uid`, do `action` to what `details` say?"""

    sender: str
    uid: int
    action: str
    details: Mapping[str, str]


class Polkit:
    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._numbers = itertools.count(1)
        self._asked: Counter[int] = Counter()
        """Questions that are open, by the uid for whose call they are asked."""
        self._withdrawals: set[asyncio.Task[None]] = set()

    async def check(self, question: Question) -> Verdict:
        """What polkit says by itself, without asking anybody."""
        return await self._ask(question, flags=0, cancellation="", seconds=AUTHORISATION_SECONDS)

    async def check_asking(self, question: Question) -> Verdict:
        """What polkit says once it has asked somebody, if it needs to; withdrawn when the caller's connection ends."""
        cancellation = f"cage-runtime-{next(self._numbers)}"
        with self._one_more(question.uid):
            async with self._bus.ownership(question.sender, owned=False) as gone:
                asking = asyncio.ensure_future(self._ask(question, flags=_ALLOW_USER_INTERACTION,
                                                         cancellation=cancellation, seconds=None))
                try:
                    either: set[asyncio.Future[Verdict] | asyncio.Future[None]] = {asking, gone}
                    await asyncio.wait(either, timeout=QUESTION_SECONDS, return_when=asyncio.FIRST_COMPLETED)
                    if asking.done():
                        return asking.result()
                finally:
                    if not asking.done():
                        asking.cancel()
                        self._withdraw(cancellation)
        raise NotAuthorized(f"nobody gave a password within {QUESTION_SECONDS:.0f} seconds")

    @contextmanager
    def _one_more(self, uid: int) -> Iterator[None]:
        if self._asked[uid] >= QUESTIONS_PER_PERSON:
            raise NotAuthorized(f"{QUESTIONS_PER_PERSON} questions for a password are open already; answer them first")
        self._asked[uid] += 1
        try:
            yield
        finally:
            self._asked[uid] -= 1
            if not self._asked[uid]:
                del self._asked[uid]

    def _withdraw(self, cancellation: str) -> None:
        async def withdraw() -> None:
            try:
                await self._bus.call(*AUTHORITY, "CancelCheckAuthorization", "s", (cancellation,),
                                     seconds=AUTHORISATION_SECONDS)
            except CageError:
                return  # it has been answered meanwhile, or polkit has ended and the question with it

        task = asyncio.get_running_loop().create_task(withdraw())
        self._withdrawals.add(task)
        task.add_done_callback(self._withdrawals.discard)

    async def _ask(self, question: Question, *, flags: int, cancellation: str, seconds: float | None) -> Verdict:
        subject = ("system-bus-name", {"name": Variant("s", question.sender)})
        arguments = (subject, question.action, dict(question.details), flags, cancellation)
        answer = await self._call("CheckAuthorization", "(sa{sv})sa{ss}us", *arguments, seconds=seconds)
        return _verdict(answer)

    async def _call(self, member: str, signature: str, *arguments: Value, seconds: float | None) -> Answer:
        try:
            return await self._bus.call(*AUTHORITY, member, signature, arguments, seconds=seconds)
        except NobodyAnswers as error:
            if not await self._bus.can_have_owner(AUTHORITY[0]):
                raise
            raise NotAuthorized(f"polkit gives no answer: {error.sentence}") from error
        except CageError as error:
            raise NotAuthorized(f"polkit gives no answer: {error.sentence}") from error

    async def actions(self) -> frozenset[str]:
        """The ids of all actions that polkit knows; NobodyAnswers, or NotAuthorized where it gives no answer."""
        answer = await self._call("EnumerateActions", "s", "", seconds=AUTHORISATION_SECONDS)
        match answer.values:
            case (list() as entries,):
                return frozenset(str(entry[0]) for entry in entries if isinstance(entry, list | tuple) and entry)
        raise NotAuthorized("polkit gives an answer of an unknown shape")


def _verdict(untrusted_answer: Answer) -> Verdict:
    match untrusted_answer.values:
        case ([True, bool(), dict()],):
            return Verdict.YES
        case ([False, True, dict()],):
            return Verdict.CHALLENGE
        case ([False, False, dict() as details],):
            return Verdict.DISMISSED if "polkit.dismissed" in details else Verdict.NO
    raise NotAuthorized("polkit gives an answer of an unknown shape")
