# SPDX-License-Identifier: LGPL-2.1-or-later
"""Tickets: what was decided of a request, given to the core half that asked, which shows it when it acts on that.

Law of this room: a ticket says in the open for whom it is and for how long, and only caged can have written it.  None
is kept.  The key is kept under RUN, so that what an earlier caged of this boot has decided is good until it expires,
and what one of an earlier boot has decided is not.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import math
import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import msgspec

from cage_runtime.daemon.grants import since_boot
from cage_runtime.decoding import decode
from cage_runtime.errors import NotAuthorized, TicketExpired
from cage_runtime.model import TICKET_MAX, TICKET_SECONDS

LOG = logging.getLogger(__name__)
KEY_BYTES = 32
FORGED = "what it shows for a permission is none that caged has given to it"
EXPIRED = (f"more than {TICKET_SECONDS} s have gone since it was permitted, and nothing has been done by then; "
           "ask for it again")


class Flag(StrEnum):
    CONFIRMED = "confirmed"
    """Policy, and a person where a rule says so, permit it for what it turned out to be."""
    AUTOSTART = "autostart"
    """The rule says autostart=yes: the target may be started for it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ticket:
    """What was decided, as far as it binds whoever acts on it."""

    mediator: str
    """Whose core half has asked."""
    service: str
    source: str
    """The uuid of the instance."""
    target: str
    """The uuid of the instance, or "@core" or "@disposable:TEMPLATE"; empty where a person is still to choose it."""
    request: str
    flags: frozenset[Flag] = frozenset()


class _Kept(msgspec.Struct, forbid_unknown_fields=True):
    boot: str
    key: str
    """Hexadecimal."""


class Tickets:
    def __init__(self, file: Path, boot: str, *, clock: Callable[[], float] = since_boot) -> None:
        """`file` has the key; where it is not there, is of another boot or cannot be read, the key is a new one."""
        self._clock = clock
        self._key = _kept(file, boot) or _new(file, boot)

    def issue(self, ticket: Ticket) -> str:
        """It in words, good for TICKET_SECONDS."""
        expires = math.ceil(self._clock()) + TICKET_SECONDS
        flags = "+".join(sorted(ticket.flags))
        words = ":".join((ticket.request, ticket.service, ticket.source, ticket.target, str(expires), flags))
        return f"{words}:{self._code(ticket.mediator, words)}"

    def read(self, untrusted_words: str, mediator: str) -> Ticket:
        """The ticket of these words, which the core half of `mediator` shows; NotAuthorized where caged has not given
        it to that one, TicketExpired where it is too old."""
        untrusted_signed, _, untrusted_code = untrusted_words.rpartition(":")
        if len(untrusted_words) > TICKET_MAX or not hmac.compare_digest(
                self._code(mediator, untrusted_signed).encode(), untrusted_code.encode()):
            raise NotAuthorized(FORGED)
        # These are our own words now.  A target may have a colon in it, and nothing else has.
        request, service, source, rest = untrusted_signed.split(":", 3)
        target, expires, flags = rest.rsplit(":", 2)
        if self._clock() >= int(expires):
            raise TicketExpired(EXPIRED)
        return Ticket(mediator=mediator, service=service, source=source, target=target, request=request,
                      flags=frozenset(Flag(flag) for flag in flags.split("+") if flag))

    def _code(self, mediator: str, words: str) -> str:
        return hmac.new(self._key, f"{mediator}:{words}".encode(), hashlib.sha256).hexdigest()


def _kept(file: Path, boot: str) -> bytes | None:
    try:
        kept = decode(file.read_bytes(), msgspec.json.Decoder(_Kept))
        key = bytes.fromhex(kept.key)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        LOG.error("the key of tickets is a new one, because %s is of no use: %s", file, error)
        return None
    return key if kept.boot == boot and len(key) == KEY_BYTES else None


def _new(file: Path, boot: str) -> bytes:
    """A new key, for later cageds of this boot too; where it cannot be written down, what it is used for is good
    until this one ends."""
    key, fresh = secrets.token_bytes(KEY_BYTES), file.with_name(f"{file.name}.new")
    try:
        fresh.unlink(missing_ok=True)
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(descriptor, "wb") as writing:
            writing.write(msgspec.json.encode(_Kept(boot=boot, key=key.hex())))
        fresh.rename(file)
    except OSError as error:
        LOG.error("%s cannot be written: what is permitted is permitted again after caged has ended: %s", file, error)
    return key
