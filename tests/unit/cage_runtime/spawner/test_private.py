# SPDX-License-Identifier: LGPL-2.1-or-later
"""A private cage takes requests of two shapes, whole, and none that is nearly one."""

from __future__ import annotations

import msgspec
import pytest

from cage_runtime.daemon import sessions
from cage_runtime.errors import PrivateCage
from cage_runtime.spawner import private
from cage_runtime.spawner.spec import Conceal, Expose, Logs, Spawn, Stop, Terminal

UUID = "a" * 32
RUN = ["/usr/bin/flatpak", "run", "--no-documents-portal", "org.example.App"]
DELIVER = ["/opt/cage-runtime/bin/cage-mediator", "files", "--deliver", "work", "figures.txt", "7", "0" * 64]
APPLICATION = Spawn(id=1, uuid=UUID, argv=[*RUN, "--write", "x"])
DELIVERY = Spawn(id=1, uuid=UUID, argv=DELIVER, own_input=True, profile="delivery")
TERMINAL = Terminal(term="xterm", rows=24, columns=80)


def test_both_sides_mean_the_same_programs() -> None:
    assert (private.FLATPAK, private.MEDIATOR) == (sessions.FLATPAK, sessions.MEDIATOR)


@pytest.mark.parametrize("request_", [
    APPLICATION, msgspec.structs.replace(APPLICATION, terminal=TERMINAL), DELIVERY,
    msgspec.structs.replace(APPLICATION, detached=True), msgspec.structs.replace(APPLICATION, argv=RUN),
    Stop(id=1, uuid=UUID, seconds=0), Expose(id=1, uuid=UUID, trees=[]), Conceal(id=1, uuid=UUID, trees=[]),
])
def test_its_own_applications_and_deliveries_go_on(request_: Spawn) -> None:
    private.check(request_)


@pytest.mark.parametrize("request_", [
    Logs(id=1, uuid=UUID),
    *(msgspec.structs.replace(APPLICATION, argv=argv) for argv in (
        ["/bin/sh"], ["/bin/bash", "--login"], ["flatpak", *RUN[1:]], ["/usr/bin/flatpak", "run", "org.example.App"],
        [*RUN[:3], "--command=sh", "org.example.App"], RUN[:3], [*RUN[:3], ""], [*RUN[:3], "org.example.App\n"],
        [*RUN[:3], "../org.example.App"], [*RUN[:2], "org.example.App", "--no-documents-portal"],
        ["/usr/bin/flatpak", "enter", *RUN[2:]], ["/usr/bin/../../bin/flatpak", *RUN[1:]], DELIVER,
    )),
    *(msgspec.structs.replace(APPLICATION, **change) for change in (
        {"user": "root"}, {"cwd": "/"}, {"own_input": True}, {"profile": "delivery"}, {"serves": True})),
    *(msgspec.structs.replace(DELIVERY, argv=argv) for argv in (
        ["/bin/cat"], DELIVER[:2], [*DELIVER[:2], "--serve"], [DELIVER[0], "--deliver", *DELIVER[1:]],
        ["/home/user/cage-mediator", *DELIVER[1:]], [DELIVER[0], "../x", *DELIVER[2:]], [*RUN, "x"],
    )),
    *(msgspec.structs.replace(DELIVERY, **change) for change in (
        {"user": "root"}, {"cwd": "/"}, {"own_input": False}, {"terminal": TERMINAL}, {"detached": True},
        {"serves": True},
        # what answers a call is a program of the cage's, and its answer leaves the cage
        *({"argv": [DELIVER[0], "call", "--deliver", "Echo", "", "work"], "profile": profile}
          for profile in ("session", "delivery")))),
])
def test_nothing_else_does(request_: Spawn | Logs) -> None:
    with pytest.raises(PrivateCage, match="the cage is private: "):
        private.check(request_)
