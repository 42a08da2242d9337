# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which of the open prompts have a window: the oldest, a few at once, and none that the person has closed."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from cage_runtime.desktop.prompt import Prompt

WINDOWS_MAX = 3
"""Questions that a person has before them at once."""


class Desk:
    def __init__(self, show: Callable[[Prompt], None], close: Callable[[str], None]) -> None:
        """`show` opens the window of a prompt, `close` closes that of an id."""
        self._show, self._close = show, close
        self._prompts: dict[str, Prompt] = {}
        self._put_aside: set[str] = set()
        self._windows: set[str] = set()

    def add(self, prompts: Iterable[Prompt]) -> None:
        """Prompts that are open, the oldest first; those that are known already stay as they are."""
        for prompt in prompts:
            self._prompts.setdefault(prompt.id, prompt)
        self._fill()

    def remove(self, id_: str) -> None:
        """It is open no more."""
        self._prompts.pop(id_, None)
        self._put_aside.discard(id_)
        if id_ in self._windows:
            self._windows.remove(id_)
            self._close(id_)
        self._fill()

    def put_aside(self, id_: str) -> None:
        """The person has closed its window, which answers nothing: it stays open, and another has its place."""
        if id_ in self._windows:
            self._windows.remove(id_)
            self._put_aside.add(id_)
            self._close(id_)
        self._fill()

    def bring_back(self) -> None:
        """The person wants to see those that were put aside."""
        self._put_aside.clear()
        self._fill()

    def clear(self) -> None:
        """Whoever asks is gone."""
        self._prompts.clear()
        for id_ in list(self._prompts.keys() | self._windows):
            self.remove(id_)
        self._put_aside.clear()

    def _fill(self) -> None:
        for id_, prompt in self._prompts.items():
            if len(self._windows) >= WINDOWS_MAX:
                return
            if id_ not in self._windows | self._put_aside:
                self._windows.add(id_)
                self._show(prompt)
