# SPDX-License-Identifier: LGPL-2.1-or-later
"""The disk is waited for by all who are to be answered together, and by nobody else.

Law of this room: what cannot be recorded is not done, so nobody is answered before what was recorded for it is on the
disk.  While the disk works, others are served, and what is recorded meanwhile goes to the disk as one: a cage that has
much recorded makes nobody wait for more than what is on its way, and then for once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from cage_runtime.audit.chain import Chain
from cage_runtime.errors import RuntimeFailure

Result = TypeVar("Result")


class Settling:
    def __init__(self, chain: Chain) -> None:
        self._chain = chain
        self._running: asyncio.Task[None] | None = None
        self._next: asyncio.Task[None] | None = None

    async def after(self, what: Callable[[], Result]) -> Result:
        """What comes of `what`, once all that it has recorded is on the disk; RuntimeFailure where it cannot be."""
        before = self._chain.count
        try:
            with self._chain.deferring():
                return what()
        finally:
            if self._chain.count != before:
                await self._settled()

    async def _settled(self) -> None:
        lost = self._chain.lost
        if self._next is None:
            self._next = asyncio.get_running_loop().create_task(self._settle(self._running))
            self._next.add_done_callback(_seen)
        await asyncio.shield(self._next)
        if self._chain.lost != lost:
            raise RuntimeFailure("the disk does not take what was to be recorded")

    async def _settle(self, before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await asyncio.wait({before})
        # What is recorded from here on is for the next one.
        self._running, self._next = self._next, None
        await self._chain.settle(asyncio.to_thread)


def _seen(task: asyncio.Task[None]) -> None:
    """Whoever waited may have gone."""
    if not task.cancelled():
        task.exception()
