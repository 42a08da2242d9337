# SPDX-License-Identifier: LGPL-2.1-or-later
"""Recording what persons were not authorised to do, as often as the disk of the record can bear it.

A name that is nobody's cage is recorded like one that is: the time which that takes must not tell them apart.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import Context

from cage_runtime.audit.event import Kind
from cage_runtime.bucket import Bucket
from cage_runtime.daemon.authorization import Caller
from cage_runtime.daemon.cage import Cage
from cage_runtime.daemon.manager import Manager
from cage_runtime.daemon.rate import REFUSALS, Persons
from cage_runtime.errors import AuthenticationNeeded, NotAuthorized, RuntimeFailure

LOG = logging.getLogger(__name__)


def _later(seconds: float, what: Callable[[], None]) -> None:
    # Nobody's doing any more: what is recorded says itself whose it was.
    asyncio.get_running_loop().call_later(seconds, what, context=Context())


class Refusals:
    def __init__(self, manager: Manager, *, clock: Callable[[], float] = time.monotonic,
                 later: Callable[[float, Callable[[], None]], None] = _later) -> None:
        self._manager, self._clock, self._later = manager, clock, later
        self._persons = Persons(REFUSALS)

    @contextmanager
    def noted(self, caller: Caller, name: str = "", cage: Cage | None = None) -> Iterator[None]:
        """In the block, a refusal is recorded.  That a password would do is none yet: who calls again is asked for it.

        `name` is that of a cage, checked, where one is asked for; `cage` is it, if it is there.
        """
        try:
            yield
        except AuthenticationNeeded:
            raise
        except NotAuthorized as refusal:
            self.note(caller, refusal, name, cage)
            raise

    def note(self, caller: Caller, refusal: NotAuthorized, name: str = "", cage: Cage | None = None) -> None:
        """Record that the caller was refused it."""
        now = self._clock()
        bucket = self._persons.of(caller.uid, now)
        if not bucket.take(now):
            if bucket.refused == 1:
                self._later(REFUSALS.full_seconds, lambda: self._together(bucket, caller.uid))
            return
        about = ({"cage": name} if name else {}) | ({"uuid": cage.uuid} if cage else {})
        self._record({**about, "method": caller.member, "by": str(caller.uid), "reason": _reason(refusal)})

    def _together(self, bucket: Bucket, uid: int) -> None:
        whose = {} if bucket is self._persons.others else {"by": str(uid)}
        if self._record({**whose, "reason": f"{bucket.refused} more calls were refused"}):
            bucket.refused = 0
        else:
            self._later(REFUSALS.full_seconds, lambda: self._together(bucket, uid))

    def _record(self, fields: dict[str, str]) -> bool:
        """Whether it could be recorded; nothing has been done that could not be without that."""
        try:
            self._manager.record(Kind.REFUSED, None, fields)
        except RuntimeFailure as error:
            LOG.error("not recorded: %s was refused: %s", fields.get("by", "somebody"), error.sentence)
            return False
        return True


def _reason(refusal: NotAuthorized) -> str:
    """Its sentence without what the other fields say."""
    head, _, reason = refusal.sentence.partition(" is not authorised: ")
    return reason or head
