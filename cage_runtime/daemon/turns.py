# SPDX-License-Identifier: LGPL-2.1-or-later
"""One thing at a time, and persons in turn: who asks for much waits for oneself, and for one thing of everybody else's
(law 11)."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Turns:
    """A lock that goes round among the persons who wait for it; what one person asks for goes in its order."""

    def __init__(self) -> None:
        self._held = False
        self._whose: int | None = None
        """Whose turn it is, or was last."""
        self._waiting: dict[int | None, deque[asyncio.Future[None]]] = {}
        """By uid, None for the core itself; whoever has waited longest for a turn comes first."""

    @asynccontextmanager
    async def turn(self, whose: int | None) -> AsyncIterator[None]:
        """The block is run in a turn of this person's."""
        await self._acquire(whose)
        try:
            yield
        finally:
            self._pass_on()

    async def _acquire(self, whose: int | None) -> None:
        if not self._held:
            self._held, self._whose = True, whose
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(whose, deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                self._leave(whose, turn)
            else:  # it has come all the same
                self._pass_on()
            raise

    def _leave(self, whose: int | None, turn: asyncio.Future[None]) -> None:
        own = self._waiting.get(whose, deque())
        if turn in own:  # or it was left out meanwhile
            own.remove(turn)
            if not own:
                del self._waiting[whose]

    def _pass_on(self) -> None:
        """Give the turn to somebody else's first who waits, if anybody else does."""
        if not self._waiting:
            self._held = False
            return
        self._whose = next((one for one in self._waiting if one != self._whose), self._whose)
        own = self._waiting.pop(self._whose)
        turn = own.popleft()
        if own:
            self._waiting[self._whose] = own
        if turn.cancelled():  # in this step, and its task has not left yet
            self._pass_on()
        else:
            turn.set_result(None)
