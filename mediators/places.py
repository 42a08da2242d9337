# SPDX-License-Identifier: LGPL-2.1-or-later
"""How much may go on at once in a core half, for each that it counts apart: a cage, a pair of cages, all of them."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Hashable, Iterator

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
