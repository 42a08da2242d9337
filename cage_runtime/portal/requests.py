# SPDX-License-Identifier: LGPL-2.1-or-later
"""What an application asks of a portal and is answered later, by a signal (org.freedesktop.portal.Request)."""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
from collections.abc import Callable, Coroutine
from enum import IntEnum

from cage_runtime.bus import Answer, Bus, Call, Service, Value, Variant, described
from cage_runtime.errors import CageError, RuntimeFailure, UnknownObject, UsageError
from cage_runtime.model import PORTAL_REQUESTS_MAX, PORTAL_REQUESTS_PER_CALLER
from cage_runtime.text import escape

LOG = logging.getLogger(__name__)
DESCRIPTION = "org.freedesktop.portal.Desktop.xml"
REQUEST = "org.freedesktop.portal.Request"
PATH = "/org/freedesktop/portal/desktop"
_TOKEN = re.compile(r"[A-Za-z0-9_]{1,100}\Z")

Results = dict[str, Variant]
Work = Callable[[], Coroutine[None, None, Results]]


class Response(IntEnum):
    """How a request ended (org.freedesktop.portal.Request.Response)."""

    SUCCESS = 0
    CANCELLED = 1
    OTHER = 2


class Requests:
    """Those of one connection to a session bus that are under way."""

    def __init__(self, bus: Bus, changed: Callable[[], None]) -> None:
        """`changed` is called when one begins or ends."""
        self._bus, self._changed = bus, changed
        self._under_way: dict[str, tuple[str, asyncio.Task[None]]] = {}
        """By the path of its object: who asked, and what is being done."""
        self._outliving: set[str] = set()
        self._interface = described(DESCRIPTION, REQUEST)
        bus.listen(self._on_signal)

    def __len__(self) -> int:
        return len(self._under_way)

    def begin(self, call: Call, options: dict[str, Variant], work: Work, *, outlives: bool = False) -> Answer:
        """Start `work` for `call`, whose answer is the request's object; its results are the Response signal's.

        It is given up when the application that asked has gone, unless it `outlives` it: what opens something, such as
        xdg-open, does not wait.

        UsageError where the application's handle_token cannot be one or is in use, RuntimeFailure where too many are
        under way.
        """
        theirs = sum(sender == call.sender for sender, _task in self._under_way.values())
        if theirs >= PORTAL_REQUESTS_PER_CALLER or len(self) >= PORTAL_REQUESTS_MAX:
            raise RuntimeFailure("too many requests of applications are under way; wait until one has ended")
        token = _token(options)
        path = f"{PATH}/request/{call.sender[1:].replace('.', '_')}/{token}"
        if path in self._under_way:
            raise UsageError(f'the handle_token "{token}" is in use')

        async def close(closing: Call) -> Answer:
            if closing.sender != call.sender:
                raise UnknownObject(f"there is no object {path}")
            task.cancel()
            return Answer()

        self._bus.serve(path, Service(interface=self._interface, handlers={"Close": close}))
        task = asyncio.get_running_loop().create_task(self._do(call.sender, path, work))
        self._under_way[path] = (call.sender, task)
        if outlives:
            self._outliving.add(path)
        self._changed()
        return Answer(values=(path,))

    async def _do(self, sender: str, path: str, work: Work) -> None:
        response, results = Response.CANCELLED, Results()
        try:
            results = await work()
            response = Response.SUCCESS
        except (CageError, OSError) as error:
            why = error.sentence if isinstance(error, CageError) else str(error)
            LOG.warning("a request of an application failed: %s", escape(why, limit=400))
            response = Response.OTHER
        finally:
            self._bus.emit(path, REQUEST, "Response", "ua{sv}", (int(response), results), to=sender)
            self._bus.withdraw(path)
            del self._under_way[path]
            self._outliving.discard(path)
            self._changed()

    def _on_signal(self, message: Value) -> None:
        """What was asked for by an application that has gone is given up."""
        if message.sender == "org.freedesktop.DBus" and message.member == "NameOwnerChanged":
            name, _before, now = message.body
            if not now:
                for path, (sender, task) in list(self._under_way.items()):
                    if sender == name and path not in self._outliving:
                        task.cancel()


def _token(options: dict[str, Variant]) -> str:
    given = options.get("handle_token")
    if given is None:
        return f"cage_{secrets.token_hex(16)}"
    if given.signature != "s" or not _TOKEN.match(given.value):
        raise UsageError("a handle_token is 1 to 100 of A-Z, a-z, 0-9 and _")
    return str(given.value)
