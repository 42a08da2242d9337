# SPDX-License-Identifier: LGPL-2.1-or-later
"""The core half: takes a descriptor from one cage's gateway, stages it, and has it delivered in another.

Law of this room: it decides nothing.  caged is asked before anything is read from the descriptor and again before
anything is delivered, each time for the instance whose gateway the call came through; what comes of a permitted
transfer is recorded, whatever it is.  Of what the target makes of it the source hears, unless both are at the same
level, whether it arrived, and nothing else, not even under which name: every word more would be the target's to choose.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import signal
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cage_runtime import folders, log
from cage_runtime.bus import Answer, Bus, Call, Service
from cage_runtime.config import RuntimeConfig, load_runtime
from cage_runtime.confine import confine
from cage_runtime.errors import CageError, PolicyRefused, TransferFailed, UsageError
from cage_runtime.model import (
    DELIVERY_BYTES_PER_SECOND,
    DELIVERY_SECONDS,
    TRANSFER_SECONDS,
    TRANSFERS_PER_CAGE,
    TRANSFERS_PER_PAIR,
    Flow,
    check_cage_name,
)
from cage_runtime.text import escape
from mediators import session, wire
from mediators.files import protocol
from mediators.files.stage import Staged, Stager
from mediators.wire import Caged, Gateway, Permission, What

LOG = logging.getLogger(__name__)


@dataclass(kw_only=True, slots=True)
class Transfer:
    """One request that policy permitted: the instance it came from, what it said, what was decided, how it goes."""

    source: Gateway
    request: str
    target_name: str
    name: str
    permission: Permission
    details: dict[str, str]
    """What the record says of it."""
    places: contextlib.ExitStack
    """Those that it takes among the transfers under way."""
    in_target: bool = False
    """The target has a part in it from now on."""
    may_be_there: bool = False
    """The target has been told to give it its name."""


def delivery_seconds(size: int) -> float:
    """The time that a target's delivery half has to receive so many bytes."""
    return min(DELIVERY_SECONDS + size / DELIVERY_BYTES_PER_SECOND, TRANSFER_SECONDS)


