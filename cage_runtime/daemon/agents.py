# SPDX-License-Identifier: LGPL-2.1-or-later
"""Agents: programs of persons that show them what is asked and told, such as cage-desktop.

Whoever has registered is told, by signals to that connection alone, of what is about that person's cages; root's agents
are told of everybody's.
"""

from __future__ import annotations

from dataclasses import dataclass

from dbus_fast import Variant

from cage_runtime.bus import Bus, Value
from cage_runtime.daemon.connections import Connections
from cage_runtime.errors import RuntimeFailure
from cage_runtime.model import AGENTS_MAX, AGENTS_PER_PERSON, CORE_PATH

MANAGER = "org.cageruntime.Core1.Manager"


@dataclass(frozen=True, kw_only=True, slots=True)
class Person:
    """Whoever is asked and told."""

    uid: int
    is_root: bool
    """Or one who sees everybody's, where that is all that is called for."""

    def sees(self, owner: int, *, private: bool) -> bool:
        """Whether what a cage of `owner`'s is about is this person's to see, and to answer; of a private cage, it is
        its owner's alone."""
        return self.uid == owner or (self.is_root and not private)


class Agents:
    def __init__(self, bus: Bus, connections: Connections) -> None:
        self._bus, self._connections = bus, connections
        self._agents: dict[str, Person] = {}
        """Each agent's connection, and whose it is."""

    def register(self, sender: str, person: Person) -> None:
        """From now on the connection is an agent of that person's; RuntimeFailure where there are too many."""
        if sender in self._agents:
            return
        if not person.is_root and list(self._agents.values()).count(person) >= AGENTS_PER_PERSON:
            raise RuntimeFailure(f"{AGENTS_PER_PERSON} programs of yours show questions already; end one of them")
        if len(self._agents) >= AGENTS_MAX:
            raise RuntimeFailure(f"{AGENTS_MAX} programs show questions already; no more can")
        self._agents[sender] = person
        self._connections.when_gone(sender, lambda: self._drop(sender))

    def _drop(self, sender: str) -> None:
        del self._agents[sender]

    def there(self, owner: int, *, private: bool = False) -> list[str]:
        """The connections that are told of what is about a cage of `owner`'s; of a private one, its owner's alone."""
        return [sender for sender, person in self._agents.items() if person.sees(owner, private=private)]

    def tell(self, owner: int, member: str, signature: str, arguments: tuple[Value, ...], *,
             private: bool = False) -> None:
        for sender in self.there(owner, private=private):
            self._bus.emit(CORE_PATH, MANAGER, member, signature, arguments, to=sender)

    def notified(self, owner: int, about: dict[str, Variant], *, private: bool = False) -> None:
        """Tell the person something that wants no answer."""
        self.tell(owner, "Notified", "a{sv}", (about,), private=private)
