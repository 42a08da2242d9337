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
import time
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cage_runtime import attached
from cage_runtime.errors import CageError, Cancelled, PolicyRefused, TransferFailed
from cage_runtime.model import (
    DELIVERY_BYTES_PER_SECOND,
    DELIVERY_FILES_PER_SECOND,
    DELIVERY_SECONDS,
    START_PATIENCE_SECONDS,
    TRANSFER_SECONDS,
    Flow,
    ReceiptOutcome,
)
from cage_runtime.text import escape
from mediators.files import protocol
from mediators.files.kept import Folder, Record
from mediators.files.stream import Stream
from mediators.files.waiting import ARRIVED_AS, Kept, Waiting, described, logged, sentence_of
from mediators.places import Turns
from mediators.stage import Staged, Stager
from mediators.wire import Caged, Gateway, Permission, What

if TYPE_CHECKING:
    from mediators.sshsig import Signer

LOG = logging.getLogger(__name__)
_ELSEWHERE = "it would go to another cage by now than the one that it was accepted for"


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
    stream: Stream | None = None
    """Through which whoever follows it is told."""
    committed: bool = False
    """It may arrive, whatever ends meanwhile."""
    cancelled: bool = False
    """Whoever follows it wants it given up, and it is."""
    given_up: bool = False
    """It is being given up, for whatever reason."""

    def record(self, staged: Staged | None = None) -> Record:
        """What is written down of it, for the core half after this one."""
        permission = self.permission
        record = Record(
            request=self.request, since=int(time.time()), service=self.service, source=self.source.uuid,
            source_name=self.source.name, asked=permission.asked.target, target=permission.target,
            target_uuid=permission.target_uuid, name=self.name, tree=self.tree, conflict=self.options.conflict,
            transform=permission.transform, require=permission.require, log=permission.log)
        return record if staged is None else record.of(staged)

    async def told(self, work: asyncio.Task[str]) -> str:
        """What the source is to hear of `work`; CageError likewise."""
        await asyncio.wait({work, self.accepted}, return_when=asyncio.FIRST_COMPLETED)
        if self.cancelled and work.cancelled():
            raise Cancelled(f'"{escape(self.name)}" was cancelled; nothing arrived')
        return self.accepted.result() if self.accepted.done() else work.result()

    def to_tell(self, arrived: str) -> str:
        """As much of where it arrived as the source may hear; with the target's name, where it named none."""
        if self.permission.flow is not Flow.LEVEL:
            return _inbox_path(self.permission, "")
        return arrived if self.permission.asked.target else f"{self.permission.target}:{arrived}"

    def commit(self) -> None:
        """From now on it may arrive, whatever ends meanwhile: whoever follows it is told before that, and does not send
        it again without a look.  TransferFailed where that cannot be told."""
        if self.committed:
            return
        if self.stream is not None and not self.stream.say(state=protocol.COMMITTED):
            raise TransferFailed(f'"{escape(self.name)}" is given up: whoever sent it does not read what becomes of it')
        self.committed = True

    def cancel(self, work: asyncio.Task[str]) -> None:
        """As whoever follows it wants; what may be there already goes on, and so does what was accepted."""
        if not (self.committed or self.given_up or self.accepted.done()):
            self.cancelled = self.given_up = True
            work.cancel()

    def give_up(self, work: asyncio.Task[str]) -> None:
        """Because whoever sent it has gone; what was accepted goes on.  Once: again would cut its record off."""
        if not (self.given_up or self.accepted.done()):
            self.given_up = True
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
    """Does them, as caged permits; those that were accepted are in `Waiting` until they have arrived."""

    def __init__(self, caged: Caged, stager: Stager) -> None:
        self._caged, self._folder = caged, Folder(stager.directory)
        self._waiting = Waiting(caged, self._folder, stager, again=self._again)
        self._recording: set[asyncio.Task[None]] = set()
        self._turns = Turns(START_PATIENCE_SECONDS)

    async def run(self, transfer: Transfer, stage: Awaitable[Staged]) -> str:
        """Stage, have it confirmed, deliver, record; returns the path in the target's home, or, where the source may
        not hear which name the target gave it, that of the directory.  Empty where nothing was delivered because the
        name is taken, as asked for."""
        waiting = None
        try:
            self._folder.begin(transfer.record())
            staged = await _staged(transfer, stage)
            with contextlib.ExitStack() as held:
                held.callback(staged.discard)
                transfer.details |= described(transfer.record(staged))
                if transfer.signer:
                    transfer.details["signed-by"] = transfer.signer.fingerprint
                if transfer.options.receipt:
                    transfer.details["files"] = str(staged.files)
                await self._confirm(transfer, staged)
                if transfer.permission.one_way:
                    waiting = await self._accept(transfer, staged)
                    held.pop_all()
                else:
                    arrived = await self._hand_over(transfer, staged)
        except (CageError, OSError) as error:
            await self._record_outcome(transfer, sentence_of(error))
            if not transfer.in_target or transfer.permission.flow is Flow.LEVEL:
                raise
            target = transfer.permission.asked.target or "the cage that policy names"
            raise TransferFailed(f'"{escape(transfer.name)}" did not arrive in {target}, which may be stopped or full; '
                                 "the core's audit log says why") from error
        except asyncio.CancelledError:
            so_far = "it may have arrived" if transfer.may_be_there else "nothing arrived"
            transfer.places.close()  # whoever waits for one in the source does not wait for the record
            why = "cancelled" if transfer.cancelled else "given up, because whoever sent it has gone"
            await self._record_outcome(transfer, f"{why}; {so_far}")
            raise
        if waiting is not None:
            await self._waiting.attempt(waiting, functools.partial(self._hand_over_once, transfer, waiting))
            return ""
        word = ReceiptOutcome.ARRIVED if arrived else ReceiptOutcome.SKIPPED
        await self._record_outcome(transfer, _outcome(arrived), word)
        return transfer.to_tell(arrived)

    async def _confirm(self, transfer: Transfer, staged: Staged) -> None:
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
        transfer.permission, transfer.target_name, transfer.in_target = permission, permission.target, True

    async def _accept(self, transfer: Transfer, staged: Staged) -> Kept:
        """Have the core keep it, whatever becomes of the core, and tell the source all that it ever hears."""
        waiting = Kept(record=transfer.record(staged), staged=staged, details=transfer.details)
        transfer.commit()
        with self._waiting.admitted(waiting):
            await self._folder.keep(waiting.record, staged)
            if transfer.options.receipt:
                await self._record(transfer, "accepted", ReceiptOutcome.ACCEPTED)
        transfer.accepted.set_result(_inbox_path(transfer.permission, ""))
        return waiting

    async def _again(self, waiting: Kept) -> str:
        """Have one that was accepted decided anew, and delivered, if it has not been; what came of it."""
        record, staged = waiting.record, waiting.staged
        waiting.lacks = record.source
        permission = await self._caged.decide(record.source, record.service, "", record.asked, record.request)
        transfer = Transfer(
            source=waiting.source, request=record.request, service=record.service,
            options=protocol.Options(conflict=record.conflict), tree=record.tree, target_name=record.asked,
            name=record.name, permission=permission, details=waiting.details, places=contextlib.ExitStack(),
            accepted=asyncio.get_running_loop().create_future())
        if permission.transform != record.transform:
            raise PolicyRefused("the policy has it changed otherwise by now than it was when it was read")
        if permission.require != record.require:
            raise PolicyRefused("the policy wants it looked at otherwise by now than it was when it was read")
        if permission.target_uuid not in ("", record.target_uuid):
            raise PolicyRefused(_ELSEWHERE)
        self._folder.open(record.request, staged)
        await self._confirm(transfer, staged)
        if transfer.permission.target_uuid != record.target_uuid:
            raise PolicyRefused(_ELSEWHERE)
        return await self._hand_over_once(transfer, waiting)

    async def _hand_over_once(self, transfer: Transfer, waiting: Kept) -> str:
        waiting.lacks = waiting.record.target_uuid
        try:
            return _outcome(await self._hand_over(transfer, waiting.staged, once=waiting.once))
        except _GivenBefore:
            return "had arrived already"

    async def _hand_over(self, transfer: Transfer, staged: Staged, *, once: str = "") -> str:
        permission = transfer.permission
        since = self._waiting.since(transfer.source.uuid, permission.target_uuid)
        delivery = protocol.Delivery(
            source=permission.source_name, name=transfer.name, size=staged.size, sha256=staged.sha256,
            tree=transfer.tree, conflict=transfer.options.conflict, once=once, since=since,
        )
        async with contextlib.AsyncExitStack() as turn:
            # To start a program costs more than to ask for it: between two cages, one is ready before the next begins.
            await turn.enter_async_context(self._turns.take((transfer.source.uuid, permission.target_uuid)))
            passing = functools.partial(self._passing, transfer, turn)
            gate = attached.Gate(ready=protocol.READY.encode(), passing=passing, go=signal.Signals[protocol.GO])
            channel = await self._caged.deliver(permission, delivery.arguments(), (staged.descriptor,),
                                                DELIVERY_SECONDS)
            ended = await attached.run_to_end(
                channel, gate=gate, output_max=protocol.OUTPUT_MAX, seconds=delivery_seconds(staged.size, staged.files))
        if ended.status == protocol.GIVEN and once:
            raise _GivenBefore
        if ended.status:
            transfer.details["target-says"] = escape(ended.untrusted_diagnostics, limit=200)
            why = protocol.FAULTS.get(ended.status, "the delivery there failed")
            kind = attached.Gone if ended.status == protocol.WITHDRAWN else TransferFailed
            raise kind(f'"{escape(transfer.name)}" did not arrive in {permission.target}: {why}')
        name = protocol.parse_arrived(ended.untrusted_output, delivery)
        if not name and transfer.options.move:
            raise TransferFailed(f'"{escape(transfer.name)}" did not arrive in {permission.target}, where the name is '
                                 "taken")
        return _inbox_path(permission, name) if name else ""

    async def _passing(self, transfer: Transfer, turn: contextlib.AsyncExitStack) -> None:
        """What cannot be recorded is not done: the file gets its name in the inbox after this is in the chain."""
        await turn.aclose()
        await self._record(transfer, "is given its name in the inbox")
        self._folder.pass_(transfer.request)
        transfer.commit()
        transfer.may_be_there = True

    async def _record(self, transfer: Transfer, outcome: str, word: ReceiptOutcome | None = None) -> None:
        """Record it, with the receipt of it where one is wanted, and its source may hear what is called by a `word`."""
        about = transfer.source, transfer.permission.target_uuid, transfer.service
        details = logged(transfer.details, transfer.permission.log, outcome)
        one_way = transfer.permission.one_way
        if word is not None and transfer.options.receipt and one_way == (word is ReceiptOutcome.ACCEPTED):
            transfer.receipt = await self._caged.receipt(*about, details, word)
        else:
            await self._caged.record(*about, details)

    async def _record_outcome(self, transfer: Transfer, outcome: str, word: ReceiptOutcome | None = None) -> None:
        """Of what has happened already, and is told whoever asked even if the chain cannot take it; it is recorded
        also where whoever sent it goes meanwhile."""
        recording = asyncio.ensure_future(self._note_outcome(transfer, outcome, word))
        self._recording.add(recording)
        recording.add_done_callback(self._recording.discard)
        await asyncio.shield(recording)

    async def _note_outcome(self, transfer: Transfer, outcome: str, word: ReceiptOutcome | None) -> None:
        try:
            await self._record(transfer, outcome, word)
        except CageError as error:
            LOG.error("not recorded: %s: %s: %s", escape(str(transfer.details)), escape(outcome),
                      escape(error.sentence))
        self._folder.forget(transfer.request)


class _GivenBefore(TransferFailed):
    """An earlier delivery of it has given it its name."""


def _outcome(arrived: str) -> str:
    return f"{ARRIVED_AS}{arrived}" if arrived else "skipped: the name is taken"


def _inbox_path(permission: Permission, name: str) -> str:
    """Where `name` is in the target's home; without one, what comes from that source, ending in a slash."""
    return f"Inbox/{permission.source_name}/{name}"
