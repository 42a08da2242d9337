# SPDX-License-Identifier: LGPL-2.1-or-later
"""Transfers that were accepted and have not arrived: kept for their targets, whatever ends meanwhile.

Law of this room: whoever sent it hears no more of it, so it is delivered, once, or what became of it is in the chain;
and each time that it is tried, caged decides anew, for the instances that it was accepted for.  It is tried when there
is reason to: another caged has come, one of its two cages runs again, or it was too often before.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from weakref import WeakValueDictionary

from cage_runtime import attached
from cage_runtime.errors import CageError, RuntimeFailure, TicketExpired, TooOften, TransferFailed, WrongState
from cage_runtime.model import KEPT_BYTES_PER_CAGE, KEPT_PER_CAGE, KEPT_SECONDS
from cage_runtime.text import escape
from mediators.files import protocol
from mediators.files.kept import Folder, Found, Record
from mediators.stage import Staged, Stager
from mediators.wire import Caged, Gateway

LOG = logging.getLogger(__name__)
NOTHING_WAITS = 10**12 - 1
"""A time of day after every other."""
ARRIVED_AS = "arrived as "
"""Begins the outcome that says where."""
NOBODY = Gateway(name="", uuid="", address="")
_STANDS = (WrongState, attached.Gone)
"""One of the cages does not run, or the target stopped."""
_LATER = (TooOften, TicketExpired)
"""It would be permitted at another time."""
_COMES_BACK = (*_STANDS, *_LATER, RuntimeFailure)
"""What is no answer yet; the last, because the core is not all there."""
LATER_SECONDS, LATEST_SECONDS = 30.0, 3600.0
"""After which it is tried at another time, twice as long each time, and never later than that."""
_TOO_LONG = f"given up, because it has waited for {KEPT_SECONDS / 3600:.0f} hours"


@dataclass(kw_only=True, slots=True, eq=False)
class Kept:
    """One of them."""

    record: Record
    staged: Staged
    details: dict[str, str]
    """What the chain is told of it."""
    task: asyncio.Task[None] | None = None
    """Tries it again."""
    wanted: bool = False
    """There is reason to try it once more."""
    waits: bool = False
    """It is in the chain that it waits."""
    busy: bool = False
    """It is being tried, or ended."""
    lacks: str = ""
    """The uuid of the one of its cages that does not run, if it has been found not to."""
    delays: int = 0
    """How often it was put off."""
    expiry: asyncio.TimerHandle | None = None

    @property
    def source(self) -> Gateway:
        return Gateway(name=self.record.source_name, uuid=self.record.source, address="")

    @property
    def once(self) -> str:
        """The same for each of its deliveries, and nothing that helps anybody to ask for something."""
        return hashlib.sha256(b"once " + self.record.request.encode()).hexdigest()[: protocol.ONCE_DIGITS]

    @property
    def left(self) -> float:
        """Seconds for which it may wait."""
        return min(self.record.since + KEPT_SECONDS - time.time(), KEPT_SECONDS)


class Waiting:
    def __init__(self, caged: Caged, folder: Folder, stager: Stager, *,
                 again: Callable[[Kept], Awaitable[str]]) -> None:
        """`again` has one decided anew and delivered, and returns what came of it."""
        self._caged, self._folder, self._stager, self._again = caged, folder, stager, again
        self._kept: dict[str, Kept] = {}
        self._pairs: WeakValueDictionary[tuple[str, str], asyncio.Lock] = WeakValueDictionary()
        self._going: set[asyncio.Task[None]] = set()
        self._left = folder.load()
        for record in self._left.kept:
            staged = record.staged()
            stager.adopt(staged)
            self._add(Kept(record=record, staged=staged, details=described(record) | {"resumed": "yes"}))
        caged.presence.on_change(self._look)
        caged.on_cage(self._changed)

    # --- one that is accepted --------------------------------------------------------------------------------
    @contextlib.contextmanager
    def admitted(self, kept: Kept) -> Iterator[None]:
        """It is one of them, unless the block fails; TransferFailed where its source has as many as it may."""
        of_source = [other for other in self._kept.values() if other.record.source == kept.record.source]
        waiting = sum(other.staged.size for other in of_source if other.waits)
        if len(of_source) >= KEPT_PER_CAGE or (waiting and waiting + kept.staged.size > KEPT_BYTES_PER_CAGE):
            raise TransferFailed("what this cage has sent before waits for where it is to go, and no more is taken "
                                 "until it is there")
        with contextlib.ExitStack() as failed:
            self._add(kept)
            failed.callback(self._drop, kept)
            yield
            failed.pop_all()

    def since(self, source: str, target: str) -> int:
        """Whatever of that source still waits for that target was accepted then or later."""
        return min((kept.record.since for kept in self._kept.values()
                    if (kept.record.source, kept.record.target_uuid) == (source, target)), default=NOTHING_WAITS)

    async def attempt(self, kept: Kept, how: Callable[[], Awaitable[str]]) -> None:
        """Try it, once; it waits where that is no end."""
        kept.busy = True
        try:
            await self._attempt(kept, how)
        finally:
            kept.busy = False
        if kept.wanted and kept.task is None:
            self._try(kept)

    async def _attempt(self, kept: Kept, how: Callable[[], Awaitable[str]]) -> None:
        try:
            outcome = await how()
        except asyncio.CancelledError:
            kept.staged.rest()  # for the next core half
            raise
        except _COMES_BACK as error:
            kept.staged.rest()
            LOG.info("%s waits: %s", kept.record.request, escape(error.sentence))
            if kept.left > 0:
                await self._wait(kept, error)
                return
            outcome = _TOO_LONG
        except (CageError, OSError) as error:
            outcome = sentence_of(error)
        await self._end(kept, outcome)

    async def _wait(self, kept: Kept, error: CageError) -> None:
        """The chain is told once, and of its cages alone."""
        told, kept.waits = kept.waits or not isinstance(error, _STANDS), True
        if isinstance(error, _LATER):
            kept.delays += 1
            seconds = min(LATER_SECONDS * 2 ** (kept.delays - 1), LATEST_SECONDS)
            asyncio.get_running_loop().call_later(seconds, self._try, kept)
        if not told:
            gone = isinstance(error, attached.Gone)
            await self._record(kept, f"waits, because {'the target ended' if gone else 'one of the two does not run'}")

    async def _end(self, kept: Kept, outcome: str) -> None:
        """Nothing of it stays once the chain has what came of it; until then all of it does."""
        if not await self._record(kept, outcome):
            kept.staged.rest()
            kept.waits = True
            return
        if kept.staged.writable < 0:
            with contextlib.suppress(TransferFailed):  # somebody may hold its space still
                self._folder.open(kept.record.request, kept.staged)
        self._folder.forget(kept.record.request)
        kept.staged.discard()
        self._drop(kept)

    # --- those that wait -------------------------------------------------------------------------------------
    def _add(self, kept: Kept) -> None:
        self._kept[kept.record.request] = kept
        kept.expiry = asyncio.get_running_loop().call_later(max(kept.left, 0.0), self._expire, kept)

    def _drop(self, kept: Kept) -> None:
        self._kept.pop(kept.record.request, None)
        kept.wanted = False
        if kept.expiry is not None:
            kept.expiry.cancel()

    def _look(self) -> None:
        """There is another caged, which knows of nothing."""
        self._do(self._look_again())

    async def _look_again(self) -> None:
        try:
            await self._caged.gateways()  # from now on it says which cages run
        except RuntimeFailure as error:  # its return is the next reason to look
            LOG.info("what waits goes on waiting: %s", escape(error.sentence))
            return
        await self._record_left()
        for kept in list(self._kept.values()):
            self._try(kept)

    def _changed(self, uuid: str, runs: bool) -> None:
        """The cage runs, or is gone."""
        for kept in list(self._kept.values()):
            if uuid == kept.lacks or (not runs and uuid in (kept.record.source, kept.record.target_uuid)):
                self._try(kept)

    def _try(self, kept: Kept) -> None:
        kept.wanted = kept.record.request in self._kept
        if kept.wanted and kept.task is None and not kept.busy:
            kept.task = self._do(self._keep_trying(kept))

    async def _keep_trying(self, kept: Kept) -> None:
        """Those of one source for one target go one after the other."""
        pair = kept.record.source, kept.record.target_uuid
        try:
            async with self._pairs.setdefault(pair, asyncio.Lock()):
                while kept.wanted and not kept.busy:
                    kept.wanted = False
                    kept.details["resumed"] = "yes"
                    await self.attempt(kept, lambda: self._again(kept))
        finally:
            kept.task = None

    def _expire(self, kept: Kept) -> None:
        """It has waited for as long as it may; one that is being tried finds so when it is to wait again."""
        if not kept.busy:
            self._do(self._give_up(kept))

    async def _give_up(self, kept: Kept) -> None:
        kept.busy = True
        await self._end(kept, _TOO_LONG)

    # --- the record ------------------------------------------------------------------------------------------
    async def _record(self, kept: Kept, outcome: str) -> bool:
        record = kept.record
        return await self._tell(kept.source, record.target_uuid, record.service,
                                logged(kept.details, record.log, outcome))

    async def _record_left(self) -> None:
        """What an earlier core half had under way and has accepted from nobody, and what was of no use."""
        left, self._left = self._left, Found(kept=[], begun=[], named=[], useless=[])
        for records, so_far in ((left.begun, "nothing arrived"), (left.named, "it may have arrived")):
            for record in records:
                outcome = f"given up, because the core ended meanwhile; {so_far}"
                source = Gateway(name=record.source_name, uuid=record.source, address="")
                if await self._tell(source, record.target_uuid, record.service,
                                    logged(described(record), record.log, outcome)):
                    self._folder.forget(record.request)
        for useless in left.useless:
            await self._tell(NOBODY, "", protocol.SERVICE, {
                "record": useless.name, "outcome": f"not resumed, and set aside: {useless.fault}"})

    async def _tell(self, source: Gateway, target: str, service: str, details: dict[str, str]) -> bool:
        try:
            await self._caged.record(source, target, service, details)
        except CageError as error:
            LOG.error("not recorded: %s: %s", escape(str(details)), escape(error.sentence))
            return False
        return True

    def _do(self, work: Awaitable[None]) -> asyncio.Task[None]:
        task = asyncio.ensure_future(work)
        self._going.add(task)
        task.add_done_callback(self._going.discard)
        return task


def sentence_of(error: Exception) -> str:
    return error.sentence if isinstance(error, CageError) else str(error)


def described(record: Record) -> dict[str, str]:
    """What the chain has of a transfer."""
    about = {"name": f"{record.name}/" if record.tree else record.name, "request": record.request}
    if not record.sha256:
        return about
    about |= {"size": str(record.content), "sha256": record.plain_sha256 or record.sha256}
    if record.plain_sha256:
        about |= {"encrypted-size": str(record.size), "encrypted-sha256": record.sha256,
                  "transform": record.transform}
    if record.require:
        about["require"] = record.require
    if record.tree:
        about["files"] = str(record.files)
    return about


_DIGESTS = ("sha256", "encrypted-sha256")
_CALLED = ("name", "sent-name")
_SIZES = ("size", "encrypted-size", "files")


def logged(details: dict[str, str], log: str, outcome: str) -> dict[str, str]:
    """What the record has of it, and of what came of it: a rule with log= can have it leave out the digest, which tells
    who has the file that it is that one (meta), and also what it was called and how large it was (no)."""
    left_out = {"": (), "digest": (), "meta": _DIGESTS}.get(log, _DIGESTS + _CALLED + _SIZES)
    kept = {key: value for key, value in details.items() if key not in left_out}
    return kept | {"outcome": outcome if _CALLED[0] in kept else _nameless(details, outcome)}


def _nameless(details: dict[str, str], outcome: str) -> str:
    """The outcome without the file's name, there or here."""
    if outcome.startswith(ARRIVED_AS):
        return "arrived"
    for name in filter(None, map(details.get, _CALLED)):
        outcome = outcome.replace(f'"{escape(name.removesuffix("/"))}"', "it")
    return outcome
