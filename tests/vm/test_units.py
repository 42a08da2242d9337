# SPDX-License-Identifier: LGPL-2.1-or-later
"""Cages and the core as units: what an administrator sees of them, and what stopping and starting does."""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import time
from pathlib import Path

from tests.vm.conftest import MakeCage
from tests.vm.machine import MEDIATORS, SECONDS, ok, properties, run, words

CORE = ("caged.service", "cage-spawner.service", "cage-apps.service",
        *(f"cage-mediator@{name}.service" for name in MEDIATORS))
SLICE = Path("/sys/fs/cgroup/cages.slice")
RUN = Path("/run/cage-runtime")
SESSION = "trap 'echo told > Documents/told; exit 0' TERM; echo ready; while :; do sleep 1 & wait; done"


def listed(name: str, key: str) -> str:
    return next(str(cage[key]) for cage in json.loads(ok("cagectl", "list", "--json=short")) if cage["name"] == name)


def state(name: str) -> str:
    return listed(name, "state")


def wait_stopped(name: str) -> None:
    """Until caged knows that the cage has ended, of which the spawner tells it after systemd has seen that."""
    end = time.monotonic() + SECONDS
    while state(name) != "stopped":
        assert time.monotonic() < end, f"{name} is {state(name)}"


def uuid(name: str) -> str:
    return listed(name, "uuid")


def pid(unit: str) -> int:
    return int(properties(unit, "MainPID")["MainPID"])


def wait_gone(process: int) -> None:
    """Until it has ended; 0 is none."""
    try:
        descriptor = os.pidfd_open(process) if process else -1
    except ProcessLookupError:
        return
    if descriptor >= 0:
        ended = select.select([descriptor], [], [], SECONDS)[0]
        os.close(descriptor)
        assert ended, f"{process} goes on"


def scope_gone(name: str) -> None:
    """Until systemd has removed the cage's scope, which it does by itself: a stop waits for that."""
    run("systemctl", "stop", f"cage-{name}.scope")
    assert properties(f"cage-{name}.scope", "LoadState") == {"LoadState": "not-found"}
    assert not (SLICE / f"cage-{name}.scope").exists()


def session(name: str) -> subprocess.Popen[str]:
    """A command in the cage that leaves a note when it is told to end."""
    process = subprocess.Popen(["cagectl", "enter", name, "--", "sh", "-c", SESSION], stdout=subprocess.PIPE, text=True,
                               stdin=subprocess.DEVNULL)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def note(name: str) -> str:
    """What such a command has left, which is there when the cage runs again."""
    return ok("cagectl", "enter", name, "--", "cat", "Documents/told")


def test_a_cage_is_a_unit_and_a_machine(cage: MakeCage) -> None:
    cage("work", "--level", "internal")
    cage("vault", "--level", "secret")
    tree = ok("systemd-cgls", "--no-pager", "--unit", "cages.slice")
    shown = ("cage-work.scope", "cage-vault.scope", uuid("work"), uuid("vault"))
    assert [name for name in shown if name not in tree] == []
    assert ok("systemctl", "show", "cages.slice", "--property=Description", "--value") == "Cages\n"
    status = ok("systemctl", "--no-pager", "status", "cage-work.scope")
    assert "cage-work.scope - Cage work" in status
    assert "cage-init work" in status
    assert properties("cage-work.scope", "Slice", "Delegate", "TasksMax", "CollectMode", "KillMode") == {
        "Slice": "cages.slice", "Delegate": "yes", "TasksMax": "infinity", "CollectMode": "inactive-or-failed",
        "KillMode": "control-group"}
    assert "Started cage-work.scope - Cage work." in ok("journalctl", "--no-pager", "--unit", "cage-work.scope")
    machines = {line[0]: line[1:3] for line in words(ok("machinectl", "list", "--no-pager", "--no-legend"))}
    assert machines == {"work": ["vm", "cage-runtime"], "vault": ["vm", "cage-runtime"]}
    machine = dict(line.split("=", 1) for line in ok("machinectl", "show", "work").splitlines())
    assert (machine["Unit"], machine["Id"]) == ("cage-work.scope", uuid("work"))
    assert "cage-init" in ok("machinectl", "status", "--no-pager", "work")
    ok("cagectl", "destroy", "work", "vault", "--yes")
    for name in ("work", "vault"):
        scope_gone(name)
    assert ok("machinectl", "list", "--no-pager", "--no-legend").split() == []


def test_who_stops_a_cage_s_unit_stops_the_cage_in_order(cage: MakeCage) -> None:
    cage("work")
    for how in (("systemctl", "stop", "cage-work.scope"), ("machinectl", "poweroff", "work"),
                ("systemctl", "stop", "cages.slice")):  # fmt: skip
        with session("work") as inside:
            init = next(int(line) for line in (SLICE / "cage-work.scope" / uuid("work") / "cgroup.procs").open())
            ok(*how)
            assert inside.wait(SECONDS) == 0
        wait_gone(init)
        scope_gone("work")
        wait_stopped("work")
        ok("cagectl", "start", "work")
        assert note("work") == "told\n"
        ok("cagectl", "enter", "work", "--", "rm", "Documents/told")


