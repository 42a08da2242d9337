# SPDX-License-Identifier: LGPL-2.1-or-later
"""Grants: answers that stand for a time, allowing or denying, so that nobody is asked the same again and again.

A grant is for one instance, service, argument, operation and target, and for the rule that asked, word by word; it is
no permission: what it answers is decided like what a person answers.  Its time is that of the host since it was
started, suspended or not, which nobody sets back.  It is kept under RUN, for the next caged of the same boot.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from cage_runtime.decoding import decode
from cage_runtime.errors import NoSuchGrant, RuntimeFailure
from cage_runtime.model import GRANTS_PER_CAGE, Action
from cage_runtime.text import escape

LOG = logging.getLogger(__name__)


def since_boot() -> float:
    """Seconds since the host was started, those in which it was suspended too."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Subject(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a grant answers: every request of which all of this is true."""

    source: str
    """The uuid of the instance."""
    service: str
    argument: str
    asked: str
    """The target's name as the source gives it, empty where it gives none."""
    target: str
    """The uuid of the instance that this is; empty where a person has to choose, or it is no cage."""
    rule_text: str
    operation: str = ""
    """Untrusted: which of the things that the service does, where it does several."""


class Grant(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    id: str
    action: Action
    """Allow or deny."""
    subject: Subject
    owner: int
    """The person whose cage the source is."""
    private: bool
    source_name: str
    target_name: str
    """What was chosen; of one that denies, what was asked for."""
    target_uuid: str
    """The instance that was chosen, empty where it is no cage."""
    since: str
    """When it was given, by RFC 3339."""
    ends: float | None
    """In seconds since the host was started; None where it lasts until the source stops."""
    rule: str
    """FILE:LINE at that time."""


class _Kept(msgspec.Struct, forbid_unknown_fields=True):
    boot: str
    grants: list[Grant]


class Grants:
    def __init__(self, file: Path, boot: str, *, clock: Callable[[], float] = since_boot) -> None:
        self._file, self._boot, self._clock = file, boot, clock
        self._grants: dict[str, Grant] = {}

    def load(self) -> None:
        """Those that an earlier caged of this boot has kept; none where that cannot be read."""
        try:
            kept = decode(self._file.read_bytes(), msgspec.json.Decoder(_Kept))
        except FileNotFoundError:
            return
        except (OSError, msgspec.DecodeError) as error:
            LOG.error("standing answers are forgotten, because %s is of no use: %s", self._file, error)
            return
        if kept.boot == self._boot:
            self._grants = {grant.id: grant for grant in kept.grants}

    def all(self) -> list[Grant]:
        """Those that stand, the oldest first."""
        now = self._clock()
        return [grant for grant in self._grants.values() if grant.ends is None or now < grant.ends]

    def expired(self) -> list[Grant]:
        """Those whose time has come, and that are still kept."""
        now = self._clock()
        return [grant for grant in self._grants.values() if grant.ends is not None and now >= grant.ends]

    def of(self, subject: Subject) -> Grant | None:
        return next((grant for grant in self.all() if grant.subject == subject), None)

    def find(self, untrusted_id: str) -> Grant:
        grant = self._grants.get(untrusted_id)
        if grant is None:
            raise no_such_grant(untrusted_id)
        return grant

    def check_room(self, subject: Subject) -> None:
        """RuntimeFailure where the source has as many as it may have."""
        if sum(grant.subject.source == subject.source for grant in self._grants.values()) >= GRANTS_PER_CAGE:
            raise RuntimeFailure(f"{GRANTS_PER_CAGE} answers to this cage stand already; answer once, or see cagectl "
                                 "grants list")

    def new_id(self) -> str:
        return next(id_ for id_ in _ids() if id_ not in self._grants)

    def ends_after(self, seconds: float) -> float:
        return self._clock() + seconds

    def left(self, grant: Grant) -> float | None:
        """Seconds that it still stands; None where it lasts until the source stops."""
        return None if grant.ends is None else max(0.0, grant.ends - self._clock())

    def add(self, grant: Grant) -> None:
        """Where it cannot be kept it stands all the same, and no longer than this caged."""
        self._grants[grant.id] = grant
        try:
            self._write()
        except OSError as error:
            LOG.error("standing answers are not kept for the next core: %s", error)

    def remove(self, grant: Grant) -> None:
        """RuntimeFailure where an earlier list cannot be got rid of, with which it would come back."""
        self._grants.pop(grant.id, None)
        try:
            self._write()
        except OSError as error:
            LOG.error("standing answers are not kept for the next core: %s", error)
            try:
                self._file.unlink(missing_ok=True)
            except OSError as worse:
                raise RuntimeFailure(f"{self._file} can be neither written nor removed: {worse}") from worse

    def _write(self) -> None:
        fresh = self._file.with_name(f"{self._file.name}.new")
        fresh.write_bytes(msgspec.json.encode(_Kept(boot=self._boot, grants=list(self._grants.values()))))
        fresh.rename(self._file)


def _ids() -> Iterator[str]:
    while True:
        yield secrets.token_hex(4)


def no_such_grant(untrusted_id: str) -> NoSuchGrant:
    return NoSuchGrant(f'there is no standing answer "{escape(untrusted_id, limit=40)}"; cagectl grants list shows '
                       "those there are")
