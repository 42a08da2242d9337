# SPDX-License-Identifier: LGPL-2.1-or-later
"""The cage half: takes a request on the cage's own bus and passes it through the gateway to the core half.

Law of this room: a transfer that would be one too many at the core half waits here, and those to a target that is slow
hold up those to it alone.  The pipes of a tree are between whoever asked and the core half, and need nobody here.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
from collections.abc import AsyncIterator
from weakref import WeakValueDictionary

from cage_runtime.bus import Call
from cage_runtime.errors import TransferFailed
from cage_runtime.model import TRANSFERS_PER_CAGE, TRANSFERS_PER_PAIR
from mediators import cagehalf, wire
from mediators.files import protocol


class Places:
    """Those of the transfers that the core half takes at once to one target."""

    def __init__(self) -> None:
        self._to_targets: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()
        """Those that a call holds or waits for, so no more than there are calls."""

    @contextlib.asynccontextmanager
    async def place(self, call: Call) -> AsyncIterator[None]:
        async with self._to_targets.setdefault(call.arguments[0], asyncio.Semaphore(TRANSFERS_PER_PAIR)):
            yield


def check(call: Call) -> None:
    """What the core half would refuse anyway, before anything is passed on."""
    name = protocol.check_file_name(call.arguments[1])
    protocol.Options.read(call.arguments[-1], call.member)
    if call.member != protocol.SEND_TREE:
        descriptor = wire.only_descriptor(call, 2)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise TransferFailed(f'"{name}" is not a regular file')


def run(arguments: list[str]) -> int:
    """`cage-mediator files --cage`."""
    checks = dict.fromkeys((protocol.SEND, protocol.SEND_TREE, protocol.SEND_RECEIPTED), check)
    return cagehalf.run("files", arguments, checks=checks, place=Places().place, at_once=TRANSFERS_PER_CAGE)
