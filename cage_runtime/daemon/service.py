# SPDX-License-Identifier: LGPL-2.1-or-later
"""caged on the system bus: org.cageruntime.Core1, as its XML describes it.

Law of this room: a method checks who calls, turns arguments into types, calls one thing, turns the result back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import msgspec
from dbus_fast import Variant

from cage_runtime.bus import Answer, Bus, Call, Handler, Service, described
from cage_runtime.config import convert
from cage_runtime.daemon import doctor
from cage_runtime.daemon.applications import Applications
from cage_runtime.daemon.authorization import Authorization
from cage_runtime.daemon.cage import Cage
from cage_runtime.daemon.define import CreateOptions
from cage_runtime.daemon.jobs import Jobs
from cage_runtime.daemon.manager import Manager
from cage_runtime.daemon.mediation import Mediation
from cage_runtime.daemon.sessions import SessionOptions, Sessions, Started
from cage_runtime.errors import RuntimeFailure, UsageError
from cage_runtime.model import AUDIT_TAIL_MAX, CORE_PATH
from cage_runtime.spawner import spec

RESOURCE = "org.cageruntime.Core1.xml"
MANAGER, CAGE = "org.cageruntime.Core1.Manager", "org.cageruntime.Core1.Cage"

_Options = TypeVar("_Options", bound=msgspec.Struct)


class NoOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    pass


class InstallOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    remote: str = ""


class TailOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    count: int = 20


def options(untrusted_options: dict[str, Variant], kind: type[_Options]) -> _Options:
    """The a{sv} of a call as a `kind`; UsageError names an option that is unknown or of the wrong type."""
    return convert({key: variant.value for key, variant in untrusted_options.items()}, kind)


def cage_path(name: str) -> str:
    """A cage's object path; `-` may not stand in one."""
    return f"{CORE_PATH}/cage/{name.replace('-', '_2d')}"


def _text(values: dict[str, str]) -> dict[str, Variant]:
    return {key: Variant("s", value) for key, value in values.items()}


@dataclass(frozen=True, kw_only=True, slots=True)
class Parts:
    """What the bus view calls."""

    bus: Bus
    authorization: Authorization
    manager: Manager
    sessions: Sessions
    applications: Applications
    mediation: Mediation
    jobs: Jobs


