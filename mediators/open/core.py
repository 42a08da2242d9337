# SPDX-License-Identifier: LGPL-2.1-or-later
"""The core half: has one URI or one staged file opened in another cage, and gives an edited file back.

Law of this room: it decides nothing, and what it opens is what was decided on, to the byte.  Nothing comes back but
where a rule lets data go both ways, and then a whole file in bounds, for the instance that asked.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import functools
import hashlib
import logging
import os
import secrets
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cage_runtime import attached, log
from cage_runtime.bus import Answer, Call
from cage_runtime.errors import CageError, PolicyRefused, RuntimeFailure, TransferFailed, UsageError
from cage_runtime.filenames import check_file_name
from cage_runtime.model import (
    EDIT_SECONDS,
    EDITED_BYTES_MAX,
    EDITED_KEPT_SECONDS,
    EDITED_WAIT_SECONDS,
    EDITS_PER_CAGE,
    OPEN_SECONDS,
    Flow,
)
from cage_runtime.text import escape
from mediators import corehalf, gate, wire
from mediators.lent import Lent
from mediators.open import protocol
from mediators.open.edits import Returned
from mediators.open.protocol import Delivery
from mediators.open.uri import check_uri
from mediators.stage import Stager
from mediators.wire import Caged, Gateway, Permission, What

LOG = logging.getLogger(__name__)


@dataclass(kw_only=True, slots=True)
class Opening:
    """One request that policy permitted: the instance it came from, what was decided, how it goes."""

    source: Gateway
    service: str
    permission: Permission
    details: dict[str, str]
    """What the record says of it."""
    target_uuid: str = ""
    target_name: str = ""
    in_target: bool = False
    """The target has a part in it from now on."""
    comes_back: bool = False
    """What was edited may, and that is recorded."""


@dataclass(kw_only=True, slots=True, eq=False)
class Edit:
    """A file that is open elsewhere and may come back."""

    source: str
    """The instance that asked."""
    begun: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[int | None] | None = None


class OpenCore:
    def __init__(self, stager: Stager, directory: Path) -> None:
        """Where files are staged, and where those are received that come back."""
        self._stager, self._directory = stager, directory
        self._edits: dict[str, Edit] = {}
        self._lent = Lent(EDITS_PER_CAGE * EDITED_BYTES_MAX)
        self._caged: Caged

    def handlers(self, caged: Caged) -> Mapping[str, corehalf.Handler]:
        self._caged = caged
        return {"Uri": self.uri, "File": self.file, "Edited": self.edited}

    # --- a URI -----------------------------------------------------------------------------------------------
    async def uri(self, source: Gateway, call: Call) -> Answer:
        untrusted_uri, untrusted_target, untrusted_options = call.arguments
        wire.no_options(untrusted_options)
        uri, target = check_uri(untrusted_uri), protocol.check_target(untrusted_target)
        request = wire.new_request()
        permission = await self._caged.decide(source.uuid, protocol.URI, uri.scheme, target, request)
        content = uri.text.encode()
        sha256 = hashlib.sha256(content).hexdigest()
        opening = Opening(source=source, service=protocol.URI, permission=permission,
                          details={"uri": uri.text, "request": request})
        async with self._recorded(opening):
            what = What(size=len(content), sha256=sha256, lines=(uri.text,))
            delivery = Delivery(name="", size=len(content), sha256=sha256, returns=False)
            with _memory(content) as descriptor:
                await self._open(opening, what, delivery, descriptor)
        return Answer()

    # --- a file ----------------------------------------------------------------------------------------------
    async def file(self, source: Gateway, call: Call) -> Answer:
        untrusted_name, untrusted_target, _index, untrusted_options = call.arguments
        wire.no_options(untrusted_options)
        name, target = check_file_name(untrusted_name), protocol.check_target(untrusted_target)
        descriptor = wire.only_descriptor(call, 2)
        self._check_room(source)
        request = wire.new_request()
        permission = await self._caged.decide(source.uuid, protocol.FILE, "", target, request)
        opening = Opening(source=source, service=protocol.FILE, permission=permission,
                          details={"name": name, "request": request})
        async with self._recorded(opening):
            try:
                staged = await self._stager.stage(descriptor, source.uuid, permission.max_size)
            except (TransferFailed, PolicyRefused) as error:
                raise type(error)(f'"{escape(name)}" {error.sentence}') from error
            try:
                opening.details |= {"size": str(staged.size), "sha256": staged.sha256}
                what = What(size=staged.size, files=1, sha256=staged.sha256, lines=(name,))
                delivery = Delivery(name=name, size=staged.size, sha256=staged.sha256,
                                    returns=not permission.one_way)
                if delivery.returns:
                    return Answer(values=(await self._begin_edit(opening, what, delivery, staged.descriptor),))
                await self._open(opening, what, delivery, staged.descriptor)
            finally:
                staged.discard()
        return Answer(values=("",))

    def _check_room(self, source: Gateway) -> None:
        if sum(edit.source == source.uuid for edit in self._edits.values()) >= EDITS_PER_CAGE:
            raise TransferFailed(f"{EDITS_PER_CAGE} files of this cage are open elsewhere; close one of them")

    async def _begin_edit(self, opening: Opening, what: What, delivery: Delivery, descriptor: int) -> str:
        """The id of a session that goes on when the file has begun to be opened."""
        self._check_room(opening.source)  # again: others may have begun meanwhile
        edit, key = Edit(source=opening.source.uuid), secrets.token_hex(16)
        task = edit.task = asyncio.get_running_loop().create_task(
            self._edit(opening, edit, what, delivery, descriptor))
        self._edits[key] = edit
        begun = asyncio.ensure_future(edit.begun.wait())
        try:
            await asyncio.wait({task, begun}, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:  # whoever asked has gone
            self._drop(key)
            raise
        finally:
            begun.cancel()
        if not edit.begun.is_set():
            del self._edits[key]
            task.result()
            raise TransferFailed("the target did not answer as it should")
        task.add_done_callback(lambda _task: self._keep_a_while(key))
        return key

    async def _edit(self, opening: Opening, edit: Edit, what: What, delivery: Delivery, descriptor: int) -> int | None:
        """The edited file, or None where it has not changed."""
        most = min(EDITED_BYTES_MAX, opening.permission.max_size or EDITED_BYTES_MAX)
        with contextlib.closing(Returned(self._directory, most)) as returned:
            # As `_recorded` has it while nobody has been told that it has begun; from then on it is ours to record.
            try:
                await self._open(opening, what, delivery, descriptor, begun=edit.begun.set, returned=returned,
                                 seconds=EDIT_SECONDS)
                edited = returned.finish()
            except CageError as error:
                if opening.comes_back:  # what became of its target after that is no matter
                    return returned.finish()
                if edit.begun.is_set():
                    await self._record_outcome(opening, f"did not come back: {error.sentence}")
                raise
            if edited is None:
                await self._record_outcome(opening, "was closed unchanged")
            return edited

    async def _leaving(self, opening: Opening, returned: Returned) -> None:
        """What was edited comes back where policy, and a person where it says so, let it now; where not, it stays, and
        so it does where that cannot be recorded."""
        if not returned.is_whole:
            return
        before = opening.permission
        opening.details |= {"edited-size": str(returned.size), "edited-sha256": returned.sha256}
        what = What(size=returned.size, files=1, sha256=returned.sha256,
                    lines=(f"{opening.details['name']}, as it was edited there, comes back",))
        try:
            now = await self._caged.confirm(before, what)
            if now.one_way:
                raise PolicyRefused("the policy has changed: nothing comes back any more")
            if (now.target, now.target_uuid) != (before.target, before.target_uuid):
                raise PolicyRefused("the policy names another cage by now")
            await self._record(opening, "was edited, and comes back")
        except CageError as error:
            gone = before.target.partition(":")[0] == protocol.DISPOSABLE
            becomes = "ends with the disposable cage that it was edited in" if gone else "stays where it was edited"
            raise type(error)(f"what was edited {becomes}: {error.sentence}") from error
        opening.comes_back = True

    def _keep_a_while(self, key: str) -> None:
        asyncio.get_running_loop().call_later(EDITED_KEPT_SECONDS, self._drop, key)

    def _drop(self, key: str) -> None:
        """Nobody asks for it any more."""
        edit = self._edits.pop(key, None)
        if edit is None or edit.task is None:
            return
        edit.task.cancel()
        edit.task.add_done_callback(_close_result)

    def left(self, uuid: str) -> None:
        """The instance has ended: what is open elsewhere stays there."""
        self._lent.left(uuid)
        for key in [key for key, edit in self._edits.items() if edit.source == uuid]:
            self._drop(key)

    async def edited(self, source: Gateway, call: Call) -> Answer:
        untrusted_key, untrusted_options = call.arguments
        wire.no_options(untrusted_options)
        edit = self._edits.get(untrusted_key)
        if edit is None or edit.source != source.uuid or edit.task is None:
            raise UsageError("nothing of this cage is open elsewhere under that number")
        await asyncio.wait({edit.task}, timeout=EDITED_WAIT_SECONDS)
        if not edit.task.done():
            return Answer(values=(protocol.OPEN, []))
        self._check_lent(edit)
        if self._edits.pop(untrusted_key, None) is None:
            raise UsageError("nothing of this cage is open elsewhere under that number")
        writable = edit.task.result()
        if writable is None:
            return Answer(values=(protocol.UNCHANGED, []))
        descriptor = self._lent.lend(source.uuid, writable)
        return Answer(values=(protocol.EDITED, [0]), descriptors=(descriptor,))

    def _check_lent(self, edit: Edit) -> None:
        """RuntimeFailure where what came back is more than its cage may have now: it is kept, for as long as any."""
        if edit.task is None or edit.task.cancelled() or edit.task.exception() is not None:
            return
        file = edit.task.result()
        if file is not None:
            self._lent.check(edit.source, os.fstat(file).st_size)

    # --- both ------------------------------------------------------------------------------------------------
    @contextlib.asynccontextmanager
    async def _recorded(self, opening: Opening) -> AsyncIterator[None]:
        """What comes of it is recorded, and told the source as far as it may hear of its target."""
        try:
            yield
        except (CageError, OSError) as error:
            await self._record_outcome(opening, error.sentence if isinstance(error, CageError) else str(error))
            if not opening.in_target or opening.permission.flow is Flow.LEVEL:
                raise
            raise TransferFailed("it was not opened there; the target may be stopped or full, or have nothing to open "
                                 "it with; the core's audit log says why") from error
        except asyncio.CancelledError:
            await self._record_outcome(opening, "given up, because whoever asked has gone")
            raise

    async def _open(self, opening: Opening, what: What, delivery: Delivery, descriptor: int, *,
                    begun: Callable[[], None] = lambda: None, returned: Returned | None = None,
                    seconds: float = OPEN_SECONDS) -> None:
        """Have it opened in the target, once it may be; returns when the delivery half has ended."""
        permission = await self._caged.confirm(opening.permission, what)
        opening.permission = permission
        if permission.one_way and returned is not None:
            raise PolicyRefused("the policy has changed: nothing comes back any more")
        there = await self._find_target(permission)
        opening.target_name, opening.target_uuid, opening.in_target = there.target, there.target_uuid, True
        channel = await self._caged.deliver(there, delivery.arguments(), (descriptor,), OPEN_SECONDS)
        passing = functools.partial(self._passing, opening, begun)
        leaving = functools.partial(self._leaving, opening, returned) if returned else None
        ended = await attached.run_to_end(
            channel, gate=attached.Gate(ready=protocol.READY.encode(), passing=passing, go=gate.GO, leaving=leaving),
            output_max=protocol.OUTPUT_MAX, seconds=seconds, sink=returned.take if returned else None)
        if ended.status:
            opening.details["target-says"] = escape(ended.untrusted_diagnostics, limit=200)
            why = protocol.FAULTS.get(ended.status, "the delivery there failed")
            raise TransferFailed(f"it was not opened in {opening.target_name}: {why}")

    async def _find_target(self, permission: Permission) -> Permission:
        """The permission to the instance in which it is opened, which is made where it is to be a disposable one."""
        if permission.target.partition(":")[0] == protocol.DISPOSABLE:
            return await self._caged.dispose(permission)
        if not permission.target_uuid:
            raise RuntimeFailure("nothing is opened in the core")
        return permission

    async def _passing(self, opening: Opening, begun: Callable[[], None]) -> None:
        """What cannot be recorded is not done."""
        await self._record(opening, f"opens in {opening.target_name}")
        begun()

    async def _record(self, opening: Opening, outcome: str) -> None:
        await self._caged.record(opening.source, opening.target_uuid, opening.service,
                                 opening.details | {"outcome": outcome})

    async def _record_outcome(self, opening: Opening, outcome: str) -> None:
        """Of what has happened already, and is told whoever asked even if the chain cannot take it."""
        try:
            await self._record(opening, outcome)
        except CageError as error:
            LOG.error("not recorded: %s: %s: %s", escape(str(opening.details)), escape(outcome),
                      escape(error.sentence))


def _close_result(task: asyncio.Task[int | None]) -> None:
    if not task.cancelled() and task.exception() is None and (descriptor := task.result()) is not None:
        os.close(descriptor)


@contextlib.contextmanager
def _memory(content: bytes) -> Iterator[int]:
    """A descriptor of a sealed file in memory."""
    descriptor = os.memfd_create("opened", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.write(descriptor, content)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS,
                    fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        yield descriptor
    finally:
        os.close(descriptor)


def run(arguments: list[str]) -> int:
    """`cage-mediator open [--config FILE]`; ends when the system bus does, with the status of that error."""
    log.set_up("%(name)s: %(message)s")
    try:
        config = corehalf.configured(arguments)
        if not corehalf.begin("open", config):
            return 0
        directory = Path(config.paths.state, "opening")
        core = OpenCore(Stager(directory), directory)
        asyncio.run(corehalf.serve_until_bus_ends("open", protocol.URI, core.handlers, left=core.left))
    except CageError as error:
        LOG.critical("%s", error.sentence)
        return error.exit_status
    return 0
