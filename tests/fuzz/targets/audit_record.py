# SPDX-License-Identifier: LGPL-2.1-or-later
"""A line of the audit chain, and what a cage says in one: it reads back as it was written."""

from __future__ import annotations

from datetime import UTC, datetime

from cage_runtime.audit.event import Event, Kind, Record, decode
from tests.fuzz.values import Taken

MAY_RAISE = (ValueError,)
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def run(untrusted: bytes) -> None:
    taken = Taken(untrusted)
    if taken.byte() & 1:
        record = decode(taken.rest())
        assert decode(record.encode()) == record
        return
    fields = {taken.text(): taken.blob().decode("utf-8", "surrogateescape") for _ in range(taken.byte() % 8)}
    record = Record(sequence=1, previous="0" * 64, event=Event.at(NOON, Kind.DECISION, fields))
    line = record.encode()
    assert line.isascii() or line.decode()
    assert b"\n" not in line.rstrip(b"\n")
    assert decode(line) == record
