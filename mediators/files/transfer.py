# SPDX-License-Identifier: LGPL-2.1-or-later
"""One transfer from its copy to its record: staged, confirmed, delivered, and what came of it noted.

Law of this room: nothing is given a name in a target before that is in the chain, and what comes of a permitted
transfer is recorded, whatever it is.  Of what the target makes of it the source hears, unless both are at the same
level, whether it arrived, and nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import signal
from collections.abc import Awaitable
from dataclasses import dataclass

from cage_runtime.errors import CageError, PolicyRefused, TransferFailed
from cage_runtime.model import (
    DELIVERY_BYTES_PER_SECOND,
    DELIVERY_FILES_PER_SECOND,
    DELIVERY_SECONDS,
    TRANSFER_SECONDS,
    Flow,
    ReceiptOutcome,
)
from cage_runtime.text import escape
from mediators import session
from mediators.files import protocol
from mediators.sshsig import Signer
from mediators.stage import Staged
from mediators.wire import Caged, Gateway, Permission, What

LOG = logging.getLogger(__name__)


@dataclass(kw_only=True, slots=True)
class Transfer:
    """One request that policy permitted: the instance it came from, what it said, what was decided, how it goes."""

    source: Gateway
    request: str
    service: str
    options: protocol.Options
    tree: bool
    target_name: str
    name: str
    permission: Permission
    details: dict[str, str]
    """What the record says of it."""
    places: contextlib.ExitStack
    """Those that it takes among the transfers under way."""
    accepted: asyncio.Future[str]
    """What the source is told where nothing comes back but whether it was accepted, once it is."""
    in_target: bool = False
    """The target has a part in it from now on."""
    may_be_there: bool = False
    """The target has been told to give it its name."""
    signer: Signer | None = None
    """Whose signature of it was found good."""
    receipt: str = ""
    """Of it, for its source; empty where none is wanted, and where there can be none."""

    async def told(self, work: asyncio.Task[str]) -> str:
        """What the source is to hear of `work`; CageError likewise."""
        await asyncio.wait({work, self.accepted}, return_when=asyncio.FIRST_COMPLETED)
        return self.accepted.result() if self.accepted.done() else work.result()

    def to_tell(self, arrived: str) -> str:
        """As much of where it arrived as the source may hear; with the target's name, where it named none."""
        if self.permission.flow is not Flow.LEVEL:
            return _inbox_path(self.permission, "")
        return arrived if self.permission.asked.target else f"{self.permission.target}:{arrived}"

    def give_up(self, work: asyncio.Task[str]) -> None:
        """Because whoever sent it has gone; what was accepted goes on."""
        if not self.accepted.done():
            work.cancel()


def delivery_seconds(size: int, files: int = 1) -> float:
    """The time that a target's delivery half has to receive so many bytes, and files."""
    more = size / DELIVERY_BYTES_PER_SECOND + (files - 1) / DELIVERY_FILES_PER_SECOND
    return min(DELIVERY_SECONDS + more, TRANSFER_SECONDS)


def check_move(options: protocol.Options, permission: Permission) -> None:
    if options.move and permission.one_way:
        raise PolicyRefused("what is moved is removed once it has arrived, and of that the policy lets nothing back; "
                            "send it, and remove it yourself")


async def _staged(transfer: Transfer, stage: Awaitable[Staged]) -> Staged:
    try:
        return await stage
    except (TransferFailed, PolicyRefused) as error:
        raise type(error)(f'"{escape(transfer.name)}" {error.sentence}') from error


