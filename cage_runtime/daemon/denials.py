# SPDX-License-Identifier: LGPL-2.1-or-later
"""Recording what the kernel has refused to cages, as often as the disk of the record can bear it.

The kernel counts from a cage's birth on, and the spawner tells the counts: what is recorded is by how much they have
grown since the last record, which is kept in a file for the next core.  So a cage that tries on and on makes few
records with large numbers, and none is lost or told twice when the core or the spawner is started again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextvars import Context
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from cage_runtime.audit.event import Kind
from cage_runtime.daemon.manager import Manager
from cage_runtime.decoding import decode
from cage_runtime.errors import RuntimeFailure
from cage_runtime.model import DENIALS_SECONDS
from cage_runtime.spawner.spec import Denied

LOG = logging.getLogger(__name__)


def _later(seconds: float, what: Callable[[], None]) -> None:
    asyncio.get_running_loop().call_later(seconds, what, context=Context())


class _File(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    xid: int
    recorded: dict[str, int]


@dataclass(kw_only=True, slots=True)
class _Counts:
    """Of one life of a cage."""

    name: str
    xid: int
    """Its security context, which another life does not have."""
    recorded: dict[str, int]
    told: dict[str, int] = field(default_factory=dict)
    last: float | None = None
    """When there was a record."""
    waits: bool = False


class Denials:
    def __init__(self, manager: Manager, directory: Path, *, clock: Callable[[], float] = time.monotonic,
                 later: Callable[[float, Callable[[], None]], None] = _later) -> None:
        """In a directory of caged's own that does not outlive the boot."""
        self._manager, self._directory, self._clock, self._later = manager, directory, clock, later
        self._counts: dict[str, _Counts] = {}
        directory.mkdir(mode=0o700, exist_ok=True)

    def begin(self) -> None:
        """Forget the cages that there are no more."""
        for file in self._directory.iterdir():
            if self._manager.by_uuid(file.name) is None:
                file.unlink()

    def heard(self, event: Denied) -> None:
        """The kernel has refused that much to the cage since its birth."""
        uuid = event.uuid
        counts = self._counts.get(uuid)
        if counts is None or counts.xid != event.xid:
            cage = self._manager.by_uuid(uuid)
            if cage is None:
                return
            counts = self._counts[uuid] = _Counts(name=cage.name, xid=event.xid, recorded=self._read(uuid, event.xid))
        counts.told = dict(event.denials)
        if counts.waits:
            return
        wait = 0.0 if counts.last is None else counts.last + DENIALS_SECONDS - self._clock()
        if wait <= 0:
            self._record(uuid, counts)
        else:
            self._wait(uuid, counts, wait)

    def ended(self, uuid: str) -> None:
        """The cage has ended, and will be refused no more: what is left is recorded now."""
        counts = self._counts.pop(uuid, None)
        if counts is not None:
            self._record(uuid, counts, last=True)
        self._file(uuid).unlink(missing_ok=True)

    def _wait(self, uuid: str, counts: _Counts, seconds: float) -> None:
        def over() -> None:
            counts.waits = False
            if self._counts.get(uuid) is counts:
                self._record(uuid, counts)

        counts.waits = True
        self._later(seconds, over)

    def _record(self, uuid: str, counts: _Counts, *, last: bool = False) -> None:
        grown = {operation: count - counts.recorded.get(operation, 0) for operation, count in counts.told.items()}
        for operation, count in sorted(grown.items()):
            if count <= 0:
                continue
            fields = {"cage": counts.name, "uuid": uuid, "operation": operation, "count": str(count)}
            try:
                self._manager.record(Kind.DENIED_BY_KERNEL, None, fields)
            except RuntimeFailure as error:
                LOG.error("not recorded: %s was refused %s by the kernel: %s", counts.name, operation, error.sentence)
                if not last:
                    self._wait(uuid, counts, DENIALS_SECONDS)
                return
            counts.recorded[operation] = counts.told[operation]
            counts.last = self._clock()
            self._write(uuid, _File(xid=counts.xid, recorded=counts.recorded))

    # --- for the next core -----------------------------------------------------------------------------------
    def _file(self, uuid: str) -> Path:
        return self._directory / uuid

    def _read(self, uuid: str, xid: int) -> dict[str, int]:
        try:
            found = decode(self._file(uuid).read_bytes(), msgspec.json.Decoder(_File))
            return found.recorded if found.xid == xid else {}
        except FileNotFoundError:
            return {}
        except (OSError, msgspec.DecodeError) as error:
            LOG.warning("%s cannot be read, so that denials are recorded once more: %s", self._file(uuid), error)
            return {}

    def _write(self, uuid: str, recorded: _File) -> None:
        fresh = self._file(uuid).with_suffix(".new")
        try:
            fresh.write_bytes(msgspec.json.encode(recorded))
            fresh.rename(self._file(uuid))
        except OSError as error:
            LOG.warning("what is recorded of %s cannot be kept for the next core: %s", uuid, error)
