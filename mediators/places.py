# SPDX-License-Identifier: LGPL-2.1-or-later
"""How much may go on at once in a core half, for each that it counts apart: a cage, a pair of cages, all of them."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Hashable, Iterator

from cage_runtime.errors import CageError


class Places:
    """Those that are taken, by whose they are; none is kept for what has ended."""

    def __init__(self) -> None:
        self._taken: Counter[Hashable] = Counter()

    @contextlib.contextmanager
    def take(self, whose: Hashable, most: int, full: Callable[[], CageError]) -> Iterator[None]:
        """One of the `most` places in the block; what `full` makes is raised where all of them are taken."""
        if self._taken[whose] >= most:
            raise full()
        self._taken[whose] += 1
        try:
            yield
        finally:
            self._taken[whose] -= 1
            if not self._taken[whose]:
                del self._taken[whose]


class Turns:
    """One after the other, for each that is counted apart, as far as those who wait have the patience."""

    def __init__(self, patience: float) -> None:
        """`patience` in seconds: who has waited so long goes on beside the one before."""
        self._patience = patience
        self._locks: dict[Hashable, asyncio.Lock] = {}
        self._wanted: Counter[Hashable] = Counter()

    @contextlib.asynccontextmanager
    async def take(self, whose: Hashable) -> AsyncIterator[None]:
        """The block is run in a turn of theirs."""
        self._wanted[whose] += 1
        lock = self._locks.setdefault(whose, asyncio.Lock())
        try:
            async with contextlib.AsyncExitStack() as turn:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._patience):
                        await turn.enter_async_context(lock)
                yield
        finally:
            self._wanted[whose] -= 1
            if not self._wanted[whose]:
                del self._wanted[whose], self._locks[whose]
