# SPDX-License-Identifier: LGPL-2.1-or-later
"""Profiles: how what is started in a cage is confined beyond the cage itself.

`session` is for people and their applications; `mediator` for the bus and the cage halves, which touch no home;
`delivery` for the half that puts a file into the home of its cage's user.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from enum import StrEnum

from cage_runtime.spawner import capability, landlock
from cage_runtime.spawner.filters import Filter
from cage_runtime.spawner.walls import ALL, Walls


class ProfileName(StrEnum):
    SESSION = "session"
    MEDIATOR = "mediator"
    DELIVERY = "delivery"


@dataclass(frozen=True, kw_only=True, slots=True)
class Filters:
    """The seccomp filters, built before any cage; what is not cage-init has that one and its own on top."""

    init: Filter
    session: Filter
    """No more than what makes of cage-init's filter the session's."""
    mediator: Filter


_PROGRAMS = "/opt/cage-runtime"
_HALF = landlock.Reach(
    executable=(*landlock.LINKER, landlock.PYTHON, f"{_PROGRAMS}/bin"),
    readable=(*landlock.LIBRARIES, *landlock.NAMES, _PROGRAMS),
)
_BUS = dataclasses.replace(_HALF, executable=(*_HALF.executable, "/usr/bin/dbus-daemon"))
"""The bus of a cage and the cage halves, all that it starts: no home, no shell, no /proc but what is open."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Profile:
    filter: Filter
    reach: landlock.Reach | None = None
    """What of files and TCP Landlock leaves it; None for no such rules."""
    walls: Walls = ALL

    def restrict_files(self) -> None:
        """In the child, first: what follows opens nothing.  Needs no_new_privs.

        The rules are made here and not at birth, because most cages never have use for them.
        """
        if self.reach is not None and self.walls.landlock:
            self.reach.restrict()

    def drop_capabilities(self) -> None:
        """After the uid is the command's."""
        if self.walls.capabilities:
            capability.hold(frozenset())

    def restrict_calls(self) -> None:
        """In the child, last before it executes."""
        if self.walls.seccomp:
            self.filter.load()


def profiles(filters: Filters, home: str, walls: Walls) -> dict[ProfileName, Profile]:
    """The profiles of a cage whose user's home is `home`."""
    delivery = dataclasses.replace(_HALF, writable=(home,))
    return {
        ProfileName.SESSION: Profile(filter=filters.session, walls=walls),
        ProfileName.MEDIATOR: Profile(filter=filters.mediator, reach=_BUS, walls=walls),
        ProfileName.DELIVERY: Profile(filter=filters.mediator, reach=delivery, walls=walls),
    }
