# SPDX-License-Identifier: LGPL-2.1-or-later
"""The second wall on a stock distribution: loaded by the spawner's unit, enforced, told, and gone with its cages."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from tests.vm.conftest import MakeCage
from tests.vm.machine import ok, properties, run

SCRIPT = Path(__file__).with_name("contexts.py")
SLICE = Path("/sys/fs/cgroup/cages.slice")
RUN = Path("/run/cage-runtime")
PINS = Path("/sys/fs/bpf/cage-runtime")
LOST = ("CAP_BPF", "CAP_PERFMON", "CAP_NET_ADMIN", "CAP_SYS_RESOURCE")
"""Capabilities that loading and keeping the programs could be thought to take, and does not."""


def asked(*words: str | int) -> Any:
    return json.loads(ok("/usr/bin/python3", "-IS", str(SCRIPT), *map(str, words)))


def status(name: str) -> dict[str, Any]:
    shown = json.loads(ok("cagectl", "status", name, "--json=short"))
    assert isinstance(shown, dict)
    return shown


def xid(name: str) -> int:
    wall = status(name)["walls"]["lsm"]
    assert wall["enforced"], wall
    return int(wall["detail"].removeprefix("context "))


def processes(name: str) -> list[int]:
    found = SLICE / f"cage-{name}.scope" / status(name)["uuid"] / "cgroup.procs"
    return sorted(int(line) for line in found.read_text().splitlines())


def checks() -> dict[str, tuple[str, str]]:
    found = json.loads(run("cagectl", "doctor", "--json=short").stdout)
    return {check["check"]: (check["state"], check["detail"]) for check in found}


def test_contexts_are_enforced_and_told(cage: MakeCage) -> None:
    state, detail = checks()["security context"]
    assert (state, detail.startswith("enforced by the kernel, at ")) == ("ok", True), detail
    cage("work", "--require", "lsm")
    cage("vault", "--require", "lsm")
    both = {name: xid(name) for name in ("work", "vault")}
    assert len(set(both.values())) == 2
    assert f"lsm: context {both['work']}" in ok("cagectl", "status", "work")
    for name, number in both.items():
        assert asked("of", *processes(name)) == [number] * len(processes(name))
    assert asked("of", 1, os.getpid()) == [0, 0]


def test_the_spawner_has_no_more_for_it_than_it_had(cage: MakeCage) -> None:
    """Its pins are root's, and the unit's one writable place besides its own two."""
    shown = properties("cage-spawner.service", "CapabilityBoundingSet", "ReadWritePaths")
    assert not set(LOST) & {word.upper() for word in shown["CapabilityBoundingSet"].split()}
    assert shown["ReadWritePaths"].split() == ["/run/cage-runtime", "/var/lib/cage-runtime", f"-{PINS}"]
    assert PINS.stat().st_mode & 0o077 == 0
    cage("work", "--require", "lsm")
    ok("systemctl", "restart", "cage-spawner.service")
    assert checks()["security context"][0] == "ok"


def test_who_has_lost_every_other_wall_reaches_neither_another_cage_nor_the_host(cage: MakeCage) -> None:
    """Root of the host, in the host's namespaces, in the context of one cage."""
    cage("work", "--require", "lsm")
    cage("vault", "--require", "lsm")
    number, inside = xid("work"), processes("vault")[0]
    runs, uuid = RUN, status("vault")["uuid"]
    for act, arguments in (
        ("kill", [inside, 1]), ("priority", [inside, 1]), ("read", [f"/proc/{inside}/environ", "/proc/1/environ"]),
        ("connect", [runs / "cages" / uuid / "init.sock", runs / "gateways" / uuid / "bus", "/run/systemd/private"]),
    ):
        outcomes = asked("try", number, act, *map(str, arguments))
        assert set(outcomes) <= {"EPERM", "EACCES"}, (act, outcomes)
    assert status("vault")["state"] == "running"
    denials = status("work")["denials"]
    assert denials["kill"] == 2
    assert denials["connect"] == 3
    assert (denials["schedule"], denials["proc"]) == (2, 2)
    assert status("vault")["denials"] == {}
    uuid = status("work")["uuid"]
    ok("cagectl", "destroy", "work", "--yes")
    told = [line for line in ok("cagectl", "audit", "tail", "-n", "60").splitlines() if uuid in line]
    assert [line for line in told if "denied-by-kernel" in line and "operation=connect" in line], told
    journal = ok("journalctl", "--no-pager", "--boot", "--output=cat", f"CAGE_UUID={uuid}")
    assert "The kernel refused connect to the cage work" in journal


def test_nobody_enters_a_private_cage_root_neither(cage: MakeCage) -> None:
    cage("quiet", "--private", "--require", "lsm")
    cage("work")
    for line in (("enter", "quiet", "--", "true"), ("enter", "quiet", "--root", "--", "true"), ("logs", "quiet")):
        refused = run("cagectl", *line)
        assert refused.returncode == 126, refused
        assert "quiet is private" in refused.stderr
    for name, enters in (("work", True), ("quiet", False)):
        first = processes(name)[0]
        for namespaces in ("--all", "--mount", "--net"):
            entered = run("nsenter", "--target", str(first), namespaces, "--", "/bin/true")
            assert (entered.returncode == 0) is enters, (name, namespaces, entered.stderr)
        assert (run("cat", f"/proc/{first}/environ").returncode == 0) is enters
        assert (run("ls", f"/proc/{first}/root/home").returncode == 0) is enters
    for verb in ("pause", "resume", "stop", "start", "kill"):
        ok("cagectl", verb, "quiet")


def test_contexts_go_on_when_the_core_is_started_again(cage: MakeCage) -> None:
    cage("work", "--require", "lsm")
    cage("vault")
    number, first = xid("work"), processes("vault")[0]
    ok("systemctl", "kill", "--signal=SIGKILL", "cage-spawner.service", "caged.service")
    assert asked("try", number, "kill", first) == ["EPERM"]
    ok("systemctl", "start", "caged.service")
    assert (xid("work"), status("work")["denials"]) == (number, {"kill": 1})
    assert asked("of", *processes("work")) == [number] * len(processes("work"))
    assert asked("try", number, "kill", first) == ["EPERM"]
    assert ok("cagectl", "enter", "work", "--", "echo", "on") == "on\n"


def test_a_destroyed_cage_leaves_no_context(cage: MakeCage) -> None:
    before = asked("configured")
    cage("work", "--require", "lsm")
    number = xid("work")
    assert asked("configured") == sorted([*before, number])
    ok("cagectl", "stop", "work")
    assert asked("configured") == before
    ok("cagectl", "start", "work")
    assert xid("work") > number
    ok("cagectl", "destroy", "work", "--yes")
    assert asked("configured") == before
