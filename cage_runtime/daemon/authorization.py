# SPDX-License-Identifier: LGPL-2.1-or-later
"""Who may ask caged for what.  The caller is who the bus daemon says (law 2); without polkit that must be root."""

from __future__ import annotations

from cage_runtime.bus import Bus
from cage_runtime.config import Users, uid_of
from cage_runtime.errors import NotAuthorized

MEDIATORS = ("files",)
ADMINISTRATOR = 0
"""Root, and nobody else; tests that are not root put themselves here."""


class Authorization:
    def __init__(self, bus: Bus, users: Users) -> None:
        self._bus = bus
        self._mediators = {uid_of(getattr(users, name)): name for name in MEDIATORS}

    async def person(self, sender: str, member: str) -> int:
        """The uid of the person who calls `member`; NotAuthorized unless that is root."""
        uid = await self._bus.uid_of(sender)
        if uid != ADMINISTRATOR:
            raise NotAuthorized(f"{member} needs root on this host; use sudo")
        return uid

    async def mediator(self, sender: str) -> str:
        """The name of the mediator whose core half calls; NotAuthorized for anybody else."""
        uid = await self._bus.uid_of(sender)
        name = self._mediators.get(uid)
        if name is None:
            raise NotAuthorized(f"uid {uid} is not a mediator's")
        return name
