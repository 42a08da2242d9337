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
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

from cage_runtime import encrypted, log
from cage_runtime.bus import Answer, Call
from cage_runtime.errors import CageError, PolicyRefused, TransferFailed
from cage_runtime.model import TRANSFERS_PER_CAGE, TRANSFERS_PER_PAIR, Action
from cage_runtime.text import escape
from mediators import corehalf, wire
from mediators.files import protocol
from mediators.files.progress import Figures
from mediators.files.signed import SIGNED, check_file, signer_of
from mediators.files.stream import Stream
from mediators.files.transfer import Transfer, Transfers, check_move
from mediators.files.transform import ENCRYPT, recipient
from mediators.places import Places
from mediators.sniff import sniffer
from mediators.stage import Begun, Staged, Stager
from mediators.wire import Caged, Gateway, Permission

LOG = logging.getLogger(__name__)

CALLS_AT_ONCE = 2 * TRANSFERS_PER_CAGE
"""Calls of one cage that are answered at once: those beyond what may be under way are told so."""


def _encrypted_name(name: str, *, tree: bool) -> str:
    if tree:
        raise PolicyRefused(f'"{escape(name)}" is a directory, and the policy has what is sent there encrypted, file '
                            "by file; send its files, or an archive of them")
    return protocol.check_file_name(name + encrypted.SUFFIX)


async def _tell(transfer: Transfer, work: asyncio.Task[str], stream: Stream) -> None:
    """Whoever follows it, what comes of it."""
    try:
        arrived = await transfer.told(work)
        stream.arrived(arrived, **({protocol.RECEIPT: transfer.receipt} if transfer.options.receipt else {}))
    except CageError as error:
        stream.failed(error)
    finally:
        stream.close()


