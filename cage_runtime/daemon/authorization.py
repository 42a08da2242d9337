# SPDX-License-Identifier: LGPL-2.1-or-later
"""Who may ask caged for what.  The caller is who the bus daemon says (law 2), polkit says what that person may.

Root may everything and polkit is not asked; where there is no polkit, root alone may anything.  Members of the group
that watches see what there is of everybody's and change nothing, and polkit is not asked about them either.
"""

from __future__ import annotations

import asyncio
import grp
import pwd
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from weakref import WeakValueDictionary

from cage_runtime.bus import Bus, Call
from cage_runtime.config import Users, uid_of
from cage_runtime.daemon.polkit import Polkit, Question, Verdict
from cage_runtime.daemon.rights import RIGHTS, Does, Right
from cage_runtime.errors import AuthenticationNeeded, HostUnsupported, NobodyAnswers, NotAuthorized
from cage_runtime.model import CALLS_AT_ONCE, CALLS_PER_PERSON, ROOT_UID

ADMINISTRATOR = ROOT_UID
"""Root, and nobody else; tests that are not root put themselves here."""

Details = Mapping[str, str]
"""What polkit and its rules are told of what is asked for: `cage`, `level` and `owner` (a uid), as far as is known."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Caller:
    """Whoever makes a call: the person, the connection, what was called, and whether somebody may be asked."""

    uid: int
    sender: str
    member: str
    interactive: bool
    watches: bool = False
    """A member of the group that sees all cages and may change none."""

    @property
    def is_root(self) -> bool:
        return self.uid == ADMINISTRATOR


class Authorization:
    def __init__(self, bus: Bus, users: Users, mediators: Iterable[str]) -> None:
        """`mediators` are the names of those that there are."""
        self._bus, self._polkit, self._watch = bus, Polkit(bus), users.watch
        self._asking: WeakValueDictionary[int, asyncio.Lock] = WeakValueDictionary()
        """Persons who are just being looked for in a group."""
        self._mediators = _by_uid(users, mediators)
        bus.share_by(self.share)

    def share(self, uid: int) -> int:
        """How many calls of this uid's may be being answered at once."""
        return CALLS_AT_ONCE if uid == ADMINISTRATOR or uid in self._mediators else CALLS_PER_PERSON

    async def caller(self, call: Call) -> Caller:
        uid = await self._bus.uid_of(call.sender)
        watches = uid != ADMINISTRATOR and await self._watches(uid)
        return Caller(uid=uid, sender=call.sender, member=call.member, interactive=call.interactive, watches=watches)

    async def _watches(self, uid: int) -> bool:
        """Who is who may be known to a server far away; the calls of one person stay in their order meanwhile."""
        async with self._asking.setdefault(uid, asyncio.Lock()):
            return await asyncio.to_thread(is_member, uid, self._watch)

    async def require(self, caller: Caller, right: Right, details: Details) -> None:
        """NotAuthorized, saying why, unless the caller may do it to what is his own or the host's."""
        if caller.is_root:
            return
        if caller.watches:
            self._require_watching(caller, right)
            return
        verdict = await self._verdict(caller, right.action, details, asking=caller.interactive)
        if verdict is not Verdict.YES:
            raise _refusal(caller, right.action, verdict)

    async def refusal_of_any(
        self, caller: Caller, right: Right, details: Details, *, there: bool
    ) -> NotAuthorized | None:
        """Why the caller may not do it to what is not his own, and must not be told, because he does not know whether
        it is `there`; None where he may do it.  NotAuthorized where he may not, and sees that it is there.

        Who does not see what is other people's is not asked for a password: that would tell what there is, or have to
        be asked of whoever mistypes a name.
        """
        if caller.is_root:
            return None
        if caller.watches:
            self._require_watching(caller, right)
            return None
        verdict = await self._verdict(caller, right.any_action, details)
        if verdict is Verdict.YES:
            return None
        # Whatever the verdict: a rule's plain no to one cage must not be seen from what polkit is asked next.
        sees = await self.sees_all(caller, RIGHTS["List"]) and there
        if sees and verdict is Verdict.CHALLENGE and caller.interactive:
            verdict = await self._verdict(caller, right.any_action, details, asking=True)
            if verdict is Verdict.YES:
                return None
        if sees:
            raise _refusal(caller, right.any_action, verdict)
        return _refusal(caller, right.any_action, verdict)

    async def sees_all(self, caller: Caller, right: Right) -> bool:
        """Whether the caller gets to see other people's too; nobody is asked for what is only left out otherwise."""
        if caller.is_root or caller.watches:
            return True
        return await self._verdict(caller, right.any_action, {}) is Verdict.YES

    def _require_watching(self, caller: Caller, right: Right) -> None:
        if right.does is not Does.TELLS:
            why = f"members of the group {self._watch} see what there is, and neither change it nor look inside"
            raise NotAuthorized(f"{caller.member} is not authorised: {why}")

    async def _verdict(self, caller: Caller, action: str, details: Details, *, asking: bool = False) -> Verdict:
        question = Question(sender=caller.sender, uid=caller.uid, action=action, details=details)
        try:
            return await (self._polkit.check_asking(question) if asking else self._polkit.check(question))
        except NobodyAnswers as error:
            raise NotAuthorized(f"{caller.member} needs root on this host; use sudo") from error
        except NotAuthorized as error:
            raise NotAuthorized(f"{caller.member} is not authorised: {error.sentence}") from error

    async def health(self) -> tuple[bool, str]:
        """Whether persons who are not root can use cages, and why they can or cannot."""
        try:
            known = await self._polkit.actions()
        except NobodyAnswers:
            return False, "there is no polkit"
        except NotAuthorized as error:
            return False, error.sentence
        missing = {action for right in RIGHTS.values() for action in right.actions} - known
        if missing:
            return False, f"polkit does not know {len(missing)} of this runtime's actions, such as {min(missing)}"
        return True, "polkit decides what each person may"

    async def mediator(self, sender: str) -> str:
        """The name of the mediator whose core half calls; NotAuthorized for anybody else."""
        uid = await self._bus.uid_of(sender)
        name = self._mediators.get(uid)
        if name is None:
            raise NotAuthorized(f"uid {uid} is not a mediator's")
        return name


