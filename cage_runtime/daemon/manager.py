# SPDX-License-Identifier: LGPL-2.1-or-later
"""The life of cages: create, start, stop, pause, destroy; recovery.py finds them again after a restart.

Law of this room: it decides and records, it does nothing itself: what needs a privilege is asked of the spawner.  A
cage exists from the moment its directory is in the registry until the moment it is not; everything before is undone,
everything after is finished, if not now then at the next start.
"""

from __future__ import annotations

import contextlib
import logging
import uuid as uuids
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from contextvars import ContextVar

import msgspec

from cage_runtime.audit.chain import Chain
from cage_runtime.audit.event import Kind
from cage_runtime.audit.event import Record as Recorded
from cage_runtime.config import Definition, Paths, render_definition
from cage_runtime.daemon import history
from cage_runtime.daemon.cage import Cage, no_such_cage
from cage_runtime.daemon.define import (
    CreateOptions,
    birth_limits,
    check_label,
    check_session,
    compose,
    home_bounds,
)
from cage_runtime.daemon.gateway import Gateways
from cage_runtime.daemon.lives import Lives
from cage_runtime.daemon.spawner import SpawnerClient, SpawnerEnded
from cage_runtime.daemon.state import Record, Registry, moment, now
from cage_runtime.daemon.walls import Standing, around, check_required, missing
from cage_runtime.errors import (
    CageError,
    DefinitionError,
    NameTaken,
    NoSuchCage,
    RuntimeFailure,
    SpawnerUnavailable,
    UsageError,
)
from cage_runtime.model import (
    CAGES_MAX,
    CAGES_PER_PERSON,
    DEFAULT_TASKS,
    DISPOSABLE_SECONDS,
    REPEATS_MAX,
    ROOT_UID,
    STOP_SECONDS,
    CageState,
    Levels,
    Wall,
    check_cage_name,
)
from cage_runtime.spawner import spec
from cage_runtime.text import escape

LOG = logging.getLogger(__name__)
ACTING: ContextVar[int | None] = ContextVar("acting", default=None)
"""The uid of whoever's call is being carried out, a job that it began included; None where nobody asked for it."""


