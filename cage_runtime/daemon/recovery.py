# SPDX-License-Identifier: LGPL-2.1-or-later
"""What stands and what is written down, brought in line: at the start, when a spawner comes back, and at the end.

Law of this room: what was cut off is finished or undone, and what somebody may miss is kept (law 10).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable

from cage_runtime.audit.event import Kind
from cage_runtime.daemon.cage import Cage
from cage_runtime.daemon.define import birth_limits
from cage_runtime.daemon.gateway import Gateways
from cage_runtime.daemon.lives import Lives
from cage_runtime.daemon.manager import Manager
from cage_runtime.daemon.state import Registry, moment
from cage_runtime.errors import CageError, HostUnsupported, RuntimeFailure
from cage_runtime.model import CageState
from cage_runtime.spawner import spec

LOG = logging.getLogger(__name__)


class Recovery:
    def __init__(self, manager: Manager, registry: Registry, gateways: Gateways, lives: Lives) -> None:
        self._manager, self._registry, self._gateways, self._lives = manager, registry, gateways, lives
        self._spawner = manager.spawner
        self.orphans: tuple[str, ...] = ()
        """Storage that is kept and belongs to no cage."""
        self._finishing: set[asyncio.Task[None]] = set()
        self._unfinished: dict[str, str] = {}
        """What could not be finished, by uuid."""

    async def recover(self) -> None:
        """Read the registry, adopt what runs, and finish what was cut off (law 10)."""
        for record in self._registry.load():
            self._manager.admit(record)
        await self.look()

    async def look(self) -> None:
        """Bring every cage's state in line with what stands, and begin to remove what stands without a cage.

        Between the spawner's answer and the last state nothing else comes in: what is asked of a spawner that has come
        back waits for this (SpawnerClient).
        """
        await self._manager.describe()
        standings = (await self._spawner.ask(spec.Standing(id=self._spawner.number()))).standings
        if standings is None:
            raise RuntimeFailure("the spawner does not say what stands")
        half_stopped = [cage for cage in self._manager.cages() if cage.state is CageState.STOPPING]
        for cage in self._manager.cages():
            if cage.uuid not in self._manager.in_hand:
                self._bring_in_line(cage, standings)
        known = {cage.uuid for cage in self._manager.cages()} | self._manager.in_hand
        self.orphans = tuple(sorted(set(standings.stored) - known))
        for uuid in self.orphans:
            # Somebody's documents: that we do not know whose is no reason to delete them.
            LOG.error("the storage of %s belongs to no cage that is known, and is kept", uuid)
        finishing = asyncio.get_running_loop().create_task(
            self._finish(standings, frozenset(known), half_stopped))
        self._finishing.add(finishing)
        finishing.add_done_callback(self._finishing.discard)

    async def last_look(self) -> None:
        """Record the ends that have come by now and have not been told: when a host shuts down, caged is told to end in
        the moment in which the last cage has.  Nobody waits for a spawner that is away."""
        if not self._spawner.is_up:
            return
        standings = (await self._spawner.ask(spec.Standing(id=self._spawner.number()))).standings
        for cage in self._manager.cages():
            if standings is not None and cage.uuid not in standings.running:
                self._manager.on_ended(cage.uuid)

    def _bring_in_line(self, cage: Cage, standings: spec.Standings) -> None:
        """Have `cage` follow what stands; what one cannot have is no reason to leave the others as they are."""
        try:
            self._follow(cage, standings)
        except (CageError, OSError) as error:
            LOG.error("%s: %s", cage.name, error)
            self._unfinished[cage.uuid] = f"{cage.name}: {error}"
        else:
            self._unfinished.pop(cage.uuid, None)

    def _follow(self, cage: Cage, standings: spec.Standings) -> None:
        if cage.uuid in standings.condemned:
            self._manager.forget(cage)
        elif cage.uuid in standings.running:
            self._adopt(cage, standings)
        elif cage.uuid in (*standings.stored, *standings.ephemeral, *standings.new):
            self._end(cage, "it ended while the core did not look")
        elif cage.record.ephemeral:
            self._manager.forget(cage)  # a reboot has taken it
        else:
            self._lose(cage)

    def _end(self, cage: Cage, why: str) -> None:
        """A cage does not run that may have; its end is recorded if nobody has done so yet."""
        if self._lives.end(cage.uuid):
            self._manager.record(Kind.CAGE_STOPPED, cage, {"why": why})
        self._manager.ended(cage)

    async def _finish(self, standings: spec.Standings, known: frozenset[str], half_stopped: list[Cage]) -> None:
        """End what was cut off and left half done; homes may take their time to delete."""
        for uuid in set(standings.new) & known:
            if uuid not in self._manager.in_hand and self._manager.by_uuid(uuid):
                await self._tried(uuid, self._spawner.ask(spec.Keep(id=self._spawner.number(), uuid=uuid)))
        for cage in half_stopped:
            if self._manager.get(cage.name) is cage and cage.state is CageState.RUNNING:
                await self._tried(cage.uuid, self._manager.stop(cage))
        unknown = {*standings.condemned, *standings.new, *standings.ephemeral, *standings.running} - known
        if self._registry.faults:
            # One of those may be the cage whose record cannot be read: what was condemned is nobody's for sure.
            unknown &= set(standings.condemned)
        for uuid in unknown:
            await self._tried(uuid, self._manager.clear(uuid, stored=uuid in standings.stored))

    async def _tried(self, uuid: str, work: Awaitable[object]) -> None:
        """`work` of finishing; what cannot be finished now is said, and tried again at the next look."""
        try:
            await work
        except CageError as error:
            LOG.error("%s: %s", uuid, error.sentence)
            self._unfinished[uuid] = error.sentence
        else:
            self._unfinished.pop(uuid, None)

    @property
    def faults(self) -> tuple[str, ...]:
        """What an administrator has to see to, a sentence each."""
        return (*self._registry.faults, *self._unfinished.values())

    def _lose(self, cage: Cage) -> None:
        """Say that a cage's storage is not there; it may be on a file system that is not mounted."""
        why = f"its storage {cage.uuid} is not there; mount or restore it, or destroy the cage"
        cage.unenforced = (f"{cage.name}: {why}",)
        self._manager.set_state(cage, CageState.FAILED)
        self._manager.record(Kind.CAGE_FAILED, cage, {"why": "its storage is not there"})

    def _adopt(self, cage: Cage, standings: spec.Standings) -> None:
        state = CageState.PAUSED if cage.uuid in standings.paused else CageState.RUNNING
        try:
            self._gateways.settle(cage.name, cage.uuid, runs=cage.uuid in standings.gateways)
        except OSError as error:
            LOG.warning("%s has ended meanwhile, or cannot be reached: %s", cage.name, error)
            self._end(cage, "it ended just then, or could not be reached")
            return
        if cage.state is not state:
            cage.unenforced = cage.unenforced or self._unenforced(cage)
            cage.since = moment(standings.running[cage.uuid])
            self._manager.set_state(cage, state)
            self._manager.record(Kind.CAGE_ADOPTED, cage)

    def _unenforced(self, cage: Cage) -> tuple[str, ...]:
        try:
            return birth_limits(cage.record.definition, self._manager.controllers)[1]
        except HostUnsupported as error:
            return (error.sentence,)
