# SPDX-License-Identifier: LGPL-2.1-or-later
"""From a call to what it may touch: the cage, the cages, the person's own, or an error.

Law of this room: a cage that the caller may not touch and one that is not there are answered alike, in words, in the
error's name, in the record and in what polkit is asked meanwhile; but for those who see all cages anyway.  What was
permitted is an instance: a cage that has gone while somebody was asked is not there any more, whatever has its name now
(M17).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass

from cage_runtime.bus import Call
from cage_runtime.config import Definition
from cage_runtime.daemon.agents import Person
from cage_runtime.daemon.authorization import Authorization, Caller, Details
from cage_runtime.daemon.cage import Cage, no_such_cage
from cage_runtime.daemon.manager import ACTING, Manager
from cage_runtime.daemon.rate import RECORDED, Persons
from cage_runtime.daemon.refusals import Refusals
from cage_runtime.daemon.rights import OWNERS, PRIVATE, RIGHTS
from cage_runtime.errors import NotAuthorized, PrivateCage, RuntimeFailure
from cage_runtime.model import CORE_PATH, RECORDED_PER_SECOND, RECORDED_WAIT_SECONDS, is_cage_name
from cage_runtime.objects import OPEN_TO_ALL

CAGES_PATH, JOBS_PATH = f"{CORE_PATH}/cage/", f"{CORE_PATH}/job/"
"""Where the objects of cages and of jobs are."""


@dataclass(frozen=True, kw_only=True, slots=True)
class View:
    """The cages that there are for a caller; `whole` where these are all of the host."""

    cages: tuple[Cage, ...]
    whole: bool
    person: Person
    """The caller, as of what is asked about cages."""


class Access:
    def __init__(self, authorization: Authorization, manager: Manager) -> None:
        self._authorization, self._manager = authorization, manager
        self._persons, self._refusals = Persons(RECORDED), Refusals(manager)

    async def to_new(self, call: Call, definition: Definition | None) -> int:
        """The uid to which a new cage may belong; `definition` is None where what is asked for cannot be had."""
        caller, name = await self._caller(call), str(call.arguments[0])
        about = {"cage": name, "owner": str(caller.uid)} | ({"level": definition.level} if definition else {})
        rights = [RIGHTS[call.member]]
        if definition and definition.session.autostart:
            rights.append(RIGHTS["Enable"])
        with self._refusals.noted(caller, name):
            for right in rights:
                await self._authorization.require(caller, right, about)
        await self._turn(caller)
        return caller.uid

    async def to_host(self, call: Call) -> None:
        caller = await self._caller(call)
        with self._refusals.noted(caller):
            await self._authorization.require(caller, RIGHTS[call.member], {})
        await self._turn(caller)

    async def to_own(self, call: Call) -> Person:
        """Whoever may do what is called with what his cages are about; who sees all cages sees all of it."""
        caller, right = await self._caller(call), RIGHTS[call.member]
        with self._refusals.noted(caller):
            await self._authorization.require(caller, right, {"owner": str(caller.uid)})
        await self._turn(caller)
        return Person(uid=caller.uid, is_root=caller.is_root or caller.watches)

    async def to_cage(self, call: Call) -> Cage:
        """The cage that the first argument names, for whoever may do with it what is called."""
        caller = await self._caller(call)
        return await self._permitted(caller, str(call.arguments[0]))

    async def to_pair(self, call: Call) -> tuple[Cage, Cage | None]:
        """The cages that the first and the fourth argument name, for whoever may do what is called with each; None
        where the latter is a word of the policy such as @core, or, for whoever sees everybody's, a name that no cage
        has: a rule may send that on."""
        caller = await self._caller(call)
        names = str(call.arguments[0]), str(call.arguments[3])
        source = await self._permitted(caller, names[0])
        target = None if await self._is_no_cage_s(caller, names[1]) else await self._permitted(caller, names[1])
        return self._still(names[0], source), target

    async def _is_no_cage_s(self, caller: Caller, untrusted_name: str) -> bool:
        if not is_cage_name(untrusted_name):
            return untrusted_name == "" or untrusted_name.startswith("@")
        # Asked whether there is such a cage or not, so that the time taken does not tell.
        sees_all = await self._authorization.sees_all(caller, RIGHTS["List"])
        return sees_all and self._manager.get(untrusted_name) is None

    async def sees_all(self, call: Call) -> bool:
        """Whether the caller gets to see everybody's cages."""
        return await self._authorization.sees_all(await self._caller(call), RIGHTS["List"])

    def known(self, untrusted_name: str) -> Cage:
        """The cage of that name, for who may do what is called to the whole host; NoSuchCage where there is none."""
        return self._manager.find(untrusted_name)

    async def to_all(self, call: Call) -> View:
        """The caller's cages, and everybody's for whom they are there."""
        caller, right = await self._caller(call), RIGHTS[call.member]
        with self._refusals.noted(caller):
            await self._authorization.require(caller, right, {})
            whole = await self._authorization.sees_all(caller, right)
        cages = (cage for cage in self._manager.cages() if whole or cage.record.owner == caller.uid)
        return View(cages=tuple(cages), whole=whole, person=Person(uid=caller.uid, is_root=whole))

    async def sight(self, call: Call) -> Callable[[str, int], bool]:
        """Which objects are there for the caller: of cages those that List has, of jobs the caller's own."""
        caller, right = await self._caller(call), RIGHTS["List"]
        if caller.is_root:
            return lambda _path, _owner: True
        if call.path.startswith(JOBS_PATH):  # which whoever watches has begun none, or may not end any more
            return lambda _path, owner: owner == caller.uid and not caller.watches
        # What is open to all is only shown less of.
        with contextlib.nullcontext() if call.member in OPEN_TO_ALL else self._refusals.noted(caller):
            await self._authorization.require(caller, right, {})
            whole = await self._authorization.sees_all(caller, right)
        return lambda path, owner: owner == caller.uid or (whole and path.startswith(CAGES_PATH))

    async def note_refused(self, call: Call, refusal: NotAuthorized) -> None:
        """Record what was refused to a program of the core, which does not ask for what it may not do."""
        self._refusals.note(await self._caller(call), refusal)

    async def _caller(self, call: Call) -> Caller:
        """Whoever calls, whose doing it is from here on in the record."""
        caller = await self._authorization.caller(call)
        ACTING.set(caller.uid)
        return caller

    async def _permitted(self, caller: Caller, untrusted_name: str) -> Cage:
        cage, right = self._manager.get(untrusted_name), RIGHTS[caller.member]
        if cage is not None and cage.record.owner == caller.uid:
            with self._refusals.noted(caller, cage.name, cage):
                _keep_private(caller, cage)
                await self._authorization.require(caller, right, _about(cage.name, caller.uid, cage.level))
            await self._turn(caller)
            return self._still(untrusted_name, cage)
        if not caller.is_root:
            if not is_cage_name(untrusted_name):  # which is no cage's, and nothing to show to an administrator
                raise no_such_cage(untrusted_name)
            known = {} if cage is None else _about(cage.name, cage.record.owner, cage.level)
            details = {"cage": untrusted_name, **known}
            with self._refusals.noted(caller, untrusted_name, cage):
                refusal = await self._authorization.refusal_of_any(caller, right, details, there=cage is not None)
            if refusal is not None:
                self._refusals.note(caller, refusal, untrusted_name, cage)
                raise no_such_cage(untrusted_name)
            await self._turn(caller)
        found = self._still(untrusted_name, cage)
        with self._refusals.noted(caller, found.name, found):
            _keep_private(caller, found)
        return found

    async def _turn(self, caller: Caller) -> None:
        """Wait until a call of this person's may write a record; RuntimeFailure where too many wait already."""
        if caller.is_root or not RIGHTS[caller.member].recorded:
            return
        now = time.monotonic()
        wait = self._persons.of(caller.uid, now).reserve(now, RECORDED_WAIT_SECONDS)
        if wait is None:
            often = f"{RECORDED_PER_SECOND:.0f} a second"
            raise RuntimeFailure(f"too many calls of yours are to be recorded at once; {often} are, so try again")
        if wait:
            await asyncio.sleep(wait)

    def _still(self, untrusted_name: str, cage: Cage | None) -> Cage:
        """`cage`, if it is there and still the one of that name."""
        if cage is None or self._manager.get(untrusted_name) is not cage:
            raise no_such_cage(untrusted_name)
        return cage


def _keep_private(caller: Caller, cage: Cage) -> None:
    """PrivateCage for what nobody does with a private cage, and for what nobody but its owner does."""
    if not cage.private:
        return
    if caller.member in PRIVATE:
        why = f"{cage.name} is private; nobody enters it or reads its log, also not who runs this host"
    elif caller.member in OWNERS and cage.record.owner != caller.uid:
        why = f"{cage.name} is private; its owner alone runs its applications"
    else:
        return
    raise PrivateCage(f"{caller.member} is not authorised: {why}")


def _about(name: str, owner: int, level: str) -> Details:
    return {"cage": name, "level": level, "owner": str(owner)}