class CoreService:
    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._cage_interface = described(RESOURCE, CAGE)
        handlers: dict[str, Handler] = {
            "Create": self._create, "Destroy": self._destroy, "Start": self._start, "Stop": self._stop,
            "Enable": self._enable, "Disable": self._disable, "Pause": self._pause, "Resume": self._resume,
            "Kill": self._kill, "Enter": self._enter, "Run": self._run,
            "List": self._list, "Status": self._status, "Show": self._show, "Logs": self._logs,
            "AddRemote": self._add_remote, "RemoveRemote": self._remove_remote, "ListRemotes": self._list_remotes,
            "InstallApplication": self._install, "UpdateApplications": self._update,
            "RemoveApplication": self._remove, "ListApplications": self._list_applications,
            "CheckPolicy": self._check_policy, "ExplainPolicy": self._explain, "ReloadPolicy": self._reload,
            "TailAudit": self._tail, "VerifyAudit": self._verify, "Doctor": self._doctor,
        }
        guarded = {member: self._guarded(handler) for member, handler in handlers.items()}
        parts.bus.serve(CORE_PATH, Service(interface=described(RESOURCE, MANAGER), handlers=guarded))
        parts.bus.manage(CORE_PATH)
        parts.bus.guard = self._may_look

    def _guarded(self, handler: Handler) -> Handler:
        async def guarded(call: Call) -> Answer:
            await self._parts.authorization.person(call.sender, call.member)
            return await handler(call)

        return guarded

    async def _may_look(self, call: Call) -> None:
        """Names and levels of cages are for the administrator alone, however they are asked for."""
        await self._parts.authorization.person(call.sender, call.member)

    def changed(self, cage: Cage, present: bool) -> None:
        """Keep the cage's object in step with it."""
        path = cage_path(cage.name)
        if not present:
            self._parts.bus.withdraw(path)
            self._parts.bus.emit(CORE_PATH, MANAGER, "CageRemoved", "so", (cage.name, path))
            return
        new = self._parts.bus.serve(path, Service(
            interface=self._cage_interface, properties=lambda: _properties(cage)))
        if new:
            self._parts.bus.emit(CORE_PATH, MANAGER, "CageAdded", "so", (cage.name, path))
        else:
            changed = {"State": Variant("s", cage.state.value), "Autostart": Variant("b", cage.enabled)}
            self._parts.bus.properties_changed(path, CAGE, changed)

    # --- lives -----------------------------------------------------------------------------------------------
    async def _create(self, call: Call) -> Answer:
        owner = await self._parts.bus.uid_of(call.sender)
        wanted = options(call.arguments[1], CreateOptions)
        cage = await self._parts.manager.create(call.arguments[0], wanted, owner)
        return Answer(values=(cage_path(cage.name),))

    def _find(self, call: Call, kind: type[_Options]) -> tuple[Cage, _Options]:
        return self._parts.manager.find(call.arguments[0]), options(call.arguments[-1], kind)

    async def _destroy(self, call: Call) -> Answer:
        cage, _ = self._find(call, NoOptions)
        await self._parts.manager.destroy(cage)
        self._parts.applications.forget(cage)
        return Answer()

    async def _start(self, call: Call) -> Answer:
        cage, _ = self._find(call, NoOptions)
        await self._parts.manager.start(cage)
        return Answer()

    async def _stop(self, call: Call) -> Answer:
        cage, _ = self._find(call, NoOptions)
        await self._parts.manager.stop(cage)
        return Answer()

    async def _kill(self, call: Call) -> Answer:
        cage, _ = self._find(call, NoOptions)
        await self._parts.manager.stop(cage, seconds=0)
        return Answer()

    async def _enable(self, call: Call) -> Answer:
        cage, _ = self._find(call, NoOptions)
        await self._parts.manager.enable(cage, enabled=True)
        return Answer()

    async def _disable(self, call: Call) -> Answer:
        cage, _ = self._find(call, NoOptions)
        await self._parts.manager.enable(cage, enabled=False)
        return Answer()

    async def _pause(self, call: Call) -> Answer:
        cage, _ = self._find(call, NoOptions)
        await self._parts.manager.freeze(cage, frozen=True)
        return Answer()

    async def _resume(self, call: Call) -> Answer:
        cage, _ = self._find(call, NoOptions)
        await self._parts.manager.freeze(cage, frozen=False)
        return Answer()

    # --- commands --------------------------------------------------------------------------------------------
    async def _enter(self, call: Call) -> Answer:
        cage, wanted = self._find(call, SessionOptions)
        return _channel(await self._parts.sessions.enter(cage, call.arguments[1], wanted))

    async def _run(self, call: Call) -> Answer:
        cage, wanted = self._find(call, SessionOptions)
        return _channel(await self._parts.sessions.run(cage, call.arguments[1], call.arguments[2], wanted))

    # --- showing ---------------------------------------------------------------------------------------------
    async def _list(self, call: Call) -> Answer:
        options(call.arguments[0], NoOptions)
        return Answer(values=([await self._summary(cage) for cage in self._parts.manager.cages()],))

    async def _summary(self, cage: Cage) -> dict[str, Variant]:
        definition = cage.record.definition
        insight = await self._parts.manager.inspect(cage)
        return {
            **_text({"name": cage.name, "uuid": cage.uuid, "state": cage.state.value, "level": cage.level}),
            "compartments": Variant("as", sorted(definition.compartments)),
            "ephemeral": Variant("b", cage.record.ephemeral),
            "autostart": Variant("b", cage.enabled),
            "processes": Variant("u", insight.processes),
            "documents": Variant("b", insight.documents),
        }

    async def _status(self, call: Call) -> Answer:
        cage, _ = self._find(call, NoOptions)
        definition = cage.record.definition
        more = {"description": definition.description, "created": cage.record.created, "since": cage.since,
                "home": "in memory" if cage.record.ephemeral else "persistent"}
        return Answer(values=({
            **await self._summary(cage), **_text(more),
            "applications": Variant("as", list(definition.apps.allow)),
            "unenforced": Variant("as", list(cage.unenforced)),
        },))

    async def _show(self, call: Call) -> Answer:
        cage, _ = self._find(call, NoOptions)
        return Answer(values=(self._parts.manager.shown(cage),))

    async def _logs(self, call: Call) -> Answer:
        cage, _ = self._find(call, NoOptions)
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
        return Answer(values=([_text({"name": name, "url": url, "key": key}) for name, url, key in remotes],))

    async def _install(self, call: Call) -> Answer:
        cage, wanted = self._find(call, InstallOptions)
        application = call.arguments[1]
        work = self._parts.applications.install(cage, application, wanted.remote)
        return Answer(values=(self._parts.jobs.start(f"install {application} in {cage.name}", work),))

    async def _update(self, call: Call) -> Answer:
        cage, _ = self._find(call, NoOptions)
        work = self._parts.applications.update(cage)
        return Answer(values=(self._parts.jobs.start(f"update the applications of {cage.name}", work),))

    async def _remove(self, call: Call) -> Answer:
        cage, _ = self._find(call, NoOptions)
        application = call.arguments[1]

        async def work() -> dict[str, str]:
            await self._parts.applications.remove(cage, application)
            return {"application": application}

        return Answer(values=(self._parts.jobs.start(f"remove {application} from {cage.name}", work()),))

    async def _list_applications(self, call: Call) -> Answer:
        cage, _ = self._find(call, NoOptions)
        installed = await self._parts.applications.installed()
        entries = [installed.get(name, {"application": name, "commit": "", "runtime": "", "remote": ""})
                   for name in cage.record.definition.apps.allow]
        keys = ("application", "commit", "runtime", "remote")
        return Answer(values=([_text({key: entry[key] for key in keys}) for entry in entries],))

    # --- policy and record -----------------------------------------------------------------------------------
    async def _check_policy(self, call: Call) -> Answer:
        options(call.arguments[0], NoOptions)
        return Answer(values=(self._parts.mediation.check(),))

    async def _explain(self, call: Call) -> Answer:
        source, service, argument, target, given = call.arguments
        options(given, NoOptions)
        decision = self._parts.mediation.explain(source, service, argument, target)
        shown = {"action": decision.action.value, "rule": decision.rule, "reason": decision.reason,
                 "flow": decision.flow.value if decision.flow else ""}
        return Answer(values=(_text(shown),))

    async def _reload(self, call: Call) -> Answer:
        options(call.arguments[0], NoOptions)
        self._parts.mediation.reload()
        return Answer()

    async def _tail(self, call: Call) -> Answer:
        wanted = options(call.arguments[0], TailOptions)
        if not 0 < wanted.count <= AUDIT_TAIL_MAX:
            raise UsageError(f"count: 1 to {AUDIT_TAIL_MAX} records")
        return Answer(values=(self._parts.manager.chain.tail(wanted.count),))

    async def _verify(self, call: Call) -> Answer:
        options(call.arguments[0], NoOptions)
        return Answer(values=(self._parts.manager.chain.verify() or "",))

    async def _doctor(self, call: Call) -> Answer:
        options(call.arguments[0], NoOptions)
        spawner = self._parts.manager.spawner
        host = (await spawner.ask(spec.Describe(id=spawner.number()))).host
        if host is None:
            raise RuntimeFailure("the spawner does not describe this host")
        polkit = await self._parts.bus.has_owner("org.freedesktop.PolicyKit1")
        checks = doctor.examine(host, polkit=polkit, policy_fault=self._parts.mediation.policy.fault,
                                policy_faults=len(self._parts.mediation.check()),
                                labels=len(self._parts.manager.levels.names),
                                unenforced={c.name: c.unenforced for c in self._parts.manager.cages()},
                                orphans=self._parts.manager.orphans,
                                faults=(*self._parts.manager.faults, *self._parts.applications.faults))
        shown = [_text({"check": c.check, "state": c.state.value, "detail": c.detail, "help": c.help}) for c in checks]
        return Answer(values=(shown,))


