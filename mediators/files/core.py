# SPDX-License-Identifier: LGPL-2.1-or-later
"""The core half: takes a descriptor from one cage's gateway, stages it, and has it delivered in another.

Law of this room: it decides nothing.  caged is asked before anything is read from the descriptor and again before
anything is delivered, each time for the instance whose gateway the call came through; what comes of a permitted
transfer is recorded, whatever it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cage_runtime.bus import Answer, Bus, Call, Service, described
from cage_runtime.config import load_runtime
from cage_runtime.errors import CageError, PolicyRefused, TransferFailed, UsageError
from cage_runtime.model import TRANSFER_SECONDS, TRANSFERS_PER_CAGE, check_cage_name
from cage_runtime.text import escape
from mediators import session, wire
from mediators.files import protocol
from mediators.files.stage import Staged, Stager
from mediators.wire import Caged, Decided, Gateway

LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Transfer:
    """One request that policy permitted: the instance it came from, what it said, and what was decided."""

    source: Gateway
    target_name: str
    name: str
    decided: Decided


class FilesCore:
    """Serves org.cageruntime.Files1 on every gateway."""

    def __init__(self, *, caged: Caged, stager: Stager) -> None:
        self._caged, self._stager = caged, stager
        self._under_way: Counter[str] = Counter()
        self._interface = described(protocol.DESCRIPTION, protocol.INTERFACE)

    def serve(self, gateway: Gateway, bus: Bus) -> None:
        send = functools.partial(self._send, gateway)
        bus.serve(protocol.PATH, Service(interface=self._interface, handlers={protocol.SEND: send}))

    async def _send(self, source: Gateway, call: Call) -> Answer:
        untrusted_target, untrusted_name, _index, untrusted_options = call.arguments
        wire.no_options(untrusted_options)
        descriptor = wire.only_descriptor(call, 2)
        name, target = protocol.check_file_name(untrusted_name), check_cage_name(untrusted_target)
        with self._place(source.uuid):
            decided = await self._caged.decide(source.uuid, protocol.SERVICE, "", target)
            transfer = Transfer(source=source, target_name=target, name=name, decided=decided)
            return Answer(values=(await self._transfer(transfer, descriptor),))

    @contextlib.contextmanager
    def _place(self, uuid: str) -> Iterator[None]:
        """One of the transfers that an instance may have under way; TransferFailed where it has them all."""
        if self._under_way[uuid] >= TRANSFERS_PER_CAGE:
            raise TransferFailed(f"{TRANSFERS_PER_CAGE} transfers of this cage are under way; wait until one has ended")
        self._under_way[uuid] += 1
        try:
            yield
        finally:
            self._under_way[uuid] -= 1
            if not self._under_way[uuid]:
                del self._under_way[uuid]

    async def _transfer(self, transfer: Transfer, descriptor: int) -> str:
        """Stage, decide again, deliver, record; returns the path in the target's home."""
        details = {"name": transfer.name}
        try:
            staged = await self._staged(transfer, descriptor)
            details |= {"size": str(staged.size), "sha256": staged.sha256}
            try:
                arrived = await self._deliver(transfer, staged, details)
            finally:
                os.close(staged.descriptor)
        except CageError as error:
            await self._record_outcome(transfer, details | {"outcome": error.sentence})
            raise
        await self._record_outcome(transfer, details | {"outcome": f"arrived as {arrived}"})
        return arrived

    async def _staged(self, transfer: Transfer, descriptor: int) -> Staged:
        try:
            return await self._stager.stage(descriptor, transfer.decided.max_size)
        except (TransferFailed, PolicyRefused) as error:
            raise type(error)(f'"{escape(transfer.name)}" {error.sentence}') from error

    async def _deliver(self, transfer: Transfer, staged: Staged, details: dict[str, str]) -> str:
        source, target = transfer.source, transfer.target_name
        decided = await self._caged.decide(source.uuid, protocol.SERVICE, "", target)
        if decided.target != transfer.decided.target:
            raise TransferFailed(f'"{target}" is not the cage that it was when the transfer began; send it again')
        if 0 < decided.max_size < staged.size:
            raise PolicyRefused(f'"{escape(transfer.name)}" is larger than the policy lets through by now')
        delivery = protocol.Delivery(
            source=decided.source_name, name=transfer.name, size=staged.size, sha256=staged.sha256
        )
        # What cannot be recorded is not done: the file gets its name in the inbox after this is in the chain.
        passing = functools.partial(self._record, transfer, details | {"outcome": "is given its name in the inbox"})
        gate = session.Gate(ready=protocol.READY.encode(), passing=passing, go=signal.Signals[protocol.GO])
        channel = await self._caged.deliver(decided.target, delivery.arguments(), staged.descriptor)
        ended = await session.run_to_end(
            channel, gate=gate, output_max=protocol.OUTPUT_MAX, seconds=TRANSFER_SECONDS)
        if ended.status:
            details["target-says"] = escape(ended.untrusted_diagnostics, limit=200)
            why = protocol.FAULTS.get(ended.status, "the delivery there failed")
            raise TransferFailed(f'"{escape(transfer.name)}" did not arrive in {target}: {why}')
        arrived = protocol.parse_arrived(ended.untrusted_output, transfer.name)
        return f"Inbox/{decided.source_name}/{arrived}"

    async def _record(self, transfer: Transfer, details: dict[str, str]) -> None:
        await self._caged.record(transfer.source.uuid, transfer.decided.target, protocol.SERVICE, details)

    async def _record_outcome(self, transfer: Transfer, details: dict[str, str]) -> None:
        """Of what has happened already, and is told whoever asked even if the chain cannot take it."""
        try:
            await self._record(transfer, details)
        except CageError as error:
            LOG.error("not recorded: %s: %s", escape(str(details)), escape(error.sentence))


def run(arguments: list[str]) -> int:
    """`cage-mediator files [--config FILE]`; ends when the system bus does."""
    if arguments and (len(arguments) != 2 or arguments[0] != "--config"):
        raise UsageError("the core half takes --config FILE and nothing else")
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(name)s: %(message)s")
    config = load_runtime(Path(arguments[1]) if arguments else None)
    os.umask(0o077)
    asyncio.run(serve_until_bus_ends(Stager(Path(config.paths.state, "staging"))))
    return 0


async def serve_until_bus_ends(stager: Stager) -> None:
    """Serve every gateway; raises RuntimeFailure when the system bus has ended."""
    bus = await Bus.connect()
    core = FilesCore(caged=Caged(bus), stager=stager)
    try:
        await wire.Gateways(bus, name=protocol.BUS_NAME, serve=core.serve).run()
    finally:
        bus.disconnect()
