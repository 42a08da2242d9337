# SPDX-License-Identifier: LGPL-2.1-or-later
"""The core half: writes the lines of cages into the host's journal, or where there is none into its own log.

Law of this room: whose line it is says the gateway, in fields of their own; the line itself is escaped by the one
function, so that it is one line and moves nothing.  A cage has a share of the journal, and what is beyond it is left
out and counted, where the lines would have been.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field

from cage_runtime.bucket import Bucket, Rate
from cage_runtime.bus import Answer, Call
from cage_runtime.journald import Journald, Priority
from cage_runtime.model import (
    LOG_CALLS_BURST,
    LOG_CALLS_PER_SECOND,
    LOG_GAP_SECONDS,
    LOG_JOURNAL_SECONDS,
    LOG_LINES_BURST,
    LOG_LINES_PER_SECOND,
)
from cage_runtime.text import escape
from mediators import corehalf, wire
from mediators.log import protocol
from mediators.log.protocol import Entries
from mediators.wire import Caged, Gateway, What

LOG = logging.getLogger(__name__)
CALLS = Rate(burst=LOG_CALLS_BURST, per_second=LOG_CALLS_PER_SECOND)
LINES = Rate(burst=LOG_LINES_BURST, per_second=LOG_LINES_PER_SECOND)
SHOWN_LINES = 8
"""Of a call, for a person who is asked about it."""


@dataclass(kw_only=True, slots=True)
class Book:
    """What is kept of one cage while its gateway stands."""

    source: Gateway
    calls: Bucket
    lines: Bucket
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Its calls go one after the other, as their lines are to be read."""
    left_out: int = 0
    telling: asyncio.TimerHandle | None = None


class Ledger:
    """The shares of all cages, and what becomes of their lines."""

    def __init__(self, journald: Journald) -> None:
        self._journald = journald
        self._books: dict[str, Book] = {}

    def book(self, source: Gateway) -> Book:
        now = asyncio.get_running_loop().time()
        return self._books.setdefault(source.uuid, Book(
            source=source, calls=Bucket(CALLS, now), lines=Bucket(LINES, now)))

    def left(self, uuid: str) -> None:
        """The gateway of that instance has gone."""
        book = self._books.pop(uuid, None)
        if book is not None and book.telling is not None:
            book.telling.cancel()
            self._tell_gap(book)

    async def write(self, book: Book, entries: Entries, taken: int) -> None:
        """The first `taken` of the entries are written, the others left out."""
        tag = {"CAGE_TAG": entries.tag} if entries.tag else {}
        before = f"{entries.tag}: " if entries.tag else ""
        clock = asyncio.get_running_loop().time
        written, deadline = 0, clock() + LOG_JOURNAL_SECONDS
        for line in entries.untrusted_lines[:taken]:
            shown = before + escape(line, limit=protocol.LINE_CHARACTERS_MAX)
            told = self._told(book.source, shown, entries.priority, tag)
            while not told and clock() < deadline:
                await self._journald.room(deadline - clock())
                told = self._told(book.source, shown, entries.priority, tag)
            written += told
        self._leave_out(book, len(entries.untrusted_lines) - written)

    def _leave_out(self, book: Book, count: int) -> None:
        book.left_out += count
        if book.left_out and book.telling is None:
            book.telling = asyncio.get_running_loop().call_later(LOG_GAP_SECONDS, self._tell_gap, book)

    def _tell_gap(self, book: Book) -> None:
        count, book.left_out, book.telling = book.left_out, 0, None
        text = f"{count} messages were left out, because this cage writes more than its share"
        told = self._told(book.source, text, Priority.WARNING, {"LEFT_OUT": str(count)})
        if not told and self._books.get(book.source.uuid) is book:
            self._leave_out(book, count)

    def _told(self, source: Gateway, text: str, priority: int, more: dict[str, str]) -> bool:
        """Whether it is in the journal, or in our own log where there is none."""
        told = self._journald.send({
            "MESSAGE": text, "PRIORITY": str(int(priority)), "SYSLOG_IDENTIFIER": f"cage-{source.name}",
            "CAGE": source.name, "CAGE_UUID": source.uuid, **more})
        if told is None:
            LOG.info("the cage %s: %s", source.name, text)
        return told is not False


class LogCore:
    """Serves org.cageruntime.Log1 on every gateway."""

    def __init__(self, caged: Caged, ledger: Ledger) -> None:
        self._caged, self._ledger = caged, ledger

    async def write(self, source: Gateway, call: Call) -> Answer:
        entries, book = protocol.parse(*call.arguments), self._ledger.book(source)
        async with book.turn:
            await _pace(book)
            request = wire.new_request()
            permission = await self._caged.decide(source.uuid, protocol.SERVICE, "", protocol.CORE, request)
            shown = tuple(entries.untrusted_lines[:SHOWN_LINES])
            await self._caged.confirm(permission, What(size=entries.size, lines=shown))
            taken = book.lines.take_of(len(entries.untrusted_lines), asyncio.get_running_loop().time())
            # What cannot be recorded is not done.
            await self._caged.record(source, protocol.CORE, protocol.SERVICE, {
                "request": request, "size": str(entries.size),
                "outcome": f"{taken} of {len(entries.untrusted_lines)} lines are written"})
            await self._ledger.write(book, entries, taken)
        return Answer()


async def _pace(book: Book) -> None:
    """A cage's lines are not to take all that caged decides for it in a second."""
    clock = asyncio.get_running_loop().time
    while not book.calls.take(clock()):
        await asyncio.sleep(book.calls.wait(clock()))


def run(arguments: list[str]) -> int:
    """`cage-mediator log [--config FILE]`."""
    ledger = Ledger(Journald())
    return corehalf.run("log", arguments, service=protocol.SERVICE, left=ledger.left,
                        handlers=lambda caged: {"Write": LogCore(caged, ledger).write})
