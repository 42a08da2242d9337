# SPDX-License-Identifier: LGPL-2.1-or-later
"""Enabled cages and a host that starts again: all of the core ends, RUN is new, and what is left is on the disk."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator

import pytest

from tests.privileged.runtime import Cage, Changes, Runtime


class Host(Runtime):
    """A runtime of its own, which can be started again as a host is."""

    def states(self) -> dict[str, str]:
        return {cage["name"]: cage["state"] for cage in self.json("list")}

    def halt(self) -> None:
        """What a host that goes down leaves: no process, and nothing under RUN."""
        for name, state in self.states().items():
            if state != "stopped":
                self.ok("kill", name)
        self.stop()
        shutil.rmtree(self.run)

    def until(self, expected: dict[str, str]) -> None:
        """Until the cages are so; every change of one is in the chain."""
        with Changes(self.state / "audit") as changes:
            changes.until(lambda: self.states() == expected, f"cages as {expected}")

    def recorded(self, kind: str) -> list[str]:
        """The cages of the records of that kind, oldest first."""
        records = json.loads(self.ok("audit", "tail", "-n", "10000", "--json=short"))
        return [record["fields"]["cage"] for record in records if record["kind"] == kind]


@pytest.fixture
def host() -> Iterator[Host]:
    host = Host()
    host.start()
    yield host
    for name in host.states():
        host.ok("destroy", name, "--yes")
    host.remove()


def test_a_host_that_starts_starts_what_is_enabled(host: Host) -> None:
    host.ok("create", "morning", "--autostart", "--level", "internal")
    host.ok("create", "evening")
    host.ok("create", "later", "--no-start")
    host.ok("enable", "later", "evening")
    host.ok("disable", "evening")
    Cage(host, "morning").sh("echo kept > Documents/note")
    host.halt()
    host.start()
    host.until({"evening": "stopped", "later": "running", "morning": "running"})
    assert Cage(host, "morning").sh("cat Documents/note") == "kept\n"
    # The same host, later: what an administrator has stopped stays stopped, whatever of the core is started again.
    host.ok("stop", "morning")
    host.ok("enable", "evening")
    host.kill_and_wait("caged")
    host.restart()
    host.ok("doctor")
    assert host.states() == {"evening": "stopped", "later": "running", "morning": "stopped"}
    host.halt()
    host.start()
    host.until({"evening": "running", "later": "running", "morning": "running"})


def test_one_that_fails_leaves_the_others_alone(host: Host) -> None:
    for name in ("damaged", "sound"):
        host.ok("create", name, "--autostart")
    home = host.storage / Cage(host, "damaged").uuid
    host.halt()
    home.rename(host.top / "elsewhere")
    host.start()
    host.until({"damaged": "failed", "sound": "running"})
    with Changes(host.state / "audit") as changes:
        changes.until(lambda: host.recorded("autostart-failed") == ["damaged"], "the record of it")
    assert "damaged was not started with the host: the cage damaged has no storage" in host.log()
    (host.top / "elsewhere").rename(home)


def test_a_core_that_is_killed_meanwhile_goes_on(host: Host) -> None:
    names = [f"c{number}" for number in range(8)]
    for name in names:
        host.ok("create", name, "--autostart", "--no-start")
    host.halt()
    host.start()
    with Changes(host.state / "audit") as changes:
        for program in ("caged", "cage-spawner", "caged"):
            host.kill_and_wait(program)
            changes.until(lambda: "running" in host.states().values(), "the first of them")
    host.until(dict.fromkeys(names, "running"))
    assert host.recorded("autostart-failed") == []
