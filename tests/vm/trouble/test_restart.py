# SPDX-License-Identifier: LGPL-2.1-or-later
"""The core's units are restarted, reloaded, stopped and hung while much is under way: nothing is lost, and nobody who
waits for an answer is left without one.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import select
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.vm.conftest import MakeCage
from tests.vm.machine import FILES_AND_ANOTHER, SECONDS, main_pid, ok, properties, run, until

ROUTES = (("one", "two"), ("one", "vault"), ("two", "vault"))
FILES, ROUNDS = 4, 2
SEND = """
echo begun
for number in $(seq {files}); do
  head -c $((number * 30000)) /dev/urandom > {target}-$number
  incage send {target}-$number --to {target} > /dev/null
  echo $? {target}-$number $(sha256sum < {target}-$number)
done
"""
"""Prints of each file the status of its transfer, its name and its digest."""
CHURN = "cagectl create passing && cagectl enter passing -- true && cagectl list && cagectl destroy passing --yes"
HOMES = Path("/var/lib/cage-runtime/storage")
POLICY = Path("/etc/cage-runtime/policy.d/10-restart.policy")


def uuid(name: str) -> str:
    return str(json.loads(ok("cagectl", "status", name, "--json=short"))["uuid"])


def states() -> dict[str, str]:
    return {cage["name"]: cage["state"] for cage in json.loads(ok("cagectl", "list", "--json=short"))}


def records(kind: str) -> list[dict[str, str]]:
    listed = json.loads(ok("cagectl", "audit", "tail", "--json=short", "-n", "1000"))
    return [record["fields"] for record in listed if record["kind"] == kind]


def gateway(name: str) -> str:
    """The processes of the cage's gateway, of which there are none in one that has never sent anything."""
    procs = Path(f"/sys/fs/cgroup/cages.slice/cage-{name}.scope/{uuid(name)}.gateway/cgroup.procs")
    return procs.read_text() if procs.exists() else ""


def hung(pids: dict[str, int]) -> None:
    """Have these processes stand still, until all of them have been ended."""
    pidfds = {what: os.pidfd_open(pid) for what, pid in pids.items()}
    for pidfd in pidfds.values():
        signal.pidfd_send_signal(pidfd, signal.SIGSTOP)
    for what, pidfd in pidfds.items():
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        assert poll.poll(SECONDS * 1000), f"{what} has not ended"
        os.close(pidfd)


@pytest.fixture
def cages(cage: MakeCage) -> None:
    """Three, whose gateways' buses run."""
    ok("systemctl", "start", FILES_AND_ANOTHER[0])  # which caged has begun: this waits for it
    for name, level in (("one", "internal"), ("two", "internal"), ("vault", "secret")):
        cage(name, "--level", level)
    for source, target in ROUTES:
        ok("cagectl", "enter", source, "--", "sh", "-c", f"echo first > first; incage send first --to {target}")


@contextlib.contextmanager
def senders() -> Iterator[dict[tuple[str, str], subprocess.Popen[str]]]:
    """One a route, each begun; they end before this does."""
    sending = {
        (source, target): subprocess.Popen(
            ["cagectl", "enter", source, "--", "sh", "-c", SEND.format(files=FILES, target=target)],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for source, target in ROUTES
    }
    try:
        for process in sending.values():
            assert process.stdout is not None
            assert process.stdout.readline() == "begun\n"
        yield sending
    finally:
        for process in sending.values():
            process.kill()
            process.communicate()


def check_sent(source: str, target: str, said: str) -> None:
    """Every file was said to arrive, and all that is in the inbox is each of them, once and whole."""
    lines = [line.split() for line in said.splitlines()]
    assert [line[0] for line in lines] == ["0"] * FILES, said
    top = HOMES / uuid(target) / "home/Inbox" / source
    there = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in top.iterdir()}
    del there["first"]
    assert there == {name: digest for _, name, digest, _ in lines}, said


@pytest.mark.usefixtures("cages")
def test_restarts_lose_no_transfer_no_call_and_no_cage() -> None:
    before = {name: (uuid(name), gateway(name)) for name in states()}
    with senders() as sending:
        for _ in range(ROUNDS):
            churning = subprocess.Popen(["sh", "-c", CHURN], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                        text=True)
            for unit in ("caged.service", "cage-spawner.service"):
                ok("systemctl", "reset-failed", unit)  # its counter of starts: systemd has a bound for them
                ok("systemctl", "restart", unit)
            said, _ = churning.communicate(timeout=SECONDS)
            assert churning.returncode == 0, said
        outputs = {route: process.communicate(timeout=SECONDS)[0] for route, process in sending.items()}
    for (source, target), said in outputs.items():
        check_sent(source, target, said)
    assert states() == dict.fromkeys(before, "running")
    assert {name: (uuid(name), gateway(name)) for name in before} == before
    assert all(gateway(source) for source, _ in ROUTES)
    ok("cagectl", "audit", "verify")
    assert list(Path("/var/lib/cage-runtime/staging").iterdir()) == []
    assert properties("caged.service", "Result", "NRestarts") == {"Result": "success", "NRestarts": "0"}