class FilesCore:
    """Serves org.cageruntime.Files1 on every gateway."""

    def __init__(self, *, caged: Caged, stager: Stager, administrator: Path) -> None:
        """`administrator` is the folder in which the keys are."""
        self._caged, self._stager, self._administrator = caged, stager, administrator
        self._transfers = Transfers(caged, stager)
        self._places = Places()
        self._going: set[asyncio.Task[Any]] = set()

    def handlers(self) -> dict[str, corehalf.Handler]:
        return {
            protocol.SEND: self._send, protocol.SEND_RECEIPTED: self._send, protocol.START_FILE: self._start_file,
            protocol.SEND_TREE: self._start_tree, protocol.START_TREE: self._start_tree,
        }

    async def _send(self, source: Gateway, call: Call) -> Answer:
        transfer = await self._begin_file(source, call)
        work = self._start(transfer, self._stage(transfer, call.descriptors[0]))
        try:
            arrived = await transfer.told(work)
            return Answer(values=(arrived, transfer.receipt) if transfer.options.receipt else (arrived,))
        except asyncio.CancelledError:
            transfer.give_up(work)
            raise

    async def _start_file(self, source: Gateway, call: Call) -> Answer:
        transfer = await self._begin_file(source, call)
        descriptor = os.dup(call.descriptors[0])  # that of the call is closed when it is answered
        transfer.places.callback(os.close, descriptor)
        stream = Stream()
        figures = Figures(stream)
        return self._follow(transfer, figures.until(self._stage(transfer, descriptor, figures.begun)), stream)

    async def _begin_file(self, source: Gateway, call: Call) -> Transfer:
        untrusted_target, untrusted_name, _index, untrusted_options = call.arguments
        options = protocol.Options.read(untrusted_options, call.member)
        wire.only_descriptor(call, 2)
        return await self._begin(source, untrusted_target, untrusted_name, options)

    async def _stage(self, transfer: Transfer, descriptor: int, begun: Begun = lambda _staged: None) -> Staged:
        permission = transfer.permission
        transfer.signer = signer_of(permission.require, self._administrator)
        return await self._stager.stage(
            descriptor, transfer.source.uuid, permission.max_size, typed=self._is_typed(permission),
            recipient=recipient(permission.transform, self._administrator), begun=begun,
            signer=transfer.signer, untrusted_signature=transfer.options.untrusted_signature)

    def _is_typed(self, permission: Permission) -> bool:
        """Whether anybody wants to know what it is: the rule; or a person, who is told where the host can tell."""
        return bool(permission.types) or (permission.action is Action.ASK and self._stager.sniffs)

    async def _start_tree(self, source: Gateway, call: Call) -> Answer:
        untrusted_target, untrusted_name, untrusted_options = call.arguments
        options = protocol.Options.read(untrusted_options, call.member)
        transfer = await self._begin(source, untrusted_target, untrusted_name, options, tree=True)
        stream, permission = Stream(tree=True, followed=call.member == protocol.START_TREE), transfer.permission
        figures = Figures(stream)
        stage = self._stager.stage_tree(
            stream.tree, source.uuid, permission.max_size, permission.max_files, typed=self._is_typed(permission),
            begun=figures.begun)
        return self._follow(transfer, figures.until(stage), stream)

    def _follow(self, transfer: Transfer, stage: Awaitable[Staged], stream: Stream) -> Answer:
        """Have the transfer done, and whoever has the other ends of `stream` told of it."""
        transfer.stream = stream
        work = self._start(transfer, stage)
        stream.attend(gone=functools.partial(transfer.give_up, work), cancel=functools.partial(transfer.cancel, work))
        telling = asyncio.ensure_future(_tell(transfer, work, stream))
        self._going.add(telling)
        telling.add_done_callback(self._going.discard)
        return stream.answer()

    async def _begin(self, source: Gateway, untrusted_target: str, untrusted_name: str, options: protocol.Options, *,
                     tree: bool = False) -> Transfer:
        """A transfer that policy permits at first sight, with its places among those that are under way."""
        name, target = protocol.check_file_name(untrusted_name), protocol.check_target(untrusted_target)
        request, service = wire.new_request(), protocol.MOVE_SERVICE if options.move else protocol.SERVICE
        permission = await self._caged.decide(source.uuid, service, "", target, request)
        check_move(options, permission)
        check_file(name, permission.require, tree=tree)
        details = {"name": f"{name}/" if tree else name, "request": request}
        if permission.transform:
            sent, name = name, _encrypted_name(name, tree=tree)
            details |= {"name": name, "sent-name": sent}
        pair = source.uuid, permission.target_uuid
        with contextlib.ExitStack() as places:
            places.enter_context(self._place((source.uuid,), TRANSFERS_PER_CAGE, "of this cage"))
            places.enter_context(self._place(pair, TRANSFERS_PER_PAIR, "of this cage to that one"))
            return Transfer(source=source, request=request, service=service, options=options, tree=tree,
                            target_name=target, name=name, permission=permission, places=places.pop_all(),
                            accepted=asyncio.get_running_loop().create_future(), details=details)

    def _start(self, transfer: Transfer, stage: Awaitable[Staged]) -> asyncio.Task[str]:
        """Have the transfer done, which gives its places back in the end, whoever waits for it."""
        task = asyncio.get_running_loop().create_task(self._transfers.run(transfer, stage))
        self._going.add(task)

        def ended(task: asyncio.Task[str]) -> None:
            self._going.discard(task)
            transfer.places.close()
            if not task.cancelled():
                task.exception()  # whoever is to hear of it has: what was accepted has nobody

        task.add_done_callback(ended)
        return task

    def _place(self, whose: tuple[str, ...], most: int, which: str) -> contextlib.AbstractContextManager[None]:
        """One of the `most` transfers that may be under way at once; TransferFailed where all of them are."""
        return self._places.take(whose, most, lambda: TransferFailed(
            f"{most} transfers {which} are under way; wait until one has ended"))


def run(arguments: list[str]) -> int:
    """`cage-mediator files [--config FILE]`; ends when the system bus does, with the status of that error."""
    log.set_up("%(name)s: %(message)s")
    try:
        config = corehalf.configured(arguments)
        types = sniffer()
        if corehalf.begin("files", config):
            stager = Stager(Path(config.paths.state, "staging"), sniffer=types, nameable=True)
            asyncio.run(serve_until_bus_ends(stager, Path(config.paths.administrator)))
    except CageError as error:
        LOG.critical("%s", error.sentence)
        return error.exit_status
    return 0


async def serve_until_bus_ends(stager: Stager, administrator: Path = Path("/etc/cage-runtime")) -> None:
    """Serve every gateway; raises RuntimeFailure when the system bus has ended."""
    def handlers(caged: Caged) -> dict[str, corehalf.Handler]:
        return FilesCore(caged=caged, stager=stager, administrator=administrator).handlers()

    await corehalf.serve_until_bus_ends(
        "files", protocol.SERVICE, handlers,
        at_once=CALLS_AT_ONCE, transforms=frozenset({ENCRYPT}), verifiers=frozenset({SIGNED}))
