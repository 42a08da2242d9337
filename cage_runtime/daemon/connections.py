# SPDX-License-Identifier: LGPL-2.1-or-later
"""Connections of others that something here lasts as long as: what is told when one of them has gone."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from cage_runtime.bus import Bus
from cage_runtime.errors import CageError

LOG = logging.getLogger(__name__)


class Connections:
    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._gone: dict[str, list[Callable[[], None]]] = {}
        self._following: dict[str, asyncio.Task[None]] = {}

    def when_gone(self, sender: str, what: Callable[[], None]) -> None:
        """Have `what` called once, when the connection `sender` has ended, or cannot be followed."""
        self._gone.setdefault(sender, []).append(what)
        if sender not in self._following:
            self._following[sender] = asyncio.get_running_loop().create_task(self._follow(sender))

    async def _follow(self, sender: str) -> None:
        try:
            async with self._bus.ownership(sender, owned=False) as gone:
                await gone
        except (CageError, EOFError) as error:
            LOG.warning("%s counts as gone: %s", sender, error)
        finally:
            del self._following[sender]
            for what in self._gone.pop(sender):
                what()
