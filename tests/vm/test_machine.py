# SPDX-License-Identifier: LGPL-2.1-or-later
"""On a true host: limits that the kernel enforces, the units as an administrator uses them, the README typed in."""

from __future__ import annotations

import json
import os
from pathlib import Path

from tests import readme
from tests.vm.conftest import MakeCage
from tests.vm.machine import SECONDS, ok, properties, run

MEMORY, EATEN, TASKS = 128 << 20, 200 << 20, 48
HOG = f"held = bytearray({EATEN}); print(len(held))"
"""It writes to all that it asks for: what the kernel counts is pages in use."""
FORKS = "n=0; while [ $n -lt 100 ]; do sleep 1000 & n=$((n + 1)); done"
SPIN = "n=0; while [ $n -lt 20000 ]; do n=$((n + 1)); done"
KILLED = 128 + 9


def cgroup(name: str) -> Path:
    """Of a cage, wherever systemd's delegation has put it."""
    uuid = json.loads(ok("cagectl", "status", name, "--json=short"))["uuid"]
    (found,) = Path("/sys/fs/cgroup").rglob(uuid)
    return found


def counts(file: Path) -> dict[str, int]:
    """Of a cgroup's file with a name and a number in each line."""
    return {key: int(value) for key, value in (line.split() for line in file.read_text().splitlines())}


# --- limits -----------------------------------------------------------------------------------------------------------
def test_every_controller_is_enforced() -> None:
    checks = {check["check"]: check for check in json.loads(ok("cagectl", "doctor", "--json=short"))}
    found = {name: check["detail"] for name, check in checks.items() if name.startswith("controller ")}
    assert found == {f"controller {name}": "enforced" for name in ("memory", "cpu", "pids", "io")}
    assert checks["systemd"]["detail"] == "runs the core"


def test_memory_that_a_cage_may_not_have_it_does_not_get(cage: MakeCage) -> None:
    hog, other = cage("hog", "--memory", str(MEMORY)), cage("other")
    assert (cgroup(hog) / "memory.max").read_text() == f"{MEMORY}\n"
    assert run("cagectl", "enter", hog, "--", "python3", "-c", HOG).returncode == KILLED
    assert counts(cgroup(hog) / "memory.events")["oom_kill"] == 1
    # It was that process alone: the cage goes on, and where there is no such limit there is room.
    assert ok("cagectl", "enter", hog, "--", "echo", "goes on") == "goes on\n"
    assert ok("cagectl", "enter", other, "--", "python3", "-c", HOG) == f"{EATEN}\n"


def test_a_loop_of_forks_ends_at_the_limit_of_tasks(cage: MakeCage) -> None:
    forker = cage("forker", "--tasks", str(TASKS))
    ended = run("cagectl", "enter", forker, "--", "sh", "-c", FORKS)
    assert (ended.returncode, ended.stderr) == (2, "sh: 0: Cannot fork\n")
    assert counts(cgroup(forker) / "pids.events")["max"] > 0
    # All but the shell, which has ended, are there still, and there is no room for many more.
    there = int((cgroup(forker) / "pids.current").read_text())
    assert TASKS - 4 < there < TASKS
    ok("cagectl", "stop", forker)
    ok("cagectl", "start", forker)
    assert ok("cagectl", "enter", forker, "--", "echo", "again") == "again\n"


def test_a_busy_cage_is_throttled_to_its_part_of_a_processor(cage: MakeCage) -> None:
    busy = cage("busy", "--cpus", "0.2")
    before = counts(cgroup(busy) / "cpu.stat")
    ok("cagectl", "enter", busy, "--", "sh", "-c", SPIN)
    after = counts(cgroup(busy) / "cpu.stat")
    used, waited = (after[key] - before[key] for key in ("usage_usec", "throttled_usec"))
    assert after["nr_throttled"] > before["nr_throttled"]
    assert used < waited, "of five periods it may run in one"


def test_weights_and_a_guarantee_are_in_force(cage: MakeCage, tmp_path: Path) -> None:
    definition = tmp_path / "cage.toml"
    definition.write_text('[limits]\nio-weight = 50\ncpu-weight = 200\nmemory-guarantee = "64M"\n')
    weighed = cgroup(cage("weighed", "--from", str(definition)))
    assert {name: (weighed / name).read_text() for name in ("io.weight", "cpu.weight", "memory.min")} == {
        "io.weight": "default 50\n", "cpu.weight": "200\n", "memory.min": f"{64 << 20}\n"}
    status = json.loads(ok("cagectl", "status", "weighed", "--json=short"))
    assert status["unenforced"] == []


# --- the units --------------------------------------------------------------------------------------------------------
def test_an_administrator_stops_starts_and_restarts_the_core(cage: MakeCage) -> None:
    lives = cage("lives")
    ok("cagectl", "enter", lives, "--", "sh", "-c", "sleep 1000 & echo")
    processes, status = cgroup(lives), ok("cagectl", "status", lives)
    there = members(processes)
    assert "Active: active (running)" in ok("systemctl", "--no-pager", "status", "caged")
    before = properties("caged", "MainPID")
    ok("systemctl", "restart", "caged")
    assert properties("caged", "MainPID") != before
    assert ok("cagectl", "status", lives) == status
    ok("systemctl", "stop", "caged")
    assert properties("caged", "ActiveState", "Result") == {"ActiveState": "inactive", "Result": "success"}
    assert run("systemctl", "--no-pager", "status", "caged").returncode == 3, "as for every unit that does not run"
    assert members(processes) == there, "cages outlive the core"
    ok("systemctl", "start", "caged")
    assert ok("cagectl", "status", lives) == status
    assert members(processes) == there


def members(processes: Path) -> set[str]:
    """What is in a cgroup and below."""
    return set().union(*(file.read_text().split() for file in processes.rglob("cgroup.procs")))


# --- the README -------------------------------------------------------------------------------------------------------
def test_the_sessions_of_the_readme_are_what_happens() -> None:
    expected = readme.steps()
    try:
        outputs = readme.typed([step.command for step in expected], {**os.environ, "HOME": "/root"}, SECONDS)
    finally:
        run("cagectl", "destroy", "work", "vault", "--yes")
        Path("/etc/cage-runtime/policy.d/30-mine.policy").unlink(missing_ok=True)
        ok("cagectl", "policy", "reload")
    assert readme.shown(expected, outputs, {}) == readme.promised(expected)