def test_a_paused_cage_hears_that_its_unit_is_stopped(cage: MakeCage) -> None:
    """Also one that an earlier spawner has started."""
    cage("work")
    with session("work") as inside:
        ok("systemctl", "restart", "cage-spawner.service")
        ok("cagectl", "pause", "work")
        ok("systemctl", "stop", "cage-work.scope")
        assert inside.wait(SECONDS) == 0
    assert "Stopping timed out" not in ok("journalctl", "--no-pager", "--boot", "--unit", "cage-work.scope")
    wait_stopped("work")
    ok("cagectl", "start", "work")
    assert note("work") == "told\n"


def test_a_name_that_a_unit_has_already_is_refused_and_nothing_is_left(cage: MakeCage) -> None:
    cage("work")
    stranger = subprocess.Popen(["systemd-run", "--quiet", "--scope", "--unit=cage-taken.scope", "sh", "-c",
                                 "echo ready; exec sleep infinity"], stdout=subprocess.PIPE, text=True)  # fmt: skip
    assert stranger.stdout is not None
    assert stranger.stdout.readline() == "ready\n"
    before = sorted(os.listdir(RUN / "cages"))
    refused = run("cagectl", "create", "taken")
    stranger.terminate()
    stranger.communicate()
    assert refused.returncode == 125
    assert refused.stderr == ("cagectl: there is a unit cage-taken.scope already, which is none of this runtime's; "
                              "see systemctl status cage-taken.scope\n")  # fmt: skip
    assert sorted(os.listdir(RUN / "cages")) == before
    assert not (SLICE / "cage-taken.scope").exists()
    scope_gone("taken")
    cage("taken")


def test_a_cage_outlives_the_spawner_however_that_ends(cage: MakeCage) -> None:
    cage("work")
    with session("work") as inside:
        for how in (("restart", "cage-spawner.service"), ("kill", "--signal=KILL", "cage-spawner.service")):
            spawner = pid("cage-spawner.service")
            ok("systemctl", *how)
            wait_gone(spawner)
            assert state("work") == "running"
            assert ok("cagectl", "enter", "work", "--", "echo", "alive") == "alive\n"
        assert inside.poll() is None
        ok("cagectl", "stop", "work")
        assert inside.wait(SECONDS) == 0
    scope_gone("work")


def test_a_spawner_that_is_started_again_refuses_no_connection(cage: MakeCage) -> None:
    cage("work")
    restart = subprocess.Popen(["systemctl", "restart", "cage-spawner.service"])
    connections = 0
    while restart.poll() is None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
            connection.connect(str(RUN / "spawner.sock"))
            connections += 1
    assert restart.returncode == 0
    assert connections > 1
    assert state("work") == "running"


def test_a_spawner_that_stands_still_is_started_again(cage: MakeCage) -> None:
    cage("work")
    directory = Path("/run/systemd/system/cage-spawner.service.d")
    directory.mkdir(parents=True)
    (directory / "soon.conf").write_text("[Service]\nWatchdogSec=5\n")
    ok("systemctl", "daemon-reload")
    ok("systemctl", "restart", "cage-spawner.service")
    try:
        stopped = pid("cage-spawner.service")
        ok("systemctl", "kill", "--signal=STOP", "--kill-whom=main", "cage-spawner.service")
        wait_gone(stopped)
        assert state("work") == "running"
        assert "Watchdog timeout" in ok("journalctl", "--no-pager", "--boot", "--unit", "cage-spawner.service")
    finally:
        (directory / "soon.conf").unlink()
        directory.rmdir()
        ok("systemctl", "daemon-reload")
        ok("systemctl", "restart", "cage-spawner.service")


def test_caged_has_the_others_started_and_stopped_and_restarts_alone(cage: MakeCage) -> None:
    cage("work")
    before = {unit: pid(unit) for unit in CORE}
    assert all(before.values())
    ok("systemctl", "restart", "caged.service")
    assert [unit for unit in CORE if pid(unit) != before[unit]] == ["caged.service"]
    ok("systemctl", "stop", "caged.service")
    for process in before.values():
        wait_gone(process)
    scopes = SLICE / "cage-work.scope"
    assert "populated 1" in (scopes / "cgroup.events").read_text(), "cages go on"
    assert living() == [uuid_on_disk("work")]
    ok("systemctl", "start", "caged.service")
    assert all(pid(unit) for unit in CORE)
    assert state("work") == "running"


def uuid_on_disk(name: str) -> str:
    return str(json.loads(Path(f"/var/lib/cage-runtime/cages/{name}/instance.json").read_text())["uuid"])


def living() -> list[str]:
    """The uuids of the cgroups of all cages, as systemd shows them."""
    return [entry.name for entry in SLICE.glob("cage-*.scope/*/")]


def test_what_fails_on_the_way_leaves_no_unit(cage: MakeCage) -> None:
    """cage-scopes ends, and systemd's bus does: the first is started again, the second told of."""
    cage("work")
    (scopes,) = ok("pidof", "-x", "cage-scopes").split()
    os.kill(int(scopes), 9)
    wait_gone(int(scopes))
    cage("after")
    assert sorted(entry.name for entry in SLICE.glob("cage-*.scope")) == ["cage-after.scope", "cage-work.scope"]
    ok("cagectl", "destroy", "after", "--yes")
    scope_gone("after")
    assert sorted(os.listdir(RUN / "cages")) == [uuid("work")]
