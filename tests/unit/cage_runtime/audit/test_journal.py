# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the journal is told: whole events with fields that nobody can forge, and never at the core's expense."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from cage_runtime.audit import journal
from cage_runtime.audit.chain import Chain
from cage_runtime.audit.event import FIRST_PREVIOUS, Event, Kind, Record
from cage_runtime.audit.journal import MESSAGES, UNTOLD, Journal, fields_of
from cage_runtime.journald import Priority, encode
from cage_runtime.model import AUDIT_FIELDS_MAX

CATALOGUE = Path(journal.__file__).parents[1] / "resources/cage-runtime.catalog"
NOON = datetime(2026, 11, 26, 12, tzinfo=UTC)
DENIED = {
    "cage": "work", "uuid": "0" * 32, "mediator": "files", "service": "files.Send", "argument": "", "target": "vault",
    "decision": "deny", "rule": "/etc/cage-runtime/policy.d/50-x.policy:7", "reason": "the rule denies it",
    "flow": "up", "request": "f" * 32,
}


def record(kind: Kind, fields: dict[str, str]) -> Record:
    return Record(sequence=7, previous=FIRST_PREVIOUS, event=Event.at(NOON, kind, fields))


def decode(datagram: bytes) -> list[tuple[str, bytes]]:
    """As journald reads it: NAME=VALUE, or NAME, a newline, the value's length in 8 bytes, and the value."""
    fields, rest = [], datagram
    while rest:
        line, _, rest = rest.partition(b"\n")
        name, equals, value = line.partition(b"=")
        if not equals:
            size = int.from_bytes(rest[:8], "little")
            value, end, rest = rest[8 : 8 + size], rest[8 + size : 9 + size], rest[9 + size :]
            assert end == b"\n"
        assert re.fullmatch(rb"[A-Z][A-Z0-9_]{0,63}", name)
        fields.append((name.decode(), value))
    return fields


