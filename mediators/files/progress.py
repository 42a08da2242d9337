# SPDX-License-Identifier: LGPL-2.1-or-later
"""How far a transfer is: how much of it the core has read.

Law of this room: nothing is told that the source could not know by itself, who sees what is read of its own file; of
what the target makes of it, no figure exists.  A few figures a second are told at most.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

from cage_runtime.model import PROGRESS_SECONDS
from mediators.files.protocol import DELIVERING, READING
from mediators.files.stream import Stream
from mediators.stage import Staged


class Figures:
    """Tells them to `stream`, while a copy is made."""

    def __init__(self, stream: Stream) -> None:
        self._stream, self._loop = stream, asyncio.get_running_loop()
        self._next: asyncio.TimerHandle | None = None

    def begun(self, staged: Staged) -> None:
        """The copy has been granted its size, and grows from now on."""
        self._stream.figures(state=READING, done=staged.copied(), total=staged.size)
        self._next = self._loop.call_later(PROGRESS_SECONDS, self.begun, staged)

    async def until(self, stage: Awaitable[Staged]) -> Staged:
        """What `stage` returns, once it does; the copy is not looked at any more then."""
        try:
            staged = await stage
        finally:
            if self._next is not None:
                self._next.cancel()
        self._stream.figures(state=DELIVERING, done=staged.size, total=staged.size)
        return staged
