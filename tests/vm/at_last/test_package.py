# SPDX-License-Identifier: LGPL-2.1-or-later
"""Upgrade, downgrade, removal and purge of the package over cages that run, in this order: each goes on from the last.

The packages are in PACKAGES: the one that is installed, and the same under a higher version.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.vm import footprint
from tests.vm.machine import MEDIATORS, SECONDS, ok, properties, run

PACKAGES = Path("/root/packages")
BEFORE = PACKAGES / "before.json"
"""The machine's footprint before our package was installed on it for the first time."""
CORE = ("caged.service", "cage-spawner.service", "cage-apps.service",
        *(f"cage-mediator@{name}.service" for name in MEDIATORS))
STATE = Path("/var/lib/cage-runtime")
DOCUMENT = "what work wrote"


class Session:
    """Somebody at a shell in a cage, who types on whatever happens to the core."""

    def __init__(self, cage: str) -> None:
        self._shell = subprocess.Popen(
            ["cagectl", "enter", cage, "--", "sh"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def types(self, line: str) -> str:
        """One line of output."""
        assert self._shell.stdin
        assert self._shell.stdout
        self._shell.stdin.write(f"{line}\n")
        self._shell.stdin.flush()
        return self._shell.stdout.readline()

    def leaves(self, status: int) -> int:
        """The status of cagectl, after that of the shell."""
        self._shell.communicate(f"exit {status}\n", timeout=SECONDS)
        return self._shell.returncode


def packages() -> list[Path]:
    """The versions, lowest first."""
    first, second = ((file, ok("dpkg-deb", "--field", str(file), "Version").strip()) for file in PACKAGES.glob("*.deb"))
    lower = run("dpkg", "--compare-versions", first[1], "lt", second[1]).returncode == 0
    return [first[0], second[0]] if lower else [second[0], first[0]]


def install(package: Path) -> None:
    # Without the triggers of others, of which the manual's index alone takes half a minute in an emulated machine.
    ok("dpkg", "--no-triggers", "--install", str(package))


def installed() -> str:
    return ok("dpkg-query", "-W", "-f", "${db:Status-Status} ${Version}", "cage-runtime")


def members(name: str) -> set[str]:
    """The processes of a cage."""
    uuid = json.loads(ok("cagectl", "status", name, "--json=short"))["uuid"]
    (found,) = Path("/sys/fs/cgroup").rglob(uuid)
    return set().union(*(file.read_text().split() for file in found.rglob("cgroup.procs")))


def lives() -> dict[str, str]:
    return {unit: properties(unit, "MainPID")["MainPID"] for unit in CORE}


def test_an_upgrade_and_a_downgrade_lose_no_cage_and_no_session() -> None:
    ok("systemctl", "start", *CORE)
    for name in ("work", "vault"):
        ok("cagectl", "create", name)
    ok("cagectl", "enter", "work", "--", "sh", "-c", f"echo {DOCUMENT} >document; sleep 1000 >/dev/null & echo")
    session = Session("work")
    assert session.types("echo begins") == "begins\n"
    there, before = members("work"), lives()
    for package in reversed(packages()):
        install(package)
        assert package.name.startswith(f"cage-runtime_{installed().split()[1]}_")
        after = lives()
        assert all(after[unit] not in ("0", before[unit]) for unit in CORE), "each runs, and from what is new"
        assert session.types("echo goes on") == "goes on\n"
        assert members("work") >= there
        assert ok("cagectl", "enter", "work", "--", "incage", "send", "document", "--to", "vault")
        before = after
    assert session.leaves(7) == 7
    assert ok("cagectl", "enter", "vault", "--", "cat", "Inbox/work/document") == f"{DOCUMENT}\n"


def test_removal_stops_all_in_an_orderly_way_and_leaves_the_documents() -> None:
    ok("cagectl", "pause", "vault")
    ok("dpkg", "--remove", "cage-runtime")
    left = footprint.taken()
    assert [left[kind] for kind in ("processes", "control groups", "bus names", "units")] == [[], [], [], []]
    assert not [mount for mount in left["mounts"] if footprint.OURS in mount]
    assert not Path("/run/cage-runtime").exists()
    assert not Path("/usr/lib/cage-runtime").exists()
    install(packages()[0])
    assert properties("caged", "ActiveState") == {"ActiveState": "active"}
    states = {cage["name"]: cage["state"] for cage in json.loads(ok("cagectl", "list", "--json=short"))}
    assert (states["work"], states["vault"]) == ("stopped", "stopped")
    ok("cagectl", "start", "work")
    assert ok("cagectl", "enter", "work", "--", "cat", "document") == f"{DOCUMENT}\n"


def test_a_purge_leaves_the_machine_as_it_was() -> None:
    policies = Path("/etc/cage-runtime/policy.d")
    policies.mkdir(parents=True, exist_ok=True)
    (policies / "30-mine.policy").write_text("files.Send * vault work deny\n")
    ok("dpkg", "--purge", "cage-runtime")
    before, after = json.loads(BEFORE.read_text()), footprint.taken()
    assert {kind: sorted(set(before[kind]) ^ set(after[kind])) for kind in before} == {kind: [] for kind in before}
    assert run("getent", "passwd", "caged").returncode == 2


@pytest.mark.parametrize("kind", ["users", "units", "control groups", "processes", "bus names", "messages"])
def test_before_the_package_there_was_nothing_of_it(kind: str) -> None:
    """Or what was compared says nothing."""
    assert not [name for name in json.loads(BEFORE.read_text())[kind] if footprint.OURS in name]
