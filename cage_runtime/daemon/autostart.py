# SPDX-License-Identifier: LGPL-2.1-or-later
"""Enabled cages are started with the host: once a boot, a few at a time, and one that fails is no matter to the others.

Which of them are still to be started is a file under RUN, which a boot forgets.  It is written before the first start
and after each.  So a caged that was killed meanwhile is followed by one that goes on with the rest, and a caged that is
started again later in the same boot starts nothing: not what an administrator has stopped since, nor what has been
enabled since.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from pathlib import Path

import msgspec

from cage_runtime.audit.event import Kind
from cage_runtime.daemon.cage import Cage
from cage_runtime.daemon.manager import Manager
from cage_runtime.decoding import decode
from cage_runtime.errors import CageError, SpawnerUnavailable
from cage_runtime.model import CageState

LOG = logging.getLogger(__name__)
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
AT_ONCE = 4
"""Cages that are being started at one time."""
ATTEMPTS_MAX = 3
"""How often a cage is tried that the core or its spawner does not survive."""


class _Plan(msgspec.Struct, forbid_unknown_fields=True):
    """What is left to do in one boot.  In a container RUN may outlive one, so it says which."""

    boot: str
    due: dict[str, int]
    """Uuid of a cage → how often it has been tried."""


class Autostart:
    def __init__(self, manager: Manager, file: Path, boot_id: Path = BOOT_ID) -> None:
        """`file` is the plan's, and goes with RUN."""
        self._manager, self._file, self._boot_id = manager, file, boot_id
        self._plan = _Plan(boot="", due={})

    def begin(self) -> None:
        """Decide which cages are to be started: at the first start of caged in a boot, all that are enabled.

        Where that cannot be written down nothing is started, because it might be started twice.
        """
        try:
            boot = self._boot_id.read_text(encoding="ascii").strip()
            plan = self._read()
            if plan is None or plan.boot != boot:
                self._write(_Plan(boot=boot, due={cage.uuid: 0 for cage in self._manager.cages() if cage.enabled}))
            else:
                self._plan = plan
        except (OSError, msgspec.DecodeError) as error:
            LOG.error("no cage is started with the host, because %s is of no use: %s", self._file, error)

    async def run(self) -> None:
        """Start those that are due; returns when each of them has been tried."""
        waiting = iter(list(self._plan.due))
        await asyncio.gather(*(self._work(waiting) for _ in range(AT_ONCE)))

    async def _work(self, waiting: Iterator[str]) -> None:
        for uuid in waiting:
            cage = self._manager.by_uuid(uuid)
            try:
                # Asked now: it may have been disabled while it waited.
                if cage is not None and cage.enabled and cage.state not in (CageState.RUNNING, CageState.PAUSED):
                    await self._start(cage)
                # In the same step as the start's end: nobody can have stopped it yet.
                self._write(_Plan(boot=self._plan.boot, due={k: v for k, v in self._plan.due.items() if k != uuid}))
            except OSError as error:
                LOG.error("%s cannot be written: %s", self._file, error)

    async def _start(self, cage: Cage) -> None:
        why = f"the core ended each of the {ATTEMPTS_MAX} times that it was tried"
        while (attempts := self._plan.due[cage.uuid]) < ATTEMPTS_MAX:
            self._write(_Plan(boot=self._plan.boot, due={**self._plan.due, cage.uuid: attempts + 1}))
            try:
                await self._manager.start(cage)
            except SpawnerUnavailable as error:
                why = error.sentence
            except CageError as error:
                if self._manager.by_uuid(cage.uuid) is None:
                    return  # destroyed while it waited for its lock
                why = error.sentence
                break
            else:
                return
        LOG.error("%s was not started with the host: %s", cage.name, why)
        try:
            self._manager.record(Kind.AUTOSTART_FAILED, cage, {"why": why})
        except CageError as error:
            LOG.error("not recorded: %s", error.sentence)

    def _read(self) -> _Plan | None:
        try:
            return decode(self._file.read_bytes(), msgspec.json.Decoder(_Plan))
        except FileNotFoundError:
            return None

    def _write(self, plan: _Plan) -> None:
        fresh = self._file.with_name(f"{self._file.name}.new")
        fresh.write_bytes(msgspec.json.encode(plan))
        fresh.rename(self._file)
        self._plan = plan
