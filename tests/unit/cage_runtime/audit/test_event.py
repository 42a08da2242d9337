# SPDX-License-Identifier: LGPL-2.1-or-later
"""Records: what is escaped and bounded, and that only the bytes that were written are accepted."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cage_runtime.audit.event import FIRST_PREVIOUS, Event, Kind, Record, decode
from cage_runtime.model import AUDIT_FIELDS_MAX, AUDIT_RECORD_BYTES_MAX, AUDIT_VALUE_MAX

MOMENT = datetime(2026, 11, 23, 16, 0, 0, 5, tzinfo=UTC)


def record(fields: dict[str, str], sequence: int = 1) -> Record:
    return Record(sequence=sequence, previous=FIRST_PREVIOUS, event=Event.at(MOMENT, Kind.DECISION, fields))


def test_a_record_is_one_line_of_canonical_json() -> None:
    body = '{"fields":{"source":"work"},%s"kind":"decision","previous":"' + FIRST_PREVIOUS + '","sequence":1,'
    body += '"time":"2026-11-23T16:00:00.000005Z"}'
    found = record({"source": "work"})
    assert found.encode().decode() == body % f'"hash":"{found.hash}",' + "\n"


def test_time_is_utc_whatever_the_clock_says() -> None:
    moment = MOMENT.astimezone(timezone(timedelta(hours=9)))
    assert Event.at(moment, Kind.DECISION, {}).time == "2026-11-23T16:00:00.000005Z"


def test_values_and_keys_are_escaped() -> None:
    event = Event.at(MOMENT, Kind.TRANSFER, {"file\n": 'a\x1b]8;;x\x07"\u202e\r.txt', "bytes": "\udcff"})
    assert event.fields == {"file\\n": 'a\\x1b]8;;x\\x07"\\u202e\\r.txt', "bytes": "\\udcff"}


def test_values_and_fields_are_bounded() -> None:
    fields = {str(number): "x" for number in range(AUDIT_FIELDS_MAX + 5)} | {"0": "y" * 10_000}
    event = Event.at(MOMENT, Kind.TRANSFER, fields)
    assert len(event.fields) == AUDIT_FIELDS_MAX + 1
    assert event.fields["fields-left-out"] == "5"
    assert event.fields["0"] == "y" * AUDIT_VALUE_MAX + "…"


def test_the_worst_record_fits() -> None:
    worst = {f"{number}\U000e0001" + "\U000e0001" * 100: "\U000e0001" * 1000 for number in range(100)}
    assert len(record(worst).encode()) < AUDIT_RECORD_BYTES_MAX


@given(fields=st.dictionaries(st.text(), st.text(st.characters(codec=None)), max_size=5))
def test_a_record_reads_back_as_itself(fields: dict[str, str]) -> None:
    written = record(fields)
    assert decode(written.encode()) == written
    assert written.encode().count(b"\n") == 1


@pytest.mark.parametrize(
    "line",
    [b"", b"\n", b"null\n", b"[]\n", b"{}\n", b"\xff\n", b"\0\0\0\n", b"[" * 100_000 + b"\n", b'{"a":\n'],
)
def test_what_is_no_record(line: bytes) -> None:
    with pytest.raises(ValueError, match="is not a record"):
        decode(line)


def test_every_flipped_bit_is_seen() -> None:
    line = record({"source": "work"}).encode()
    for position in range(len(line)):
        for bit in range(8):
            changed = bytearray(line)
            changed[position] ^= 1 << bit
            with pytest.raises(ValueError, match=r"is not a record|was changed"):
                decode(bytes(changed))


def test_another_spelling_of_the_same_record_is_a_change() -> None:
    line = record({"source": "work"}).encode()
    spaced = json.dumps(json.loads(line), sort_keys=True).encode() + b"\n"
    doubled = line.replace(b'{"fields"', b'{"kind":"x","fields"')
    for other in (spaced, doubled, line.rstrip(b"\n"), b" " + line):
        with pytest.raises(ValueError, match="was changed"):
            decode(other)
