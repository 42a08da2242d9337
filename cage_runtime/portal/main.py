# SPDX-License-Identifier: LGPL-2.1-or-later
"""cage-portal: serves org.freedesktop.portal.Desktop on a cage's session bus, which starts it on demand."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from pathlib import Path

from cage_runtime.bus import Bus
from cage_runtime.errors import CageError, UsageError
from cage_runtime.portal import opening, secret
from cage_runtime.portal.choosing import FileChooser
from cage_runtime.portal.notifying import Notifications
from cage_runtime.portal.requests import PATH, Requests

BUS_NAME = "org.freedesktop.portal.Desktop"
IDLE_SECONDS = 30.0
ENDING_SECONDS = 5.0


class Portal:
    """All that one program serves on one session bus."""

    def __init__(self, bus: Bus, home: Path, *, idle_seconds: float = IDLE_SECONDS) -> None:
        self._bus, self._idle_seconds = bus, idle_seconds
        self._changed = asyncio.Event()
        self._requests = Requests(bus, self._changed.set)
        self._chooser = FileChooser(bus, self._requests, home, self._changed.set)
        self._notifications = Notifications(bus, self._changed.set)

    async def run(self) -> None:
        """Until nothing has been asked for a while, or the bus ends."""
        self._bus.serve(PATH, *opening.services(self._requests), self._chooser.service(),
                        self._notifications.service(), secret.service(self._bus, self._requests))
        await self._bus.follow_callers()
        await self._bus.own(BUS_NAME)
        idle = asyncio.ensure_future(self._until_idle())
        ended = asyncio.ensure_future(self._bus.closed())
        await asyncio.wait({idle, ended}, return_when=asyncio.FIRST_COMPLETED)
        if idle.done():
            ended.cancel()
            # Without the name, the next call starts another; what came before is still answered.
            await self._bus.release(BUS_NAME)
            await self._bus.finish(ENDING_SECONDS)
        else:
            idle.cancel()

    def _busy(self) -> bool:
        return bool(len(self._requests) or len(self._chooser) or len(self._notifications))

    async def _until_idle(self) -> None:
        while True:
            self._changed.clear()
            try:
                async with asyncio.timeout(None if self._busy() else self._idle_seconds):
                    await self._changed.wait()
            except TimeoutError:
                return


def main() -> int:
    """The exit status is the error's; the error is one sentence on standard error."""
    if sys.argv[1:]:
        sys.stdout.write("usage: cage-portal\n\nThe portals of a cage's session bus, which starts them on demand.\n")
        return 0 if sys.argv[1:] in (["-h"], ["--help"]) else UsageError.exit_status
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(name)s: %(message)s")
    try:
        asyncio.run(_serve())
    except CageError as error:
        sys.stderr.write(f"cage-portal: {error.sentence}\n")
        return error.exit_status
    return 0


async def _serve() -> None:
    bus = await Bus.connect(os.environ["DBUS_SESSION_BUS_ADDRESS"])
    try:
        await Portal(bus, Path(os.environ["HOME"])).run()
    finally:
        bus.disconnect()
