# SPDX-License-Identifier: LGPL-2.1-or-later
"""A cage as caged knows it: its record, its state, and the one lock under which either changes."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from cage_runtime.daemon.state import Record
from cage_runtime.errors import DefinitionError, NoSuchCage, WrongState
from cage_runtime.model import CageState, Instance, Label
from cage_runtime.text import escape


@dataclass(kw_only=True, slots=True)
class Cage:
    record: Record
    label: Label | None
    """None where the definition names a level or compartment that the host does not have."""
    state: CageState = CageState.STOPPED
    since: str = ""
    """When it was started, by RFC 3339; empty where it does not run."""
    unenforced: tuple[str, ...] = ()
    log: bytes = b""
    """What was printed by what ran detached in it, as far as it has been asked for."""
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def name(self) -> str:
        return self.record.name

    @property
    def uuid(self) -> str:
        return self.record.uuid

    @property
    def enabled(self) -> bool:
        """Whether it is to be started with the host; an ephemeral one is gone by then."""
        return self.record.definition.session.autostart and not self.record.ephemeral

    @property
    def private(self) -> bool:
        """Whether nobody is to enter it or to read its log; its storage keeps that too, for the spawner."""
        return self.record.definition.session.private

    @property
    def level(self) -> str:
        """Empty where the definition cannot be read: then it has none that could be shown."""
        return "" if self.record.fault else self.record.definition.level

    def instance(self) -> Instance:
        """What policy is asked about; DefinitionError where the definition is not to be trusted."""
        if self.label is None or self.record.fault:
            raise DefinitionError(self.record.fault or f"{self.name}: its level is not one of this host's")
        return Instance(name=self.name, uuid=self.uuid, label=self.label, owner=self.record.owner,
                        tags=frozenset(self.record.definition.tags))

    def require(self, *states: CageState) -> None:
        """WrongState, with what would help, unless the cage is in one of `states`."""
        if self.state in states:
            return
        help_ = {
            CageState.STOPPED: f"start it with: cagectl start {self.name}",
            CageState.PAUSED: f"resume it with: cagectl resume {self.name}",
            CageState.RUNNING: f"stop it with: cagectl stop {self.name}",
            CageState.FAILED: f"see why with: cagectl status {self.name}",
        }.get(self.state, "wait until that is over")
        raise WrongState(f"{self.name} is {self.state}; {help_}")


def no_such_cage(untrusted_name: str) -> NoSuchCage:
    shown = escape(untrusted_name, limit=40)
    return NoSuchCage(f'there is no cage "{shown}"; cagectl list shows those there are')
