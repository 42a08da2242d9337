# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which action of polkit each method of the manager needs: the one table, which the tests hold against the description
of the bus interface and against the actions that are installed.

An action is called as its method: of InstallApplication it is org.cageruntime.Core1.install-application for a cage of
one's own, and the same with `-any` behind it for other people's.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from cage_runtime.model import CORE_BUS_NAME


class Does(StrEnum):
    """What a method comes to, and so whether who may only watch may call it."""

    TELLS = "tells"
    """What there is, how it does and what is recorded; nothing is other than before."""
    SHOWS = "shows"
    """What came from within a cage: nothing is other than before, and it may be anybody's secret."""
    CHANGES = "changes"


class About(StrEnum):
    """What a method touches, and so whose it is."""

    NEW = "new"
    """A cage that there shall be: it will be the caller's."""
    CAGE = "cage"
    """The one cage that the first argument names."""
    PAIR = "pair"
    """Two cages: the first argument names the one, the fourth the other."""
    ALL = "all"
    """Every cage of the caller's; other people's too where `-any` is granted without a question."""
    OWN = "own"
    """What the caller's own cages have, which an id names; root's is everybody's, but of private cages."""
    HOST = "host"
    """Nobody's cage: what belongs to the whole host."""


_NOBODY_ELSES = (About.NEW, About.OWN, About.HOST)
"""What no other person's cage can be in question of."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Right:
    """What a method needs."""

    member: str
    about: About
    does: Does

    @property
    def recorded(self) -> bool:
        """Whether what it does is in the record, so that how often a person may do it is bounded."""
        return self.does is Does.CHANGES

    @property
    def action(self) -> str:
        """The action of polkit for what is the caller's own, or the host's."""
        return f"{CORE_BUS_NAME}.{re.sub('(?<=[a-z])(?=[A-Z])', '-', self.member).lower()}"

    @property
    def any_action(self) -> str:
        """That for what is somebody else's; KeyError where nothing can be."""
        if self.about in _NOBODY_ELSES:
            raise KeyError(self.member)
        return f"{self.action}-any"

    @property
    def actions(self) -> tuple[str, ...]:
        return (self.action,) if self.about in _NOBODY_ELSES else (self.action, self.any_action)


_MEMBERS = {
    About.NEW: ("Create",),
    About.CAGE: (
        "Destroy", "Start", "Stop", "Enable", "Disable", "Pause", "Resume", "Kill", "Enter", "Run", "CopyIn",
        "CopyOut", "Status", "Show", "Logs", "InstallApplication", "UpdateApplications", "RemoveApplication",
        "ListApplications",
    ),
    About.PAIR: ("ExplainPolicy",),
    About.ALL: ("List", "Doctor", "Graph"),
    About.OWN: ("ListPrompts", "AnswerPrompt", "ListGrants", "RevokeGrant", "RegisterAgent", "NotificationAction"),
    About.HOST: (
        "AddRemote", "RemoveRemote", "ListRemotes", "CheckPolicy", "ProvePolicy", "SimulatePolicy", "DiffPolicy",
        "ReloadPolicy", "TailAudit", "VerifyAudit", "AuditKey",
    ),
}
_DOES = {
    **dict.fromkeys((
        "Status", "Show", "ListApplications", "ExplainPolicy", "List", "Doctor", "Graph", "ListRemotes", "CheckPolicy",
        "ProvePolicy", "SimulatePolicy", "DiffPolicy", "TailAudit", "VerifyAudit", "AuditKey", "ListGrants",
    ), Does.TELLS),
    **dict.fromkeys(("Logs", "ListPrompts", "RegisterAgent"), Does.SHOWS),
    **dict.fromkeys((
        "Create", "Destroy", "Start", "Stop", "Enable", "Disable", "Pause", "Resume", "Kill", "Enter", "Run",
        "CopyIn", "CopyOut", "InstallApplication", "UpdateApplications", "RemoveApplication", "AddRemote",
        "RemoveRemote", "ReloadPolicy", "AnswerPrompt", "RevokeGrant", "NotificationAction",
    ), Does.CHANGES),
}
"""Each by its name: one that is new and not here is no method, as the core does not start without it."""
RIGHTS = {member: Right(member=member, about=about, does=_DOES[member])
          for about, members in _MEMBERS.items() for member in members}
PRIVATE = {"Enter", "CopyIn", "CopyOut", "Logs"}
"""Methods that nobody calls of a private cage, whoever it is."""
OWNERS = {"Run"}
"""Those that of a private cage its owner alone calls."""
