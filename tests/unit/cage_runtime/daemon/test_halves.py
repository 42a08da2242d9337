# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which mediators' core halves are there."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from cage_runtime.daemon.connections import Connections
from cage_runtime.daemon.halves import Halves


class Bus:
    """Connections, as far as they are watched; `ends` has one go."""

    def __init__(self) -> None:
        self._watched: dict[str, list[Callable[[], None]]] = {}

    def when_gone(self, sender: str, act: Callable[[], None]) -> None:
        self._watched.setdefault(sender, []).append(act)

    def ends(self, sender: str) -> None:
        for act in self._watched.pop(sender):
            act()


def test_one_that_has_gone_is_missing_and_told_nothing() -> None:
    bus = Bus()
    halves = Halves(("log", "files"), cast(Connections, bus))
    assert halves.missing() == ("files", "log")
    halves.here("log", ":1.1")
    halves.here("log", ":1.1")
    assert (halves.missing(), halves.connections()) == (("files",), [":1.1"])
    bus.ends(":1.1")
    assert (halves.missing(), halves.connections()) == (("files", "log"), [])


def test_the_end_of_an_earlier_one_does_not_count() -> None:
    bus = Bus()
    halves = Halves(("log",), cast(Connections, bus))
    halves.here("log", ":1.1")
    halves.here("log", ":1.2")
    bus.ends(":1.1")
    assert (halves.missing(), halves.connections()) == ((), [":1.2"])
