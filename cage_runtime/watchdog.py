# SPDX-License-Identifier: LGPL-2.1-or-later
"""A supervisor's watchdog, for what lives on a bus (sd_watchdog_enabled(3)): told that all is well by work, not by a
clock, so that whoever stands still is started again.
"""

from __future__ import annotations

import asyncio
import contextlib

from cage_runtime.bus import DBUS, Bus
from cage_runtime.errors import CutOff
from cage_runtime.notify import notify, watchdog_seconds


async def feed(bus: Bus) -> None:
    """Say WATCHDOG=1 each time that this event loop has turned and the bus daemon has answered it.

    Returns where there is no watchdog, or no bus any more.
    """
    with contextlib.suppress(CutOff):
        while interval := watchdog_seconds() / 4:
            await bus.call(*DBUS, "GetId", seconds=None)
            notify("WATCHDOG=1")
            await asyncio.sleep(interval)