class Manager:
    def __init__(self, *, paths: Paths, levels: Levels, registry: Registry, spawner: SpawnerClient, chain: Chain,
                 gateways: Gateways, lives: Lives, changed: Callable[[Cage, bool], None]) -> None:
        self.levels = levels
        self.spawner = spawner
        self.chain = chain
        self._paths, self._registry, self._gateways, self._changed = paths, registry, gateways, changed
        self._lives = lives
        self.over: Callable[[Cage], None] = lambda _cage: None
        """Called of a disposable cage that does not run any more, perhaps again: it is to be destroyed."""
        self.started: Callable[[Cage], Awaitable[None]] | None = None
        """Called under the lock of a cage that has just started or been adopted from nothing."""
        self._cages: dict[str, Cage] = {}
        self._coming: dict[str, int] = {}
        """Names that are being created, and the uids of whom for."""
        self.in_hand: set[str] = set()
        """Uuids of cages that are being created, started or destroyed: `look` leaves them to whoever does that."""
        self.controllers: frozenset[str] = frozenset()
        self.lacking: Mapping[Wall, str] = {}
        """Walls that the host lacks, and why."""

    # --- finding ---------------------------------------------------------------------------------------------
    def cages(self) -> list[Cage]:
        return [self._cages[name] for name in sorted(self._cages)]

    def get(self, untrusted_name: str) -> Cage | None:
        return self._cages.get(untrusted_name)

    def find(self, untrusted_name: str) -> Cage:
        """The cage of that name; NoSuchCage where there is none."""
        cage = self.get(untrusted_name)
        if cage is None:
            raise no_such_cage(untrusted_name)
        return cage

    def is_taken(self, name: str) -> bool:
        """Whether there is a cage of that name, or is about to be."""
        return name in self._cages or name in self._coming

    def by_uuid(self, uuid: str) -> Cage | None:
        return next((cage for cage in self._cages.values() if cage.uuid == uuid), None)

    def record(self, kind: Kind, cage: Cage | None = None, fields: Mapping[str, str] | None = None) -> Recorded:
        """Append to the audit chain, and whose call it was; the record as it was written.

        Of an ephemeral cage, its comings and goings need not be durable.
        """
        by = ACTING.get()
        whose = {} if by is None else {"by": str(by)}
        about = {"cage": cage.name, "uuid": cage.uuid} if cage else {}
        durable = not (cage and cage.record.ephemeral)
        return self.chain.append(kind, {**about, **whose, **(fields or {})}, durable=durable)

    # --- the table -------------------------------------------------------------------------------------------
    def admit(self, record: Record) -> Cage:
        """A cage of the registry, in the table too; FAILED where its record or its label is not to be trusted."""
        label = None
        fault = record.fault
        try:
            label = self.levels.label(record.definition.level, record.definition.compartments)
        except UsageError as error:
            fault = fault or error.sentence
        cage = Cage(record=record, label=None if fault else label)
        if fault:
            cage.state, cage.unenforced = CageState.FAILED, (fault,)
        self._cages[record.name] = cage
        self._changed(cage, True)
        return cage

    def set_state(self, cage: Cage, state: CageState) -> None:
        """Have the cage be in `state`, and whoever follows it told."""
        cage.state = state
        if state is CageState.RUNNING:
            self._lives.begin(cage.uuid)
        elif state in (CageState.STOPPED, CageState.FAILED):
            self._lives.end(cage.uuid)
            cage.since = ""
        self._changed(cage, True)

    def ended(self, cage: Cage) -> None:
        """Nothing runs in the cage any more; its record is the caller's."""
        self._gateways.close(cage.uuid)
        if cage.state is not CageState.FAILED:
            self.set_state(cage, CageState.STOPPED)
        if cage.record.disposable:
            self.over(cage)

    def on_ended(self, uuid: str) -> None:
        """The spawner says that a cage ended by itself."""
        cage = self.by_uuid(uuid)
        if cage is not None and cage.state in (CageState.RUNNING, CageState.PAUSED):
            self.ended(cage)
            self.record(Kind.CAGE_STOPPED, cage, {"why": "its last process, cage-init, ended"})

    def forget(self, cage: Cage) -> None:
        """What there was of the cage is gone, and so is the cage."""
        self._gateways.close(cage.uuid)
        self._lives.end(cage.uuid)
        self._registry.remove(cage.record)
        del self._cages[cage.name]
        self._changed(cage, False)

    async def clear(self, uuid: str, *, stored: bool = False) -> None:
        """End what runs of an unfinished create or destroy, and remove its storage unless that is kept."""
        LOG.warning("removing what is left of %s", uuid)
        await self.spawner.ask(spec.Stop(id=self.spawner.number(), uuid=uuid, seconds=0))
        if stored:
            return
        await self.spawner.ask(spec.Remove(id=self.spawner.number(), uuid=uuid))
        self.record(Kind.RECOVERED, None, {"uuid": uuid, "what": "removed what was left of a cage"})

    # --- life ------------------------------------------------------------------------------------------------
    def define(self, options: CreateOptions) -> Definition:
        """The definition that `options` ask for, if this host can have a cage like that."""
        definition = compose(options, self._paths)
        check_label(definition, options, self.levels)
        check_session(definition, options)
        birth_limits(definition, self.controllers)
        check_required(definition, self.lacking)
        return definition

    async def create(self, untrusted_name: str, definition: Definition, *, owner: int, start: bool,
                     caller: str = "") -> Cage:
        """Give the cage storage and start it; after an error nothing of it is there.  `caller` is the uuid of the cage
        that a disposable one is for."""
        name = check_cage_name(untrusted_name)
        if self.is_taken(name):
            raise NameTaken(f'there is a cage "{name}" already; choose another name, or cagectl destroy {name}')
        self._check_room(owner)
        record = Record(name=name, uuid=uuids.uuid4().hex, created=now(), owner=owner, definition=definition,
                        caller=caller)
        self._coming[name] = owner
        self.in_hand.add(record.uuid)
        try:
            return await self._make(record, start=start)
        finally:
            del self._coming[name]
            self.in_hand.discard(record.uuid)

    def _check_room(self, owner: int) -> None:
        """RuntimeFailure where there are as many cages as there may be, on the host or of `owner`."""
        owners = [*self._coming.values(), *(cage.record.owner for name, cage in self._cages.items()
                                            if name not in self._coming)]
        if len(owners) >= CAGES_MAX:
            raise RuntimeFailure(f"this host has {CAGES_MAX} cages already; destroy one that is not needed")
        if owner != ROOT_UID and owners.count(owner) >= CAGES_PER_PERSON:
            raise RuntimeFailure(f"you have {CAGES_PER_PERSON} cages already; destroy one that you do not need")

    async def _make(self, record: Record, *, start: bool) -> Cage:
        try:
            make = spec.MakeStorage(id=self.spawner.number(), uuid=record.uuid, ephemeral=record.ephemeral,
                                    private=record.definition.session.private)
            await self._once(make, spec.Remove(id=self.spawner.number(), uuid=record.uuid))
            self._registry.add(record)
        except (CageError, OSError) as error:
            await self.clear(record.uuid)
            if isinstance(error, OSError):
                raise RuntimeFailure(f"{record.name} could not be written down: {error.strerror}") from error
            raise
        cage = self.admit(record)
        try:
            caller = {"caller": record.caller} if record.disposable else {}
            self.record(Kind.CAGE_CREATED, cage, {"level": record.definition.level, **caller})
            if start:
                async with cage.lock:
                    await self._start(cage)
            if not record.ephemeral:
                # The last step: until now nothing of the cage was worth keeping.
                await self.spawner.ask(spec.Keep(id=self.spawner.number(), uuid=record.uuid))
        except CageError as error:
            with contextlib.suppress(RuntimeFailure):  # of a chain that is full this may be the reason
                self.record(Kind.CAGE_DESTROYED, cage, {"why": f"it could not be made: {error.sentence}"})
            with contextlib.suppress(SpawnerUnavailable):  # what was never kept is not missed by anybody
                await self._condemn(cage)
            await self._unmake(cage)
            raise
        return cage

    async def _once(self, request: spec.MakeStorage | spec.Birth, undoing: spec.Remove | spec.Stop) -> spec.Reply:
        """Ask for what may not be done twice: where the spawner ends at it, it is undone before it is asked again."""
        for _ in range(REPEATS_MAX):
            with contextlib.suppress(SpawnerEnded):
                return await self.spawner.ask(msgspec.structs.replace(request, id=self.spawner.number()))
            LOG.warning("%s is undone and done again for %s", type(request).__name__, request.uuid)
            await self.spawner.ask(msgspec.structs.replace(undoing, id=self.spawner.number()))
        return await self.spawner.ask(msgspec.structs.replace(request, id=self.spawner.number()))

    @asynccontextmanager
    async def held(self, cage: Cage) -> AsyncIterator[None]:
        """The cage's lock; NoSuchCage where it was destroyed meanwhile, also if its name has come again (M17)."""
        async with cage.lock:
            if self._cages.get(cage.name) is not cage:
                raise NoSuchCage(f'there is no cage "{cage.name}" any more')
            yield

    async def start(self, cage: Cage) -> None:
        """Set the cage up; one that runs already goes on as it is."""
        async with self.held(cage):
            if cage.state is CageState.RUNNING:
                return
            cage.require(CageState.STOPPED, CageState.FAILED)
            self.in_hand.add(cage.uuid)
            try:
                await self._start(cage)
            finally:
                self.in_hand.discard(cage.uuid)

    async def _start(self, cage: Cage) -> None:
        definition = cage.record.definition
        cage.instance()
        limits, unenforced = birth_limits(definition, self.controllers)
        check_required(definition, self.lacking)
        home_bytes, home_files = home_bounds(definition)
        before, born_here = cage.state, False
        self.set_state(cage, CageState.STARTING)
        try:
            birth = spec.Birth(
                id=self.spawner.number(), uuid=cage.uuid, name=cage.name, level=definition.level,
                compartments=list(definition.compartments), exec_home=definition.session.exec_home, limits=limits,
                processes=definition.limits.tasks or DEFAULT_TASKS, home_bytes=home_bytes, home_files=home_files,
                private=cage.private, require=[Wall(name) for name in definition.require],
                disposable=DISPOSABLE_SECONDS if cage.record.disposable else 0.0,
            )
            born = await self._once(birth, spec.Stop(id=self.spawner.number(), uuid=cage.uuid, seconds=0))
            born_here = True
            self._gateways.open(cage.name, cage.uuid)
            await self._gateways.admitted(cage.uuid)
        except (CageError, OSError) as error:
            if born_here:
                self._gateways.close(cage.uuid)
                await self.spawner.ask(spec.Stop(id=self.spawner.number(), uuid=cage.uuid, seconds=0))
            self.set_state(cage, before)
            self.record(Kind.CAGE_FAILED, cage, {"why": str(error)})
            if isinstance(error, OSError):
                raise RuntimeFailure(f"{cage.name} could not be started: {error}") from error
            raise
        cage.unenforced, cage.since = unenforced, moment(born.since)
        self.set_state(cage, CageState.RUNNING)
        try:
            self.record(Kind.CAGE_STARTED, cage)
        except RuntimeFailure:
            await self.spawner.ask(spec.Stop(id=self.spawner.number(), uuid=cage.uuid, seconds=0))
            self.ended(cage)
            raise
        if self.started is not None:
            await self.started(cage)

    async def stop(self, cage: Cage, *, seconds: float = STOP_SECONDS) -> None:
        """End the cage's processes, politely first; a stopped cage stays stopped."""
        async with self.held(cage):
            if cage.state in (CageState.STOPPED, CageState.FAILED):
                return
            await self._stop(cage, seconds)

    async def _stop(self, cage: Cage, seconds: float) -> None:
        # Before it is done, as everything here: what cannot be recorded is not done.
        self.record(Kind.CAGE_STOPPED, cage)
        self._lives.end(cage.uuid)
        ran = cage.state is CageState.RUNNING  # a paused one does not answer
        self.set_state(cage, CageState.STOPPING)
        if ran and seconds > 0 and not cage.private:
            with contextlib.suppress(CageError):  # a cage that does not answer ends without its log
                cage.log = await self._printed(cage)
        await self.spawner.ask(spec.Stop(id=self.spawner.number(), uuid=cage.uuid, seconds=seconds))
        self.ended(cage)

    async def freeze(self, cage: Cage, *, frozen: bool) -> None:
        """Pause or resume every process of the cage."""
        async with self.held(cage):
            wanted = CageState.PAUSED if frozen else CageState.RUNNING
            if cage.state is wanted:
                return
            cage.require(CageState.RUNNING if frozen else CageState.PAUSED)
            self.record(Kind.CAGE_PAUSED if frozen else Kind.CAGE_RESUMED, cage)
            await self.spawner.ask(spec.Freeze(id=self.spawner.number(), uuid=cage.uuid, frozen=frozen))
            self.set_state(cage, wanted)

    async def destroy(self, cage: Cage, why: str = "") -> None:
        """Stop the cage and delete all of it; `why` where nobody has asked for it."""
        async with self.held(cage):
            self.in_hand.add(cage.uuid)
            try:
                self.record(Kind.CAGE_DESTROYED, cage, {"why": why} if why else {})
                await self._condemn(cage)
                await self._unmake(cage)
            finally:
                self.in_hand.discard(cage.uuid)

    async def _condemn(self, cage: Cage) -> None:
        """From here on the cage's storage will be deleted, whatever is cut off."""
        if not cage.record.ephemeral:
            await self.spawner.ask(spec.Condemn(id=self.spawner.number(), uuid=cage.uuid))

    async def _unmake(self, cage: Cage) -> None:
        """Forget the cage and end it; where that is cut off, `look` finishes it."""
        self._registry.remove(cage.record)
        self.set_state(cage, CageState.STOPPING)
        self._gateways.close(cage.uuid)
        try:
            await self.spawner.ask(spec.Stop(id=self.spawner.number(), uuid=cage.uuid, seconds=0))
            await self.spawner.ask(spec.Remove(id=self.spawner.number(), uuid=cage.uuid))
            self._lives.end(cage.uuid)
        finally:
            del self._cages[cage.name]
            self._changed(cage, False)

    # --- definitions -----------------------------------------------------------------------------------------
    def redefine(self, cage: Cage, definition: Definition) -> None:
        """Write a changed definition; what it means for a running cage is the caller's.

        DefinitionError where the one that is there cannot be read: it would be lost, and its level with it.
        """
        if cage.record.fault:
            raise DefinitionError(cage.record.fault)
        try:
            cage.record = self._registry.redefine(cage.record, definition)
        except OSError as error:
            raise RuntimeFailure(f"the definition of {cage.name} cannot be written: {error.strerror}") from error

    async def enable(self, cage: Cage, *, enabled: bool) -> None:
        """Have the cage started with the host from its next start on, or not any more."""
        async with self.held(cage):
            if cage.record.fault:
                raise DefinitionError(cage.record.fault)
            if enabled and cage.record.ephemeral:
                raise UsageError(f"{cage.name} is ephemeral: it is gone when the host starts again, and cannot be "
                                 "started with it")
            definition = cage.record.definition
            if definition.session.autostart is enabled:
                return
            self.record(Kind.CAGE_ENABLED if enabled else Kind.CAGE_DISABLED, cage)
            session = msgspec.structs.replace(definition.session, autostart=enabled)
            self.redefine(cage, msgspec.structs.replace(definition, session=session))
            self._changed(cage, True)

    def shown(self, cage: Cage) -> str:
        return render_definition(cage.record.definition)

    async def logs(self, cage: Cage) -> list[str]:
        """The cage's comings and goings, then the last output of what runs detached in it."""
        lines = history.of_cage(self.chain, cage.uuid)
        if cage.state is CageState.RUNNING:
            cage.log = await self._printed(cage)
        # Marked, so that nothing that runs in a cage can print a line of ours.
        return lines + [f"| {escape(line)}" for line in cage.log.split(b"\n") if line]

    async def _printed(self, cage: Cage) -> bytes:
        """What its cage-init has of it; after the end there is what was asked for before."""
        return (await self.spawner.ask(spec.Logs(id=self.spawner.number(), uuid=cage.uuid))).log

    async def enforced(self, cage: Cage) -> tuple[list[Standing], Mapping[str, int]]:
        """The walls around the cage, and what the kernel has refused to it, by operation; nothing where it does not
        run."""
        if cage.state not in (CageState.RUNNING, CageState.PAUSED):
            return [], {}
        host = await self.describe()
        request = spec.Enforced(id=self.spawner.number(), uuid=cage.uuid)
        enforcement = (await self.spawner.ask(request)).enforcement
        if enforcement is None:
            raise RuntimeFailure("the spawner does not say what is enforced for the cage")
        return around(enforcement, host), enforcement.denials

    async def describe(self) -> spec.Host:
        """What the host offers, as it is now."""
        host = (await self.spawner.ask(spec.Describe(id=self.spawner.number()))).host
        if host is None:
            raise RuntimeFailure("the spawner does not describe this host")
        self.controllers, self.lacking = frozenset(host.controllers), missing(host)
        return host

    async def inspect(self, cage: Cage) -> spec.Insight:
        """How many processes there are in the cage, and whether it holds documents."""
        insight = (await self.spawner.ask(spec.Inspect(id=self.spawner.number(), uuid=cage.uuid))).insight
        if insight is None:
            raise RuntimeFailure("the spawner does not say what is in the cage")
        return insight