@contextlib.contextmanager
def watchdogs(seconds: int, *units: str) -> Iterator[None]:
    """In the block, the units have watchdogs of so many seconds."""
    folders = [Path(f"/run/systemd/system/{unit}.d") for unit in units]
    for folder in folders:
        folder.mkdir(parents=True)
        (folder / "watchdog.conf").write_text(f"[Service]\nWatchdogSec={seconds}\n")
    ok("systemctl", "daemon-reload")
    ok("systemctl", "restart", *units)
    try:
        yield
    finally:
        for folder in folders:
            (folder / "watchdog.conf").unlink()
            folder.rmdir()
        ok("systemctl", "daemon-reload")
        ok("systemctl", "restart", *units)


def test_what_stands_still_is_started_again_and_cages_go_on(cage: MakeCage) -> None:
    cage("work")
    units = ("caged.service", "cage-apps.service", *FILES_AND_ANOTHER)
    session = subprocess.Popen(["cagectl", "enter", "work", "--", "sh", "-c", "echo begun; read line; echo $line"],
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert session.stdout is not None
    assert session.stdout.readline() == "begun\n"
    with watchdogs(10, *units):
        before = {unit: main_pid(unit) for unit in units}
        hung(before)
        for unit, pid in before.items():
            ok("systemctl", "start", unit)
            assert main_pid(unit) not in (0, pid)
            assert "Watchdog timeout" in ok("journalctl", "--no-pager", "--boot", "--unit", unit)
        assert states() == {"work": "running"}
    assert session.communicate("still here\n", timeout=SECONDS)[0] == "still here\n"
    assert session.returncode == 0


def test_a_reload_is_the_policy_s_and_tells_what_is_wrong_with_it(cage: MakeCage) -> None:
    cage("low", "--level", "internal")
    cage("high", "--level", "secret")
    ok("cagectl", "enter", "low", "--", "sh", "-c", "echo x > x")
    pid = main_pid("caged.service")

    def sent() -> int:
        return run("cagectl", "enter", "low", "--", "incage", "send", "x", "--to", "high").returncode

    assert sent() == 0
    POLICY.parent.mkdir(parents=True, exist_ok=True)
    try:
        POLICY.write_text("files.Send * low high deny\n")
        ok("systemctl", "reload", "caged.service")
        assert sent() == 126
        POLICY.write_text("files.Send *\n")
        assert run("systemctl", "reload", "caged.service").returncode == 1
        assert sent() == 126, "the one in force stays"
        assert f"{POLICY}:1: 2 words are no rule" in ok("journalctl", "--no-pager", "--boot", "--unit", "caged.service")
    finally:
        POLICY.unlink()
    ok("systemctl", "reload", "caged.service")
    assert sent() == 0
    assert main_pid("caged.service") == pid


def test_who_asks_is_answered_also_where_caged_was_stopped() -> None:
    ok("systemctl", "stop", "caged.service")
    assert properties("caged.service", "ActiveState") == {"ActiveState": "inactive"}
    assert states() == {}
    pid = main_pid("caged.service")
    os.kill(pid, signal.SIGTERM)  # it gives its name up and ends; who asks now is kept waiting for the next one
    assert states() == {}
    assert main_pid("caged.service") not in (0, pid)
    assert properties("caged.service", "Result") == {"Result": "success"}


@pytest.mark.parametrize("command", [["runuser", "-u", "caged", "--", "caged"], ["caged", "--standalone"]],
                         ids=["caged", "standalone"])
def test_a_second_core_by_hand_is_refused_and_changes_nothing(command: list[str]) -> None:
    states()
    before, pid = len(records("core-started")), main_pid("caged.service")
    second = run(*command)
    assert second.returncode == 125
    assert len(second.stderr.splitlines()) == 1
    assert second.stderr.rstrip().endswith(("is in use by another core; stop it first",
                                            "a core runs already with /run/cage-runtime; end it first"))
    ok("cagectl", "audit", "verify")
    assert (len(records("core-started")), main_pid("caged.service")) == (before, pid)


@contextlib.contextmanager
def frozen(name: str) -> Iterator[None]:
    """The cage's processes stand still, and the core does not know."""
    (file,) = Path("/sys/fs/cgroup/cages.slice").glob(f"cage-{name}.scope/{uuid(name)}/cgroup.freeze")
    file.write_text("1")
    try:
        yield
    finally:
        file.write_text("0")


def test_a_stop_is_bounded_whatever_hangs(cage: MakeCage) -> None:
    """A mediator that stands still, and a delivery into a cage that does."""
    for name in ("one", "two"):
        cage(name)
    ok("cagectl", "enter", "one", "--", "sh", "-c", "echo x > x; incage send x --to two")
    decided = len(records("decision"))
    with frozen("two"):
        sending = subprocess.Popen(["cagectl", "enter", "one", "--", "incage", "send", "x", "--to", "two"],
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        until(lambda: len(records("decision")) == decided + 2)
        os.kill(main_pid("cage-mediator@files.service"), signal.SIGSTOP)
        ok("systemctl", "stop", "caged.service", "cage-spawner.service")
        for unit in ("caged.service", "cage-spawner.service"):
            assert properties(unit, "ActiveState", "Result") == {"ActiveState": "inactive", "Result": "success"}, unit
    ok("systemctl", "start", "caged.service")
    assert len(records("core-stopped")) > 0
    sending.communicate(timeout=SECONDS)
    two = HOMES / uuid("two") / "home/Inbox/one"
    assert (sending.returncode == 0) == ((two / "x (2)").exists())
    if states()["two"] == "paused":  # as the core has found it
        ok("cagectl", "resume", "two")
    ok("cagectl", "audit", "verify")
