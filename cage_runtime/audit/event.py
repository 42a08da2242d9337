# SPDX-License-Identifier: LGPL-2.1-or-later
"""What is recorded, and the one encoding of a record: canonical JSON, so that equal records are equal bytes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum

from cage_runtime.model import AUDIT_FIELDS_MAX, AUDIT_VALUE_MAX
from cage_runtime.text import escape

FIRST_PREVIOUS = "0" * 64
"""What stands in the first record for the hash of the one before it."""
_KEY_MAX = 64


class Kind(StrEnum):
    """What happened."""

    CORE_STARTED = "core-started"
    CORE_STOPPED = "core-stopped"
    RECOVERED = "recovered"
    CLOCK_SET_BACK = "clock-set-back"
    CAGE_CREATED = "cage-created"
    CAGE_STARTED = "cage-started"
    CAGE_ADOPTED = "cage-adopted"
    CAGE_PAUSED = "cage-paused"
    CAGE_RESUMED = "cage-resumed"
    CAGE_STOPPED = "cage-stopped"
    CAGE_FAILED = "cage-failed"
    CAGE_DESTROYED = "cage-destroyed"
    CAGE_ENTERED = "cage-entered"
    COPY = "copy"
    CAGE_ENABLED = "cage-enabled"
    CAGE_DISABLED = "cage-disabled"
    AUTOSTART_FAILED = "autostart-failed"
    REFUSED = "refused"
    DECISION = "decision"
    MALFORMED = "malformed"
    DENIED_BY_KERNEL = "denied-by-kernel"
    CALLS_ANSWERED = "calls-answered"
    TRANSFER = "transfer"
    REMOTE_ADDED = "remote-added"
    REMOTE_REMOVED = "remote-removed"
    APPLICATION_INSTALLED = "application-installed"
    APPLICATION_UPDATED = "application-updated"
    APPLICATION_REMOVED = "application-removed"
    APPLICATION_RUN = "application-run"
    PROMPT_OPENED = "prompt-opened"
    PROMPT_ANSWERED = "prompt-answered"
    PROMPT_WITHDRAWN = "prompt-withdrawn"
    GRANT_MADE = "grant-made"
    GRANT_REVOKED = "grant-revoked"
    GRANT_EXPIRED = "grant-expired"
    POLICY_LOADED = "policy-loaded"
    POLICY_REFUSED = "policy-refused"
    RECEIPT_KEY_MADE = "receipt-key-made"

    @property
    def is_coming(self) -> bool:
        """Whether it is about a cage's coming or going, and not about what the cage did: nobody misses those of an
        ephemeral cage that a power loss has taken with it."""
        return self in _COMINGS


_COMINGS = frozenset({
    Kind.CAGE_CREATED, Kind.CAGE_STARTED, Kind.CAGE_ADOPTED, Kind.CAGE_PAUSED, Kind.CAGE_RESUMED, Kind.CAGE_STOPPED,
    Kind.CAGE_FAILED, Kind.CAGE_DESTROYED,
})


@dataclass(frozen=True, kw_only=True)
class Event:
    """`time` is RFC 3339 in UTC; `fields` are escaped and bounded."""

    time: str
    kind: str
    fields: Mapping[str, str]

    @classmethod
    def at(cls, moment: datetime, kind: Kind, untrusted_fields: Mapping[str, str]) -> Event:
        """An event of `moment`, which knows its time zone, with whatever fields may come from a cage made safe."""
        return cls(time=rfc3339(moment), kind=kind.value, fields=_safe(untrusted_fields))


def rfc3339(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="microseconds").removesuffix("+00:00") + "Z"


def _safe(untrusted_fields: Mapping[str, str]) -> dict[str, str]:
    pairs = list(untrusted_fields.items())
    fields = {
        escape(key, limit=_KEY_MAX): escape(value, limit=AUDIT_VALUE_MAX) for key, value in pairs[:AUDIT_FIELDS_MAX]
    }
    if len(pairs) > AUDIT_FIELDS_MAX:
        fields["fields-left-out"] = str(len(pairs) - AUDIT_FIELDS_MAX)
    return fields


@dataclass(frozen=True, kw_only=True)
class Record:
    """An event in its place in the chain; `sequence` counts from 1."""

    sequence: int
    previous: str
    event: Event

    @property
    def hash(self) -> str:
        """SHA-256, in hexadecimal, over the canonical encoding of everything else in the record."""
        return hashlib.sha256(_canonical(self._body())).hexdigest()

    def encode(self) -> bytes:
        """The record as one line."""
        return _canonical(self._body() | {"hash": self.hash}) + b"\n"

    def _body(self) -> dict[str, object]:
        event = {"time": self.event.time, "kind": self.event.kind, "fields": dict(self.event.fields)}
        return {"sequence": self.sequence, "previous": self.previous, **event}


def decode(untrusted_line: bytes) -> Record:
    """The record on a line, its newline included; ValueError, one clause, where the line is not what was written."""
    try:
        found = json.loads(untrusted_line)
    except (ValueError, RecursionError) as error:
        raise ValueError("is not a record") from error
    match found:
        case {
            "sequence": int(sequence), "previous": str(previous), "hash": str(),
            "time": str(time), "kind": str(kind), "fields": dict(fields),
        } if all(isinstance(value, str) for value in fields.values()):
            event = Event(time=time, kind=kind, fields=fields)
            record = Record(sequence=sequence, previous=previous, event=event)
        case _:
            raise ValueError("is not a record")
    # Only the canonical bytes count: no second spelling of a record has its hash.
    if record.encode() != untrusted_line:
        raise ValueError("was changed after it was written")
    return record


def _canonical(body: Mapping[str, object]) -> bytes:
    text = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "surrogatepass")