def _channel(started: Started) -> Answer:
    return Answer(values=(0,), descriptors=(started.channel,))


def _properties(cage: Cage) -> dict[str, Variant]:
    definition = cage.record.definition
    return {
        "Name": Variant("s", cage.name), "Uuid": Variant("s", cage.uuid), "State": Variant("s", cage.state.value),
        "Level": Variant("s", cage.level), "Compartments": Variant("as", sorted(definition.compartments)),
        "Ephemeral": Variant("b", cage.record.ephemeral), "Autostart": Variant("b", cage.enabled),
    }


class MediationService:
    """org.cageruntime.Core1.Mediation, for the core halves of mediators alone."""

    INTERFACE = "org.cageruntime.Core1.Mediation"

    def __init__(self, parts: Parts, standing: Callable[[], list[tuple[str, str, str]]]) -> None:
        self._parts, self._standing = parts, standing
        self._listening: dict[str, str] = {}
        """The connection of each mediator's core half that has asked for the gateways."""
        handlers: dict[str, Handler] = {
            "Gateways": self._gateways, "Decide": self._decide, "Deliver": self._deliver, "Record": self._record,
            "RecordMalformed": self._record_malformed,
        }
        parts.bus.serve(CORE_PATH, Service(interface=described(RESOURCE, self.INTERFACE), handlers=handlers))

    def up(self, name: str, uuid: str, address: str) -> None:
        self._tell("GatewayUp", "sss", (name, uuid, address))

    def down(self, uuid: str) -> None:
        self._tell("GatewayDown", "s", (uuid,))

    def _tell(self, member: str, signature: str, arguments: tuple[str, ...]) -> None:
        for connection in self._listening.values():
            self._parts.bus.emit(CORE_PATH, self.INTERFACE, member, signature, arguments, to=connection)

    async def _gateways(self, call: Call) -> Answer:
        self._listening[await self._parts.authorization.mediator(call.sender)] = call.sender
        return Answer(values=([list(entry) for entry in self._standing()],))

    async def _decide(self, call: Call) -> Answer:
        mediator = await self._parts.authorization.mediator(call.sender)
        permission = self._parts.mediation.decide(mediator, *call.arguments)
        return Answer(values=(permission.target.uuid, permission.source.name, permission.max_size,
                              permission.flow.value))

    async def _deliver(self, call: Call) -> Answer:
        mediator = await self._parts.authorization.mediator(call.sender)
        target, arguments, index = call.arguments
        descriptor = call.descriptors[index]
        return _channel(await self._parts.mediation.deliver(target, mediator, arguments, descriptor))

    async def _record(self, call: Call) -> Answer:
        mediator = await self._parts.authorization.mediator(call.sender)
        self._parts.mediation.note(mediator, *call.arguments)
        return Answer()

    async def _record_malformed(self, call: Call) -> Answer:
        mediator = await self._parts.authorization.mediator(call.sender)
        self._parts.mediation.malformed(mediator, *call.arguments)
        return Answer()
