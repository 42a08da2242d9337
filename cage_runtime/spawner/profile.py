# SPDX-License-Identifier: LGPL-2.1-or-later
"""Profiles: how what is started in a cage is confined beyond the cage itself.

`session` is for people and their applications; `mediator` for the bus and the cage halves, which touch no home;
`delivery` for the half that puts a file into the home of its cage's user.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from enum import StrEnum

from cage_runtime.spawner import landlock, syscall
from cage_runtime.spawner.filters import Filter


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


@dataclass(frozen=True, kw_only=True, slots=True)
class Profile:
    filter: Filter
    writable: tuple[str, ...] | None = None
    """What Landlock lets it write; None for no file rules."""

    def restrict_files(self) -> None:
        """In the child, first: what follows opens nothing.  Needs no_new_privs.

        The rules are made here and not at birth, because most cages never have use for them.
        """
        rules = None if self.writable is None else landlock.file_rules(self.writable)
        if rules is not None:
            syscall.landlock_restrict_self(rules)
            os.close(rules)


def profiles(filters: Filters, home: str) -> dict[ProfileName, Profile]:
    """The profiles of a cage whose user's home is `home`."""
    return {
        ProfileName.SESSION: Profile(filter=filters.session),
        ProfileName.MEDIATOR: Profile(filter=filters.mediator, writable=()),
        ProfileName.DELIVERY: Profile(filter=filters.mediator, writable=(home,)),
    }
