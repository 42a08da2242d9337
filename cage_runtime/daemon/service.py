# SPDX-License-Identifier: LGPL-2.1-or-later
"""caged on the system bus: org.cageruntime.Core1, as its XML describes it.

Law of this room: a method begins with what the caller may touch (access.py), which its kind of handler makes sure of;
then it turns arguments into types, calls one thing, turns the result back.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass

import msgspec
from dbus_fast import Variant

from cage_runtime.bus import Answer, Bus, Call, Handler, Service, described
from cage_runtime.daemon import doctor
from cage_runtime.daemon.access import CAGES_PATH, Access, View
from cage_runtime.daemon.applications import Applications
from cage_runtime.daemon.asking_service import AskingService
from cage_runtime.daemon.authorization import Authorization
from cage_runtime.daemon.cage import Cage
from cage_runtime.daemon.copies import Begun, Copies, CopyOptions
from cage_runtime.daemon.define import CreateOptions
from cage_runtime.daemon.halves import Halves
from cage_runtime.daemon.jobs import Jobs
from cage_runtime.daemon.manager import Manager
from cage_runtime.daemon.mediation import Mediation
from cage_runtime.daemon.notifications import Notifications
from cage_runtime.daemon.options import NoOptions, options, text
from cage_runtime.daemon.proof_service import ProofService
from cage_runtime.daemon.recovery import Recovery
from cage_runtime.daemon.sessions import SessionOptions, Sessions, Started
from cage_runtime.errors import CageError, UsageError
from cage_runtime.model import AUDIT_TAIL_MAX, CORE_PATH, check_new_name
from cage_runtime.policy.engine import NO_POLICY
from cage_runtime.spawner.spec import Insight

RESOURCE = "org.cageruntime.Core1.xml"
MANAGER, CAGE = "org.cageruntime.Core1.Manager", "org.cageruntime.Core1.Cage"
_HASH = re.compile(r"[0-9a-f]{64}\Z")
"""Of a record."""

class InstallOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    remote: str = ""


class TailOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    count: int = 20
    hash: str = ""
    """Of the one record that is asked for."""


def cage_path(name: str) -> str:
    """A cage's object path; `-` may not stand in one."""
    return CAGES_PATH + name.replace("-", "_2d")


@dataclass(frozen=True, kw_only=True, slots=True)
class Parts:
    """What the bus view calls."""

    bus: Bus
    authorization: Authorization
    access: Access
    manager: Manager
    sessions: Sessions
    copies: Copies
    applications: Applications
    mediation: Mediation
    asking: AskingService
    proofs: ProofService
    notifications: Notifications
    recovery: Recovery
    jobs: Jobs
    halves: Halves


_OfCage = Callable[[Call, Cage], Awaitable[Answer]]
_OfView = Callable[[Call, View], Awaitable[Answer]]


