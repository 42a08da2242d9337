# SPDX-License-Identifier: LGPL-2.1-or-later
"""When a window may be answered: not before it has been looked at.

A click or a key that was meant for what lay there a moment ago answers nothing.
"""

from __future__ import annotations

from collections.abc import Callable

DEAD_SECONDS = 1.0
"""After the window has come to the front, or shows something else."""


class Guard:
    def __init__(self, clock: Callable[[], float]) -> None:
        """`clock` counts seconds and is never set back."""
        self._clock = clock
        self._since: float | None = None
        """Since when the window has had the focus and shown what it shows; None where it has not the focus."""

    def focused(self) -> None:
        self._since = self._clock()

    def left(self) -> None:
        """The focus is elsewhere."""
        self._since = None

    def changed(self) -> None:
        """It shows something else now."""
        if self._since is not None:
            self._since = self._clock()

    @property
    def alive(self) -> bool:
        """Whether it may be answered."""
        return self._since is not None and self._clock() - self._since >= DEAD_SECONDS