def _by_uid(users: Users, mediators: Iterable[str]) -> dict[int, str]:
    """Whose uid it is; HostUnsupported where it is two mediators', of which neither would be known from the other."""
    found: dict[int, str] = {}
    for name in mediators:
        user = users.mediator(name)
        other = found.setdefault(uid_of(user), name)
        if other != name:
            raise HostUnsupported(f"the mediators {other} and {name} have one user, {user}: name one for each in "
                                  "caged.conf")
    return found


def is_member(uid: int, group: str) -> bool:
    """Whether this host has such a group, and that person in it."""
    try:
        found, person = grp.getgrnam(group), pwd.getpwuid(uid)
    except KeyError:
        return False
    return person.pw_gid == found.gr_gid or person.pw_name in found.gr_mem


def _refusal(caller: Caller, action: str, verdict: Verdict) -> NotAuthorized:
    needed = "it needs a password"
    if verdict is Verdict.CHALLENGE and not caller.interactive:
        why = f"{needed}, and this call does not allow to ask for one"
        return AuthenticationNeeded(f"{caller.member} is not authorised: {why} ({action})")
    why = {
        Verdict.CHALLENGE: f"{needed}, and nobody is there to ask for one; on a terminal pkttyagent does",
        Verdict.DISMISSED: f"{needed}, and none was given",
    }.get(verdict, "polkit says no, or the password was not the right one; who runs this host can allow it by a rule"
          if caller.interactive else "polkit says no; who runs this host can allow it by a rule")
    return NotAuthorized(f"{caller.member} is not authorised: {why} ({action})")