class CoreService:
    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._cage_interface = described(RESOURCE, CAGE)
        of_cage: dict[str, _OfCage] = {
            "Destroy": self._destroy, "Start": self._start, "Stop": self._stop, "Enable": self._enable,
            "Disable": self._disable, "Pause": self._pause, "Resume": self._resume, "Kill": self._kill,
            "Enter": self._enter, "Run": self._run, "CopyIn": self._copy_in, "CopyOut": self._copy_out,
            "Status": self._status, "Show": self._show, "Logs": self._logs,
            "InstallApplication": self._install, "UpdateApplications": self._update,
            "RemoveApplication": self._remove, "ListApplications": self._list_applications,
        }
        of_all: dict[str, _OfView] = {"List": self._list, "Doctor": self._doctor}
        of_host: dict[str, Handler] = {
            "AddRemote": self._add_remote, "RemoveRemote": self._remove_remote, "ListRemotes": self._list_remotes,
            "CheckPolicy": self._check_policy, "ReloadPolicy": self._reload, "TailAudit": self._tail,
            "VerifyAudit": self._verify, "AuditKey": self._audit_key,
        }
        handlers: dict[str, Handler] = {
            "Create": self._create, **parts.asking.handlers, **parts.proofs.handlers,
            **{member: self._for_cage(handler) for member, handler in of_cage.items()},
            **{member: self._for_all(handler) for member, handler in of_all.items()},
            **{member: self._for_host(handler) for member, handler in of_host.items()},
        }
        parts.bus.serve(CORE_PATH, Service(interface=described(RESOURCE, MANAGER), handlers=handlers))
        parts.bus.manage(CORE_PATH)
        parts.bus.see_by(parts.access.sight)

    def _for_cage(self, handler: _OfCage) -> Handler:
        async def guarded(call: Call) -> Answer:
            return await handler(call, await self._parts.access.to_cage(call))

        return guarded

    def _for_all(self, handler: _OfView) -> Handler:
        async def guarded(call: Call) -> Answer:
            return await handler(call, await self._parts.access.to_all(call))

        return guarded

    def _for_host(self, handler: Handler) -> Handler:
        async def guarded(call: Call) -> Answer:
            await self._parts.access.to_host(call)
            return await handler(call)

        return guarded

    def changed(self, cage: Cage, present: bool) -> None:
        """Keep the cage's object in step with it."""
        path = cage_path(cage.name)
        if not present:
            self._parts.bus.withdraw(path)
            self._parts.bus.emit(CORE_PATH, MANAGER, "CageRemoved", "so", (cage.name, path))
            return
        new = self._parts.bus.serve(path, Service(
            interface=self._cage_interface, properties=lambda: _properties(cage)), owner=cage.record.owner)
        if new:
            self._parts.bus.emit(CORE_PATH, MANAGER, "CageAdded", "so", (cage.name, path))
        else:
            changed = {"State": Variant("s", cage.state.value), "Autostart": Variant("b", cage.enabled)}
            self._parts.bus.properties_changed(path, CAGE, changed)

    # --- lives -----------------------------------------------------------------------------------------------
    async def _create(self, call: Call) -> Answer:
        wanted, name = options(call.arguments[1], CreateOptions), check_new_name(call.arguments[0])
        try:
            definition = self._parts.manager.define(wanted)
        except CageError:
            await self._parts.access.to_new(call, None)  # what is wrong is for who may create
            raise
        owner = await self._parts.access.to_new(call, definition)
        cage = await self._parts.manager.create(name, definition, owner=owner, start=wanted.start)
        return Answer(values=(cage_path(cage.name),))

    async def _destroy(self, call: Call, cage: Cage) -> Answer:
        options(call.arguments[-1], NoOptions)
        await self._parts.manager.destroy(cage)
        self._parts.applications.forget(cage)
        return Answer()

    async def _start(self, call: Call, cage: Cage) -> Answer:
        options(call.arguments[-1], NoOptions)
        await self._parts.manager.start(cage)
        return Answer()

    async def _stop(self, call: Call, cage: Cage) -> Answer:
        options(call.arguments[-1], NoOptions)
        await self._parts.manager.stop(cage)
        return Answer()

    async def _kill(self, call: Call, cage: Cage) -> Answer:
        options(call.arguments[-1], NoOptions)
        await self._parts.manager.stop(cage, seconds=0)
        return Answer()

    async def _enable(self, call: Call, cage: Cage) -> Answer:
        options(call.arguments[-1], NoOptions)
        await self._parts.manager.enable(cage, enabled=True)
        return Answer()

    async def _disable(self, call: Call, cage: Cage) -> Answer:
        options(call.arguments[-1], NoOptions)
        await self._parts.manager.enable(cage, enabled=False)
        return Answer()

    async def _pause(self, call: Call, cage: Cage) -> Answer:
        options(call.arguments[-1], NoOptions)
        await self._parts.manager.freeze(cage, frozen=True)
        return Answer()

    async def _resume(self, call: Call, cage: Cage) -> Answer:
        options(call.arguments[-1], NoOptions)
        await self._parts.manager.freeze(cage, frozen=False)
        return Answer()

    # --- commands --------------------------------------------------------------------------------------------
    async def _enter(self, call: Call, cage: Cage) -> Answer:
        wanted = options(call.arguments[-1], SessionOptions)
        return channel(await self._parts.sessions.enter(cage, call.arguments[1], wanted))

    async def _run(self, call: Call, cage: Cage) -> Answer:
        wanted = options(call.arguments[-1], SessionOptions)
        return channel(await self._parts.sessions.run(cage, call.arguments[1], call.arguments[2], wanted))

    async def _copy_in(self, call: Call, cage: Cage) -> Answer:
        path, name, given = call.arguments[1:]
        wanted, person = options(given, CopyOptions), await self._person(call)
        return _begun(self._parts.copies.into(cage, path, name, wanted, person))

    async def _copy_out(self, call: Call, cage: Cage) -> Answer:
        path, given = call.arguments[1:]
        options(given, NoOptions)
        return _begun(self._parts.copies.out_of(cage, path, await self._person(call)))

    async def _person(self, call: Call) -> int:
        return (await self._parts.authorization.caller(call)).uid

    # --- showing ---------------------------------------------------------------------------------------------
    async def _list(self, call: Call, view: View) -> Answer:
        options(call.arguments[0], NoOptions)
        return Answer(values=([await self._summary(cage) for cage in view.cages],))

    async def _summary(self, cage: Cage) -> dict[str, Variant]:
        return self._summary_with(cage, await self._parts.manager.inspect(cage))

    @staticmethod
    def _summary_with(cage: Cage, insight: Insight) -> dict[str, Variant]:
        definition = cage.record.definition
        return {
            **text({"name": cage.name, "uuid": cage.uuid, "state": cage.state.value, "level": cage.level}),
            "compartments": Variant("as", sorted(definition.compartments)),
            "ephemeral": Variant("b", cage.record.ephemeral),
            "owner": Variant("u", cage.record.owner),
            "autostart": Variant("b", cage.enabled),
            "processes": Variant("u", insight.processes),
            "documents": Variant("b", insight.documents),
        }

    async def _status(self, call: Call, cage: Cage) -> Answer:
        options(call.arguments[-1], NoOptions)
        definition = cage.record.definition
        more = {"description": definition.description, "created": cage.record.created, "since": cage.since,
                "home": "in memory" if cage.record.ephemeral else "persistent"}
        insight = await self._parts.manager.inspect(cage)
        walls, denials = await self._parts.manager.enforced(cage)
        return Answer(values=({
            **self._summary_with(cage, insight), **text(more),
            "applications": Variant("as", list(definition.apps.allow)),
            "unenforced": Variant("as", list(cage.unenforced)),
            "mediated": Variant("a{sx}", insight.mediated),
            "private": Variant("b", cage.private),
            "require": Variant("as", list(definition.require)),
            "walls": Variant("a{sa{sv}}", {wall.wall.value: {
                "enforced": Variant("b", wall.enforced), "detail": Variant("s", wall.detail)} for wall in walls}),
            "denials": Variant("a{st}", dict(denials)),
        },))

    async def _show(self, call: Call, cage: Cage) -> Answer:
        options(call.arguments[-1], NoOptions)
        return Answer(values=(self._parts.manager.shown(cage),))

    async def _logs(self, call: Call, cage: Cage) -> Answer:
        options(call.arguments[-1], NoOptions)
        return Answer(values=(await self._parts.manager.logs(cage),))

    # --- applications ----------------------------------------------------------------------------------------
    async def _add_remote(self, call: Call) -> Answer:
        name, url, key, given = call.arguments
        options(given, NoOptions)
        await self._parts.applications.add_remote(name, url, bytes(key))
        return Answer()

    async def _remove_remote(self, call: Call) -> Answer:
        name, given = call.arguments
        options(given, NoOptions)
        await self._parts.applications.remove_remote(name)
        return Answer()

    async def _list_remotes(self, call: Call) -> Answer:
        options(call.arguments[0], NoOptions)
        remotes = await self._parts.applications.remotes()
        return Answer(values=([text({"name": name, "url": url, "key": key}) for name, url, key in remotes],))

    async def _install(self, call: Call, cage: Cage) -> Answer:
        wanted = options(call.arguments[-1], InstallOptions)
        application = call.arguments[1]
        return await self._job(call, f"install {application} in {cage.name}",
                               lambda: self._parts.applications.install(cage, application, wanted.remote))

    async def _update(self, call: Call, cage: Cage) -> Answer:
        options(call.arguments[-1], NoOptions)
        return await self._job(call, f"update the applications of {cage.name}",
                               lambda: self._parts.applications.update(cage))

    async def _remove(self, call: Call, cage: Cage) -> Answer:
        options(call.arguments[-1], NoOptions)
        application = call.arguments[1]

        async def work() -> dict[str, str]:
            await self._parts.applications.remove(cage, application)
            return {"application": application}

        return await self._job(call, f"remove {application} from {cage.name}", work)

    async def _job(self, call: Call, description: str,
                   work: Callable[[], Coroutine[None, None, dict[str, str]]]) -> Answer:
        caller = await self._parts.authorization.caller(call)
        return Answer(values=(self._parts.jobs.start(description, work(), caller.uid),))

    async def _list_applications(self, call: Call, cage: Cage) -> Answer:
        options(call.arguments[-1], NoOptions)
        installed = await self._parts.applications.installed()
        entries = [installed.get(name, {"application": name, "commit": "", "runtime": "", "remote": ""})
                   for name in cage.record.definition.apps.allow]
        keys = ("application", "commit", "runtime", "remote")
        return Answer(values=([text({key: entry[key] for key in keys}) for entry in entries],))

    # --- policy and record -----------------------------------------------------------------------------------
    async def _check_policy(self, call: Call) -> Answer:
        options(call.arguments[0], NoOptions)
        return Answer(values=(self._parts.mediation.check(),))

    async def _reload(self, call: Call) -> Answer:
        options(call.arguments[0], NoOptions)
        self._parts.mediation.reload()
        return Answer()

    async def _tail(self, call: Call) -> Answer:
        wanted = options(call.arguments[0], TailOptions)
        if not 0 < wanted.count <= AUDIT_TAIL_MAX:
            raise UsageError(f"count: 1 to {AUDIT_TAIL_MAX} records")
        if wanted.hash:
            if not _HASH.match(wanted.hash):
                raise UsageError("hash: 64 hexadecimal digits")
            return Answer(values=(self._parts.manager.chain.find(wanted.hash),))
        return Answer(values=(self._parts.manager.chain.tail(wanted.count),))

    async def _verify(self, call: Call) -> Answer:
        options(call.arguments[0], NoOptions)
        return Answer(values=(self._parts.manager.chain.verify() or "",))

    async def _audit_key(self, call: Call) -> Answer:
        options(call.arguments[0], NoOptions)
        return Answer(values=(self._parts.mediation.receipts.public(),))

    async def _doctor(self, call: Call, view: View) -> Answer:
        options(call.arguments[0], NoOptions)
        manager, mediation, recovery = self._parts.manager, self._parts.mediation, self._parts.recovery
        host = await manager.describe()
        fault = mediation.policy.fault
        owners = [cage.record.owner for cage in view.cages] if view.whole else []
        checks = doctor.examine(
            host, authorisation=await self._parts.authorization.health(), labels=len(manager.levels.names),
            # The text of the policy, records, storage and menus may name cages.
            policy_fault=fault if view.whole or fault is None else NO_POLICY,
            policy_faults=len(mediation.check()) if view.whole else 0, idle=self._parts.halves.missing(),
            unseen=self._parts.asking.unseen(view.person),
            unenforced={cage.name: cage.unenforced for cage in view.cages},
            orphans=recovery.orphans if view.whole else (),
            strangers=await asyncio.to_thread(doctor.unknown_owners, owners),
            faults=(*recovery.faults, *self._parts.applications.faults) if view.whole else (), counted=view.whole)
        shown = [text({"check": c.check, "state": c.state.value, "detail": c.detail, "help": c.help}) for c in checks]
        return Answer(values=(shown,))


def channel(started: Started) -> Answer:
    return Answer(values=(0,), descriptors=(started.channel,))


def _begun(begun: Begun) -> Answer:
    return Answer(values=(begun.job, *range(len(begun.descriptors))), descriptors=begun.descriptors)


def _properties(cage: Cage) -> dict[str, Variant]:
    definition = cage.record.definition
    return {
        "Name": Variant("s", cage.name), "Uuid": Variant("s", cage.uuid), "State": Variant("s", cage.state.value),
        "Level": Variant("s", cage.level), "Compartments": Variant("as", sorted(definition.compartments)),
        "Ephemeral": Variant("b", cage.record.ephemeral), "Owner": Variant("u", cage.record.owner),
        "Autostart": Variant("b", cage.enabled),
    }