class Listener:
    """A journald that only listens."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.socket.bind(str(path))

    def heard(self) -> list[dict[str, str]]:
        """What has come since, an event each."""
        events = []
        while True:
            try:
                fields = decode(self.socket.recv(1 << 20))
            except BlockingIOError:
                return events
            assert len(dict(fields)) == len(fields)
            events.append({name: value.decode() for name, value in fields})


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[Listener]:
    listener = Listener(tmp_path / "socket")
    yield listener
    listener.socket.close()


@pytest.fixture
def told(tmp_path: Path) -> Iterator[Journal]:
    told = Journal(str(tmp_path / "socket"))
    yield told
    told.close()


# --- what it is told ---------------------------------------------------------------------------------------------
def test_a_decision_has_its_fields(listener: Listener, told: Journal) -> None:
    told.tell(record(Kind.DECISION, DENIED))
    assert listener.heard() == [{
        "MESSAGE": "work may not use files.Send towards vault by /etc/cage-runtime/policy.d/50-x.policy:7: "
                   "the rule denies it",
        "MESSAGE_ID": MESSAGES[Kind.DECISION].id, "PRIORITY": "5", "SYSLOG_IDENTIFIER": "caged",
        "CAGE": "work", "CAGE_UUID": "0" * 32, "MEDIATOR": "files", "SERVICE": "files.Send", "SOURCE": "work",
        "TARGET": "vault", "DECISION": "deny", "RULE_FILE": "/etc/cage-runtime/policy.d/50-x.policy", "RULE_LINE": "7",
        "REQUEST_ID": "f" * 32, "FLOW": "up", "REASON": "the rule denies it",
        "AUDIT_SEQUENCE": "7", "AUDIT_HASH": record(Kind.DECISION, DENIED).hash,
    }]


@pytest.mark.parametrize(("kind", "fields", "message", "priority"), [
    (Kind.DECISION, DENIED | {"decision": "allow", "rule": "x.policy:1", "reason": "allowed", "when": "at delivery"},
     "work may use files.Send towards vault by x.policy:1 (at delivery): allowed", Priority.INFO),
    (Kind.DECISION, DENIED | {"rule": ""}, "work may not use files.Send towards vault: the rule denies it", 5),
    (Kind.DECISION, {"cage": "work", "decision": "deny", "reason": "4 more"}, "work may not: 4 more", Priority.NOTICE),
    (Kind.REFUSED, {"by": "7", "method": "Stop", "cage": "work", "reason": "polkit says no"},
     "uid 7 was refused Stop of the cage work: polkit says no", Priority.NOTICE),
    (Kind.REFUSED, {"by": "7", "method": "ReloadPolicy", "reason": "no"}, "uid 7 was refused ReloadPolicy: no", 5),
    (Kind.REFUSED, {"by": "7", "reason": "4 more"}, "uid 7 was refused: 4 more", Priority.NOTICE),
    (Kind.REFUSED, {"reason": "4 more"}, "Several persons were refused: 4 more", Priority.NOTICE),
    (Kind.DENIED_BY_KERNEL, {"cage": "work", "operation": "ptrace", "count": "12"},
     "The kernel refused ptrace to the cage work, 12 times", Priority.WARNING),
    (Kind.CALLS_ANSWERED, {"cage": "work", "operation": "sysinfo", "count": "12"},
     "sysinfo of the cage work was answered in the kernel's stead, 12 times", Priority.INFO),
    (Kind.COPY, {"cage": "work", "direction": "in", "path": "a/", "outcome": "begun"},
     "Copy in: a/ of the cage work: begun", Priority.INFO),
    (Kind.CAGE_STARTED, {"cage": "work"}, "The cage work has started", Priority.INFO),
    (Kind.CAGE_FAILED, {"cage": "work", "why": "no home"}, "The cage work does not work: no home", Priority.ERROR),
    (Kind.RECOVERED, {"bytes-cut": "12"},
     "What was cut off has been put in order: 12 bytes of an unfinished record at the end of the audit chain", 4),
    (Kind.CAGE_ENTERED, {"cage": "work", "command": "{cage} {0.__class__} %s"},
     "{cage} {0.__class__} %s is run in the cage work as ?", Priority.INFO),
])
def test_an_event_is_a_sentence(kind: Kind, fields: dict[str, str], message: str, priority: int) -> None:
    found = fields_of(record(kind, fields))
    assert (found["MESSAGE"], found["PRIORITY"]) == (message, str(int(priority)))


def test_what_only_some_events_have_is_left_out_of_the_others() -> None:
    assert set(fields_of(record(Kind.CORE_STARTED, {"pid": "4"}))) == {
        "MESSAGE", "MESSAGE_ID", "PRIORITY", "SYSLOG_IDENTIFIER", "AUDIT_SEQUENCE", "AUDIT_HASH"}


# --- what a cage would have it believe -----------------------------------------------------------------------------
HOSTILE = ["x\nCAGE=vault", "x\n\nMESSAGE_ID=0", "a\0b", "=", "CAGE=vault", "\n", "\n\x05\0\0\0\0\0\0\0vault\n",
           "\udcff", "x\nPRIORITY=0\n", "\x1b]0;x\x07"]


@pytest.mark.parametrize("text", HOSTILE)
def test_no_value_can_be_another_field(text: str) -> None:
    """As it would be even if events were not escaped."""
    fields = {"MESSAGE": text, "CAGE": "work", "TARGET": text}
    raw = text.encode("utf-8", "backslashreplace")
    assert decode(encode(fields)) == [("MESSAGE", raw), ("CAGE", b"work"), ("TARGET", raw)]


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("key", ["name", "target", "why", "CAGE", "x\nCAGE", "rule"])
def test_a_cage_cannot_forge_a_field(listener: Listener, told: Journal, key: str, text: str) -> None:
    told.tell(record(Kind.TRANSFER, {"cage": "work", "uuid": "0" * 32, "outcome": "arrived", key: text}))
    (event,) = listener.heard()
    assert (event["CAGE"], event["SOURCE"], event["MESSAGE_ID"]) == ("work", "work", MESSAGES[Kind.TRANSFER].id)
    assert event["PRIORITY"] == "6"
    assert not any(character in value for value in event.values() for character in "\n\0\x1b")


def test_the_longest_event_is_one_datagram(listener: Listener, told: Journal) -> None:
    longest = "\U0010ffff" * 10_000
    keys = [*journal.FIELDS, "rule", "reason", "command", "as", "url"]
    assert len(keys) <= AUDIT_FIELDS_MAX
    for kind in Kind:
        told.tell(record(kind, dict.fromkeys(keys, longest)))
        (event,) = listener.heard()
        assert event["MESSAGE_ID"] == MESSAGES[kind].id
        assert len(event["CAGE"]) > 4000


# --- never at the core's expense -----------------------------------------------------------------------------------
def test_without_a_journal_nothing_happens(tmp_path: Path, told: Journal) -> None:
    told.tell(record(Kind.CORE_STARTED, {}))
    assert (told.untold, list(tmp_path.iterdir())) == (0, [])


def test_a_journal_that_takes_nothing_does_not_hold_anybody_up_and_hears_how_much_it_missed(
    listener: Listener, told: Journal
) -> None:
    sent = 0
    while not told.untold:  # a queue of some datagrams, sysctl net.unix.max_dgram_qlen
        told.tell(record(Kind.CAGE_STARTED, {"cage": f"c{sent}"}))
        sent += 1
    for _ in range(4):
        told.tell(record(Kind.CAGE_STARTED, {"cage": "unheard"}))
    assert [event["CAGE"] for event in listener.heard()] == [f"c{number}" for number in range(sent - 1)]
    told.tell(record(Kind.CAGE_STARTED, {"cage": "last"}))
    missed, last = listener.heard()
    assert (missed["MESSAGE_ID"], missed["UNTOLD"], missed["PRIORITY"]) == (UNTOLD.id, "5", "4")
    assert missed["MESSAGE"].startswith("5 events were not told to the journal")
    assert (last["CAGE"], told.untold) == ("last", 0)


def test_a_journal_that_has_ended_is_missed_and_the_next_one_is_told(tmp_path: Path, told: Journal) -> None:
    first = Listener(tmp_path / "socket")
    first.socket.close()
    told.tell(record(Kind.CAGE_STARTED, {"cage": "unheard"}))
    assert told.untold == 1
    (tmp_path / "socket").unlink()
    second = Listener(tmp_path / "socket")
    told.tell(record(Kind.CAGE_STARTED, {"cage": "heard"}))
    assert [event["MESSAGE_ID"] for event in second.heard()] == [UNTOLD.id, MESSAGES[Kind.CAGE_STARTED].id]
    second.socket.close()


def test_it_is_told_what_the_chain_has_and_nothing_else(tmp_path: Path, listener: Listener, told: Journal) -> None:
    with Chain.open(tmp_path / "audit", tell=told.tell) as chain:
        chain.append(Kind.CORE_STARTED, {})
        chain.append(Kind.DECISION, DENIED)
        events = listener.heard()
        assert [event["AUDIT_SEQUENCE"] for event in events] == ["1", "2"]
        assert all(f'"hash":"{event["AUDIT_HASH"]}"' in line for event, line in zip(events, chain.tail(9), strict=True))


# --- the catalogue -------------------------------------------------------------------------------------------------
def entries() -> dict[str, str]:
    """Text by message id."""
    parts = re.split(r"^-- ([0-9a-f]{32})\n", CATALOGUE.read_text(encoding="utf-8"), flags=re.M)
    assert len(parts[1::2]) == len(set(parts[1::2])), "two entries for one message"
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_every_kind_of_event_has_an_entry_and_every_entry_a_kind() -> None:
    assert set(MESSAGES) == set(Kind)
    ids = [message.id for message in MESSAGES.values()] + [UNTOLD.id]
    assert len(set(ids)) == len(ids)
    assert set(entries()) == set(ids)


@pytest.mark.parametrize("kind", Kind)
def test_an_entry_says_who_and_what(kind: Kind) -> None:
    head, _, text = entries()[MESSAGES[kind].id].partition("\n\n")
    assert [line.partition(": ")[0] for line in head.split("\n")] == [
        "Subject", "Defined-By", "Support", "Documentation"]
    assert "\nDocumentation: man:caged(8)" in head
    assert text.strip().endswith(".")


SAMPLES: dict[Kind, dict[str, str]] = {
    Kind.DECISION: DENIED, Kind.TRANSFER: {"cage": "work", "target": "vault", "request": "f" * 32, "outcome": "x"},
    Kind.COPY: {"cage": "work", "direction": "in", "path": "x", "outcome": "begun"},
    Kind.MALFORMED: {"cage": "work", "service": "files.Send", "fault": "x"},
    Kind.RECOVERED: {"what": "x"}, Kind.CLOCK_SET_BACK: {"to": "x", "why": "x"}, Kind.POLICY_REFUSED: {"why": "x"},
    Kind.RECEIPT_KEY_MADE: {},
    Kind.REFUSED: {"reason": "x"}, Kind.DENIED_BY_KERNEL: {"cage": "work", "operation": "kill", "count": "3"},
    Kind.CALLS_ANSWERED: {"cage": "work", "operation": "sysinfo", "count": "3"},
    Kind.CORE_STARTED: {"pid": "1"}, Kind.CORE_STOPPED: {"pid": "1"}, Kind.POLICY_LOADED: {"rules": "1"},
    Kind.REMOTE_ADDED: {"remote": "x", "url": "x"}, Kind.REMOTE_REMOVED: {"remote": "x"},
    Kind.CAGE_FAILED: {"cage": "work", "why": "x"}, Kind.AUTOSTART_FAILED: {"cage": "work", "why": "x"},
    Kind.PROMPT_OPENED: {"cage": "work", "service": "files.Send", "target": "vault"},
    Kind.PROMPT_ANSWERED: {"cage": "work", "service": "files.Send", "target": "vault", "by": "1000"},
    **{kind: {"cage": "work", "service": "files.Send", "target": "vault", "why": "x"}
       for kind in (Kind.PROMPT_WITHDRAWN, Kind.GRANT_REVOKED)},
    **{kind: {"cage": "work", "application": "org.example.App"} for kind in Kind if kind.startswith("application-")},
}


@pytest.mark.parametrize("kind", Kind)
def test_an_entry_names_only_fields_that_its_event_has(kind: Kind) -> None:
    """journalctl prints the name of a field that is not there."""
    named = set(re.findall(r"@([A-Z_]+)@", entries()[MESSAGES[kind].id]))
    assert named <= set(fields_of(record(kind, SAMPLES.get(kind, {"cage": "work", "level": "public"}))))