class FilesCore:
    """Serves org.cageruntime.Files1 on every gateway."""

    def __init__(self, *, caged: Caged, stager: Stager) -> None:
        self._caged, self._stager = caged, stager
        self._under_way: Counter[tuple[str, ...]] = Counter()
        self._interface = wire.interface("files")

    async def serve(self, gateway: Gateway, bus: Bus) -> None:
        send = functools.partial(self._send, gateway)
        bus.malformed = functools.partial(self._malformed, gateway)
        bus.serve(protocol.PATH, Service(interface=self._interface, handlers={protocol.SEND: send}))
        await bus.follow_callers()

    async def _malformed(self, source: Gateway, error: UsageError) -> None:
        try:
            await self._caged.record_malformed(source, protocol.SERVICE, error.sentence)
        except CageError as failure:
            LOG.error("not recorded: %s: %s", escape(error.sentence), escape(failure.sentence))

    async def _send(self, source: Gateway, call: Call) -> Answer:
        untrusted_target, untrusted_name, _index, untrusted_options = call.arguments
        wire.no_options(untrusted_options)
        descriptor = wire.only_descriptor(call, 2)
        name, target = protocol.check_file_name(untrusted_name), check_cage_name(untrusted_target)
        request = wire.new_request()
        permission = await self._caged.decide(source.uuid, protocol.SERVICE, "", target, request)
        pair = source.uuid, permission.target_uuid
        with contextlib.ExitStack() as places:
            places.enter_context(self._place((source.uuid,), TRANSFERS_PER_CAGE, "of this cage"))
            places.enter_context(self._place(pair, TRANSFERS_PER_PAIR, "of this cage to that one"))
            transfer = Transfer(source=source, request=request, target_name=target, name=name, permission=permission,
                                details={"name": name, "request": request}, places=places)
            return Answer(values=(await self._transfer(transfer, descriptor),))

    @contextlib.contextmanager
    def _place(self, whose: tuple[str, ...], most: int, which: str) -> Iterator[None]:
        """One of the `most` transfers that may be under way at once; TransferFailed where all of them are."""
        if self._under_way[whose] >= most:
            raise TransferFailed(f"{most} transfers {which} are under way; wait until one has ended")
        self._under_way[whose] += 1
        try:
            yield
        finally:
            self._under_way[whose] -= 1
            if not self._under_way[whose]:
                del self._under_way[whose]

    async def _transfer(self, transfer: Transfer, descriptor: int) -> str:
        """Stage, decide again, deliver, record; returns the path in the target's home, or, where the source may not
        hear which name the target gave it, that of the directory."""
        try:
            staged = await self._staged(transfer, descriptor)
            transfer.details |= {"size": str(staged.size), "sha256": staged.sha256}
            try:
                arrived = await self._deliver(transfer, staged)
            finally:
                staged.discard()
        except (CageError, OSError) as error:
            await self._record_outcome(transfer, error.sentence if isinstance(error, CageError) else str(error))
            if not transfer.in_target or transfer.permission.flow is Flow.LEVEL:
                raise
            raise TransferFailed(f'"{escape(transfer.name)}" did not arrive in {transfer.target_name}, which may be '
                                 "stopped or full; the core's audit log says why") from error
        except asyncio.CancelledError:
            transfer.places.close()  # whoever waits for one in the source does not wait for the record
            so_far = "it may have arrived" if transfer.may_be_there else "nothing arrived"
            await self._record_outcome(transfer, f"given up, because whoever sent it has gone; {so_far}")
            raise
        await self._record_outcome(transfer, f"arrived as {arrived}")
        return arrived if transfer.permission.flow is Flow.LEVEL else _inbox_path(transfer, "")

    async def _staged(self, transfer: Transfer, descriptor: int) -> Staged:
        try:
            return await self._stager.stage(descriptor, transfer.source.uuid, transfer.permission.max_size)
        except (TransferFailed, PolicyRefused) as error:
            raise type(error)(f'"{escape(transfer.name)}" {error.sentence}') from error

    async def _deliver(self, transfer: Transfer, staged: Staged) -> str:
        what = What(size=staged.size, files=1, sha256=staged.sha256, lines=(transfer.name,))
        permission = await self._caged.confirm(transfer.permission, what)
        target = permission.target
        transfer.permission, transfer.target_name, transfer.in_target = permission, target, True
        delivery = protocol.Delivery(
            source=permission.source_name, name=transfer.name, size=staged.size, sha256=staged.sha256
        )
        passing = functools.partial(self._passing, transfer)
        gate = session.Gate(ready=protocol.READY.encode(), passing=passing, go=signal.Signals[protocol.GO])
        channel = await self._caged.deliver(permission.target_uuid, delivery.arguments(), (staged.descriptor,),
                                            transfer.request, DELIVERY_SECONDS)
        ended = await session.run_to_end(
            channel, gate=gate, output_max=protocol.OUTPUT_MAX, seconds=delivery_seconds(staged.size))
        if ended.status:
            transfer.details["target-says"] = escape(ended.untrusted_diagnostics, limit=200)
            why = protocol.FAULTS.get(ended.status, "the delivery there failed")
            raise TransferFailed(f'"{escape(transfer.name)}" did not arrive in {target}: {why}')
        return _inbox_path(transfer, protocol.parse_arrived(ended.untrusted_output, transfer.name))

    async def _passing(self, transfer: Transfer) -> None:
        """What cannot be recorded is not done: the file gets its name in the inbox after this is in the chain."""
        await self._record(transfer, "is given its name in the inbox")
        transfer.may_be_there = True

    async def _record(self, transfer: Transfer, outcome: str) -> None:
        details = transfer.details | {"outcome": outcome}
        await self._caged.record(transfer.source, transfer.permission.target_uuid, protocol.SERVICE, details)

    async def _record_outcome(self, transfer: Transfer, outcome: str) -> None:
        """Of what has happened already, and is told whoever asked even if the chain cannot take it."""
        try:
            await self._record(transfer, outcome)
        except CageError as error:
            LOG.error("not recorded: %s: %s: %s", escape(str(transfer.details)), escape(outcome),
                      escape(error.sentence))


def _inbox_path(transfer: Transfer, name: str) -> str:
    """Where `name` is in the target's home; without one, what comes from that source, ending in a slash."""
    return f"Inbox/{transfer.permission.source_name}/{name}"


def run(arguments: list[str]) -> int:
    """`cage-mediator files [--config FILE]`; ends when the system bus does, with the status of that error."""
    log.set_up("%(name)s: %(message)s")
    try:
        if arguments and (len(arguments) != 2 or arguments[0] != "--config"):
            raise UsageError("the core half takes --config FILE and nothing else")
        config = load_runtime(Path(arguments[1]) if arguments else None)
        folders.check_present(folders.of_state(config, "staging"))
        os.umask(0o077)
        _confine(config)
        asyncio.run(serve_until_bus_ends(Stager(Path(config.paths.state, "staging"))))
    except CageError as error:
        LOG.critical("%s", error.sentence)
        return error.exit_status
    return 0


def _confine(config: RuntimeConfig) -> None:
    """To the one folder; what cages hand over is open already."""
    confine(config, "core", writable=(Path(config.paths.state, "staging"),))


async def serve_until_bus_ends(stager: Stager) -> None:
    """Serve every gateway; raises RuntimeFailure when the system bus has ended."""
    bus = await Bus.connect()
    caged = Caged(bus)
    core = FilesCore(caged=caged, stager=stager)
    try:
        await wire.Gateways(bus, caged, name=protocol.BUS_NAME, serve=core.serve).run()
    finally:
        bus.disconnect()
