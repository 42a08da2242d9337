# SPDX-License-Identifier: LGPL-2.1-or-later
"""Applications of cages: which a cage may run (its definition says), and showing them in it.

cage-apps installs them, as a user of its own, because what it reads comes from elsewhere; caged decides and records.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from contextlib import AbstractAsyncContextManager

import msgspec

from cage_runtime.audit.event import Kind
from cage_runtime.bus import Bus, Value
from cage_runtime.config import Apps
from cage_runtime.daemon.cage import Cage
from cage_runtime.daemon.exports import Exports
from cage_runtime.daemon.manager import ACTING, Manager
from cage_runtime.daemon.turns import Turns
from cage_runtime.errors import CageError, NoSuchApplication, NoSuchCage, RuntimeFailure, UsageError
from cage_runtime.model import CageState
from cage_runtime.spawner import spec
from cage_runtime.text import escape

LOG = logging.getLogger(__name__)
APPS = ("org.cageruntime.Apps1", "/org/cageruntime/Apps1", "org.cageruntime.Apps1")
QUICK_SECONDS = 60.0
REMOTE_SECONDS = 180.0
"""For adding a remote, whose summary is fetched first."""


class Applications:
    def __init__(self, bus: Bus, manager: Manager, exports: Exports) -> None:
        self._bus, self._manager, self._exports = bus, manager, exports
        manager.started = self.show_all
        # cage-apps cancels whatever its caller has under way, and all that is asked is asked by us: one at a time,
        # and persons in turn.
        self._turns = Turns()
        self._forgetting: set[asyncio.Task[None]] = set()
        self._offering = asyncio.Lock()
        self._persons: frozenset[int] = frozenset()
        self._welcoming: asyncio.Task[None] | None = None

    def _turn(self) -> AbstractAsyncContextManager[None]:
        """A turn of whoever this is done for."""
        return self._turns.turn(ACTING.get())

    async def _ask(self, member: str, signature: str = "", *arguments: Value, seconds: float | None = None) -> Value:
        answer = await self._bus.call(*APPS, member, signature, arguments, seconds=seconds)
        return answer.values[0] if answer.values else None

    async def add_remote(self, name: str, url: str, key: bytes) -> str:
        """The fingerprint of the pinned key."""
        async with self._turn():
            fingerprint = str(await self._ask("AddRemote", "ssay", name, url, key, seconds=REMOTE_SECONDS))
        self._manager.record(Kind.REMOTE_ADDED, None, {"remote": name, "url": url, "key": fingerprint})
        return fingerprint

    async def remove_remote(self, name: str) -> None:
        async with self._turn():
            await self._ask("RemoveRemote", "s", name, seconds=QUICK_SECONDS)
        self._manager.record(Kind.REMOTE_REMOVED, None, {"remote": name})

    async def remotes(self) -> list[tuple[str, str, str]]:
        listed: list[tuple[str, str, str]] = await self._ask("ListRemotes", seconds=QUICK_SECONDS)
        return listed

    async def installed(self) -> dict[str, dict[str, str]]:
        """What is installed, by application id."""
        listed: list[dict[str, str]] = await self._ask("List", seconds=QUICK_SECONDS)
        return {entry["application"]: entry for entry in listed}

    async def install(self, cage: Cage, application: str, remote: str) -> dict[str, str]:
        """Install it for `cage`: the installation is shared, the permission and the sight of it are not."""
        check_application(cage, application)
        cage.instance()  # one whose definition cannot be read gets nothing written into it
        try:
            entry = await self._install(cage, application, remote)
        except NoSuchCage:
            await self._uninstall_unused(application)  # destroyed meanwhile, when this was not yet one of its own
            raise
        await self.offer(application)
        return entry

    async def _install(self, cage: Cage, application: str, remote: str) -> dict[str, str]:
        async with self._turn():
            try:
                entry: dict[str, str] = await self._ask("Install", "ss", application, remote)
            except asyncio.CancelledError:
                await self._ask("Cancel", seconds=QUICK_SECONDS)
                raise
            # Still in turn: a cage that removes the same application must not take it from under this one.
            async with self._manager.held(cage):
                self._manager.record(Kind.APPLICATION_INSTALLED, cage, entry)
                allowed = cage.record.definition.apps.allow
                if application not in allowed:
                    self._allow(cage, [*allowed, application])
                await self.show(cage, application)
        return entry

    async def update(self, cage: Cage) -> dict[str, str]:
        """Update every application of `cage`; answers application: commit."""
        updated = {}
        for application in cage.record.definition.apps.allow:
            async with self._turn():
                entry: dict[str, str] = await self._ask("Update", "s", application)
            updated[application] = entry["commit"]
            self._manager.record(Kind.APPLICATION_UPDATED, cage, entry)
            await self.show(cage, application)
            await self.offer(application)
        return updated

    async def remove(self, cage: Cage, application: str) -> None:
        """Take it from `cage`; the last cage to lose it takes it from the installation too."""
        async with self._manager.held(cage):
            allowed = cage.record.definition.apps.allow
            if application not in allowed:
                raise NoSuchApplication(f"{escape(application, limit=100)} is not an application of {cage.name}")
            rest = [other for other in allowed if other != application]
            needed = {tree for other in rest for tree in await self._trees_there(other)}
            gone = [tree for tree in await self._trees_there(application) if tree not in needed]
            self._manager.record(Kind.APPLICATION_REMOVED, cage, {"application": application})
            self._allow(cage, rest)
            self._exports.drop(cage.record, application)
            if cage.state is CageState.RUNNING and gone:
                await self._manager.spawner.ask(
                    spec.Conceal(id=self._manager.spawner.number(), uuid=cage.uuid, trees=gone))
        await self._uninstall_unused(application)

    async def _uninstall_unused(self, application: str) -> None:
        async with self._turn():
            if not any(application in other.record.definition.apps.allow for other in self._manager.cages()):
                with contextlib.suppress(NoSuchApplication):  # installed it is not, as it should be
                    await self._ask("Remove", "s", application)

    def forget(self, cage: Cage) -> None:
        """The cage is destroyed: what nobody else runs is uninstalled, in its own time."""
        for application in cage.record.definition.apps.allow:
            task = asyncio.get_running_loop().create_task(self._forget(application))
            self._forgetting.add(task)
            task.add_done_callback(self._forgetting.discard)

    async def _forget(self, application: str) -> None:
        try:
            await self._uninstall_unused(application)
        except CageError as error:
            LOG.warning("%s, which no cage runs any more, stays installed: %s", application, error.sentence)

    def _allow(self, cage: Cage, allow: list[str]) -> None:
        definition = cage.record.definition
        self._manager.redefine(cage, msgspec.structs.replace(definition, apps=Apps(allow=allow)))

    async def _trees(self, application: str) -> list[str]:
        trees: list[str] = await self._ask("Trees", "s", application, seconds=QUICK_SECONDS)
        return trees

    async def _trees_there(self, application: str) -> list[str]:
        """None for one that is not installed."""
        try:
            return await self._trees(application)
        except NoSuchApplication:
            return []

    async def show(self, cage: Cage, application: str) -> None:
        """Make it visible in the cage, if that runs."""
        if cage.state is CageState.RUNNING:
            trees = await self._trees(application)
            await self._manager.spawner.ask(
                spec.Expose(id=self._manager.spawner.number(), uuid=cage.uuid, trees=trees))

    async def show_all(self, cage: Cage) -> None:
        """Make every application of a cage that has just started visible; one that is not there is said and left."""
        for application in cage.record.definition.apps.allow:
            if not self._exports.has(cage.record, application):
                await self.offer(application)
            try:
                await self.show(cage, application)
            except CageError as error:
                LOG.warning("%s: %s: %s", cage.name, application, error.sentence)
                cage.unenforced = (*cage.unenforced, f"{application}: {error.sentence}")

    # --- menus -----------------------------------------------------------------------------------------------
    def see_persons(self) -> None:
        """There may be a person who has a cage now and had none, or the other way round: have their folders so."""
        if self._owners() != self._persons and (self._welcoming is None or self._welcoming.done()):
            self._welcoming = asyncio.get_running_loop().create_task(self._welcome())

    def _owners(self) -> frozenset[int]:
        return frozenset(cage.record.owner for cage in self._manager.cages())

    async def _welcome(self) -> None:
        """Have folders for those who have cages, one request at a time, until these are all."""
        while True:
            async with self._offering:
                await self._tell_persons()
            if self._owners() == self._persons:
                return

    async def _tell_persons(self) -> None:
        self._persons = self._owners()
        await self._exports.welcome(self._persons)

    async def offer_all(self) -> None:
        """Bring everybody's menus in line with the cages that there are."""
        cages = self._manager.cages()
        await self._welcome()
        self._exports.begin([cage.record for cage in cages])
        async with self._bus.ownership(APPS[0], owned=True) as there:  # it may be just being started, as we are
            await there
        for application in sorted({name for cage in cages for name in cage.record.definition.apps.allow}):
            await self.offer(application)

    async def offer(self, application: str) -> None:
        """Have it in the menus of those whose cages may run it.  One without an entry, or whose entry cannot be
        trusted, is in none; while cage-apps does not answer they stay as they are."""
        async with self._offering:
            try:
                values: dict[str, str] = await self._ask("MenuEntry", "s", application, seconds=QUICK_SECONDS)
            except RuntimeFailure as error:
                LOG.warning("%s: its entries in menus stay as they are: %s", application, error.sentence)
                return
            except CageError as error:
                LOG.warning("%s is in nobody's menu: %s", application, error.sentence)
                values = {}
            if not all(self._exports.welcomes(cage.record.owner) for cage in self._running_it(application)):
                await self._tell_persons()
            for cage in self._running_it(application):
                # Those of somebody who has come in the meantime are seen to when they start.
                if cage.record.owner in self._persons:
                    self._exports.put(cage.record, application, values)

    def _running_it(self, application: str) -> list[Cage]:
        return [cage for cage in self._manager.cages() if application in cage.record.definition.apps.allow]

    @property
    def faults(self) -> tuple[str, ...]:
        return (self._exports.fault,) if self._exports.fault else ()


def check_application(cage: Cage, untrusted_application: str) -> None:
    """UsageError unless it has the shape of an application's id."""
    try:
        msgspec.convert({"allow": [untrusted_application]}, Apps)
    except msgspec.ValidationError as error:
        shown = escape(untrusted_application, limit=60)
        raise UsageError(f'{cage.name}: "{shown}" is not an application\'s id, such as org.example.App') from error