class Transfers:
    """Does them, as caged permits."""

    def __init__(self, caged: Caged) -> None:
        self._caged = caged

    async def run(self, transfer: Transfer, stage: Awaitable[Staged]) -> str:
        """Stage, have it confirmed, deliver, record; returns the path in the target's home, or, where the source may
        not hear which name the target gave it, that of the directory.  Empty where nothing was delivered because the
        name is taken, as asked for."""
        try:
            staged = await _staged(transfer, stage)
            transfer.details |= {"size": str(staged.content), "sha256": staged.plain_sha256 or staged.sha256}
            if staged.plain_sha256:
                transfer.details |= {"encrypted-size": str(staged.size), "encrypted-sha256": staged.sha256,
                                     "transform": transfer.permission.transform}
            if transfer.signer:
                transfer.details["signed-by"] = f"{transfer.signer.name} {transfer.signer.fingerprint}"
            if transfer.tree or transfer.options.receipt:
                transfer.details["files"] = str(staged.files)
            try:
                arrived = await self._deliver(transfer, staged)
            finally:
                staged.discard()
        except (CageError, OSError) as error:
            await self._record_outcome(transfer, error.sentence if isinstance(error, CageError) else str(error))
            if not transfer.in_target or transfer.permission.flow is Flow.LEVEL:
                raise
            target = transfer.permission.asked.target or "the cage that policy names"
            raise TransferFailed(f'"{escape(transfer.name)}" did not arrive in {target}, which may be stopped or full; '
                                 "the core's audit log says why") from error
        except asyncio.CancelledError:
            so_far = "it may have arrived" if transfer.may_be_there else "nothing arrived"
            transfer.places.close()  # whoever waits for one in the source does not wait for the record
            await self._record_outcome(transfer, f"given up, because whoever sent it has gone; {so_far}")
            raise
        outcome = f"arrived as {arrived}" if arrived else "skipped: the name is taken"
        await self._record_outcome(transfer, outcome, ReceiptOutcome.ARRIVED if arrived else ReceiptOutcome.SKIPPED)
        return transfer.to_tell(arrived)

    async def _deliver(self, transfer: Transfer, staged: Staged) -> str:
        shown = [f"{transfer.name}/ with {staged.files} files and directories" if transfer.tree else transfer.name]
        if transfer.signer:
            shown.append(f"signed by: {transfer.signer.name}, {transfer.signer.fingerprint}")
        what = What(size=staged.content, files=staged.files, types=staged.types,
                    sha256=staged.plain_sha256 or staged.sha256, lines=tuple(shown), receipt=transfer.options.receipt)
        permission = await self._caged.confirm(transfer.permission, what)
        check_move(transfer.options, permission)
        if permission.require != transfer.permission.require:
            raise PolicyRefused(f'"{escape(transfer.name)}" would have to be signed otherwise for that cage; name it, '
                                "and send it again")
        if permission.transform != transfer.permission.transform:
            raise PolicyRefused(f'"{escape(transfer.name)}" would have to be changed otherwise for that cage than '
                                "when it was read; name the cage, and send it again")
        target = permission.target
        transfer.permission, transfer.target_name, transfer.in_target = permission, target, True
        if permission.one_way:
            if transfer.options.receipt:
                await self._record(transfer, "accepted", ReceiptOutcome.ACCEPTED)
            transfer.accepted.set_result(_inbox_path(transfer.permission, ""))
        delivery = protocol.Delivery(
            source=permission.source_name, name=transfer.name, size=staged.size, sha256=staged.sha256,
            tree=transfer.tree, conflict=transfer.options.conflict,
        )
        passing = functools.partial(self._passing, transfer)
        gate = session.Gate(ready=protocol.READY.encode(), passing=passing, go=signal.Signals[protocol.GO])
        channel = await self._caged.deliver(permission, delivery.arguments(), (staged.descriptor,), DELIVERY_SECONDS)
        ended = await session.run_to_end(
            channel, gate=gate, output_max=protocol.OUTPUT_MAX, seconds=delivery_seconds(staged.size, staged.files))
        if ended.status:
            transfer.details["target-says"] = escape(ended.untrusted_diagnostics, limit=200)
            why = protocol.FAULTS.get(ended.status, "the delivery there failed")
            raise TransferFailed(f'"{escape(transfer.name)}" did not arrive in {target}: {why}')
        name = protocol.parse_arrived(ended.untrusted_output, delivery)
        if not name and transfer.options.move:
            raise TransferFailed(f'"{escape(transfer.name)}" did not arrive in {target}, where the name is taken')
        return _inbox_path(permission, name) if name else ""

    async def _passing(self, transfer: Transfer) -> None:
        """What cannot be recorded is not done: the file gets its name in the inbox after this is in the chain."""
        await self._record(transfer, "is given its name in the inbox")
        transfer.may_be_there = True

    async def _record(self, transfer: Transfer, outcome: str, word: ReceiptOutcome | None = None) -> None:
        """Record it, with the receipt of it where one is wanted, and its source may hear what is called by a `word`."""
        about = transfer.source, transfer.permission.target_uuid, transfer.service
        details = _logged(transfer) | {"outcome": outcome}
        one_way = transfer.permission.one_way
        if word is not None and transfer.options.receipt and one_way == (word is ReceiptOutcome.ACCEPTED):
            transfer.receipt = await self._caged.receipt(*about, details, word)
        else:
            await self._caged.record(*about, details)

    async def _record_outcome(self, transfer: Transfer, outcome: str, word: ReceiptOutcome | None = None) -> None:
        """Of what has happened already, and is told whoever asked even if the chain cannot take it."""
        try:
            await self._record(transfer, outcome, word)
        except CageError as error:
            LOG.error("not recorded: %s: %s: %s", escape(str(transfer.details)), escape(outcome),
                      escape(error.sentence))


def _logged(transfer: Transfer) -> dict[str, str]:
    """What the record has of it beside what came of it, which it always has: a rule with log= can have it leave out
    what the files are called (meta), and how large they are (no).  A digest tells who knows the file which it is."""
    wanted = {"": ("",), "digest": ("",), "meta": ("name", "sent-name", "sha256"),
              "no": ("name", "sent-name", "sha256", "size", "files", "encrypted-size", "encrypted-sha256")}
    left_out = wanted.get(transfer.permission.log, wanted["no"])
    return {key: value for key, value in transfer.details.items() if key not in left_out}


def _inbox_path(permission: Permission, name: str) -> str:
    """Where `name` is in the target's home; without one, what comes from that source, ending in a slash."""
    return f"Inbox/{permission.source_name}/{name}"
