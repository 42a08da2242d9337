# SPDX-License-Identifier: LGPL-2.1-or-later
"""The core halves of mediators that are there: each has asked caged for the gateways, and has not gone since."""

from __future__ import annotations

from collections.abc import Iterable

from cage_runtime.daemon.connections import Connections


class Halves:
    def __init__(self, names: Iterable[str], connections: Connections) -> None:
        self._names, self._connections = tuple(names), connections
        self._there: dict[str, str] = {}
        """The connection of each."""

    def here(self, name: str, sender: str) -> None:
        """The mediator's core half has asked by that connection; one before it counts no longer."""
        if self._there.get(name) == sender:
            return
        self._there[name] = sender
        self._connections.when_gone(sender, lambda: self._gone(name, sender))

    def _gone(self, name: str, sender: str) -> None:
        if self._there.get(name) == sender:
            del self._there[name]

    def connections(self) -> list[str]:
        return list(self._there.values())

    def missing(self) -> tuple[str, ...]:
        """The mediators of this host that nobody serves now."""
        return tuple(sorted(name for name in self._names if name not in self._there))
