# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a private cage still takes: its user's applications, and what the mediators deliver.

Law of this room: a request is taken by its whole shape, which is that of one of ours, and refused by the spawner and
again by cage-init, which was told at its birth and is sealed.  So it does not matter who has become of caged.
"""

from __future__ import annotations

import re

from cage_runtime.errors import PrivateCage
from cage_runtime.model import APPLICATION_PATTERN
from cage_runtime.spawner.spec import Logs, Request, Spawn

FLATPAK = ("/usr/bin/flatpak", "run", "--no-documents-portal")
MEDIATOR = "/opt/cage-runtime/bin/cage-mediator"
_APPLICATION = re.compile(APPLICATION_PATTERN)
_MEDIATOR_NAME = re.compile(r"(?!call\Z)[a-z][a-z0-9-]{0,30}\Z")
"""Not call: what answers a call is a program of the cage's user, and its answer leaves the cage."""


def check(request: Request) -> None:
    """PrivateCage for a request that would let somebody look into a private cage."""
    if isinstance(request, Logs):
        raise PrivateCage("the cage is private: nobody reads its log")
    if isinstance(request, Spawn) and not (_is_application(request) or _is_delivery(request)):
        raise PrivateCage("the cage is private: nothing is started in it but its own applications")


def _is_application(request: Spawn) -> bool:
    head, rest = tuple(request.argv[: len(FLATPAK)]), request.argv[len(FLATPAK) :]
    # What follows the id is the application's own; before it, an option could name another command.
    named = head == FLATPAK and bool(rest) and _APPLICATION.match(rest[0]) is not None
    return named and _is_plain(request, profile="session") and not request.own_input


def _is_delivery(request: Spawn) -> bool:
    match request.argv:
        case [program, name, "--deliver", *_] if program == MEDIATOR and _MEDIATOR_NAME.match(name):
            alone = request.terminal is None and not request.detached
            plain = any(_is_plain(request, profile=profile) for profile in ("delivery", "session"))
            return plain and request.own_input and alone
    return False


def _is_plain(request: Spawn, *, profile: str) -> bool:
    return (request.user, request.cwd, request.profile, request.serves) == ("user", "", profile, False)
