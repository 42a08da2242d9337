# SPDX-License-Identifier: LGPL-2.1-or-later
"""Documents across the wall, between real cages: what arrives is what was sent, whole, or nothing does.

What cannot be sent at all is in test_bad_input.py.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cage_runtime.model import TRANSFERS_PER_PAIR
from tests.privileged.conftest import MakeCage
from tests.privileged.runtime import SECONDS, Cage, Changes, Ended, Runtime, arguments_of, wait_gone

NOT_THERE = ('incage: "{}" did not arrive in {}, which may be stopped or full; the core\'s audit log says why\n')
LARGE = 96 << 20
"""Bytes that take some tenths of a second to copy."""


@pytest.fixture(scope="module")
def low(shared_cage: MakeCage) -> Cage:
    return shared_cage("low", "--level", "internal")


@pytest.fixture(scope="module")
def peer(shared_cage: MakeCage) -> Cage:
    return shared_cage("peer", "--level", "internal")


@pytest.fixture(scope="module")
def high(shared_cage: MakeCage) -> Cage:
    return shared_cage("high", "--level", "secret")


def send(source: Cage, target: str, *files: str) -> Ended:
    return source.enter("incage", "send", *files, "--to", target)


def inbox(runtime: Runtime, target: Cage) -> list[str]:
    """All that is in the target's inbox, as the host sees it: hidden and half-made files too."""
    top = runtime.storage / target.uuid / "home/Inbox"
    return sorted(str(path.relative_to(top)) for path in top.rglob("*") if not path.is_dir())


@contextmanager
def stopped(runtime: Runtime, target: Cage) -> Iterator[None]:
    """The target's processes stand still, and the core does not know."""
    cgroup = runtime.cgroups()[target.uuid]
    (cgroup / "cgroup.freeze").write_text("1")
    try:
        yield
    finally:
        (cgroup / "cgroup.freeze").write_text("0")
        if target.status["state"] == "paused":  # as a core that was started meanwhile has found it
            runtime.ok("resume", target.name)


# --- what arrives ------------------------------------------------------------------------------------------------
def test_up_it_arrives_as_it_was(runtime: Runtime, low: Cage, high: Cage) -> None:
    content = os.urandom((10 << 20) + 1)
    low.sh("cat > Documents/figures.bin", input=content)
    ended = send(low, "high", "Documents/figures.bin")
    assert (ended.returncode, ended.stdout) == (0, b"figures.bin -> high: Inbox/low/\n"), ended.stderr
    arrived = high.enter("cat", "Inbox/low/figures.bin").stdout
    digest = hashlib.sha256(content).hexdigest()
    assert hashlib.sha256(arrived).hexdigest() == digest
    about = high.sh("stat -c '%U %a' Inbox/low/figures.bin").split()
    assert about == ["user", "644"]
    noted = runtime.events("transfer")[-1]
    assert (noted["cage"], noted["target"], noted["sha256"]) == ("low", "high", digest)
    assert noted["size"] == str(len(content))
    assert noted["outcome"] == "arrived as Inbox/low/figures.bin"
    high.sh("rm -r Inbox")


NUMBERED = ("notes.txt", "notes (2).txt", "notes (3).txt")


def test_a_name_that_is_taken_gets_a_number(runtime: Runtime, low: Cage, peer: Cage) -> None:
    low.sh("echo one > Documents/notes.txt")
    for name in NUMBERED:
        ended = send(low, "peer", "Documents/notes.txt")
        assert ended.stdout.decode() == f"notes.txt -> peer: Inbox/low/{name}\n", ended.stderr
    assert inbox(runtime, peer) == sorted(f"low/{name}" for name in NUMBERED)
    peer.sh("rm -r Inbox")


def test_which_number_that_is_is_not_told_down(runtime: Runtime, low: Cage, high: Cage) -> None:
    """It would be the target's to choose, by the names that it has taken."""
    low.sh("echo one > Documents/notes.txt")
    for name in NUMBERED:
        ended = send(low, "high", "Documents/notes.txt")
        assert ended.stdout == b"notes.txt -> high: Inbox/low/\n", ended.stderr
        assert runtime.events("transfer")[-1]["outcome"] == f"arrived as Inbox/low/{name}"
    assert inbox(runtime, high) == sorted(f"low/{name}" for name in NUMBERED)
    ended = low.enter("incage", "--json=short", "send", "Documents/notes.txt", "--to", "high")
    assert json.loads(ended.stdout) == [{"file": "Documents/notes.txt", "target": "high", "arrived": "Inbox/low/"}]
    high.sh("rm -r Inbox")


def test_several_files_and_those_that_can_arrive_do(runtime: Runtime, low: Cage, high: Cage) -> None:
    low.sh("echo a > a; echo b > b; ln -s /etc/passwd away")
    ended = send(low, "high", "a", "away", "no-such", "b")
    assert ended.returncode == 1
    assert ended.stdout == b"a -> high: Inbox/low/\nb -> high: Inbox/low/\n"
    assert len(ended.stderr.splitlines()) == 2
    assert inbox(runtime, high) == ["low/a", "low/b"]
    high.sh("rm -r Inbox")


def test_more_at_once_than_may_be_under_way(runtime: Runtime, low: Cage, high: Cage) -> None:
    """Those that are too many wait for their turn."""
    low.sh("for i in 1 2 3 4 5 6 7 8; do head -c 300000 /dev/urandom > many-$i; done")
    decided = len(runtime.events("decision"))
    script = "for i in 1 2 3 4 5 6 7 8; do incage send many-$i --to high & done; wait"
    with Changes(runtime.state / "audit") as changes, stopped(runtime, high):
        sending = low.popen("sh", "-c", script, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        changes.until(lambda: len(runtime.events("decision")) >= decided + 2 * TRANSFERS_PER_PAIR, "those that may")
    output, errors = sending.communicate(timeout=SECONDS)
    assert (len(output.splitlines()), errors) == (8, b"")
    assert inbox(runtime, high) == [f"low/many-{number}" for number in range(1, 9)]
    sums = "sha256sum many-* | sort"
    assert low.sh(sums) == high.sh(f"cd Inbox/low; {sums}")
    high.sh("rm -r Inbox")


# --- what is refused ---------------------------------------------------------------------------------------------
def test_down_it_is_refused_and_the_log_names_the_rule(runtime: Runtime, low: Cage, high: Cage) -> None:
    high.sh("echo secret > plan.txt")
    ended = send(high, "low", "plan.txt")
    assert (ended.returncode, ended.stdout) == (126, b"")
    decided = runtime.events("decision")[-1]
    assert (decided["cage"], decided["target"], decided["decision"]) == ("high", "low", "deny")
    assert "90-default.policy:5" in decided["rule"]
    assert ".policy" not in ended.stderr.decode(), "which rule it was is not the cage's to know"
    assert not (runtime.storage / low.uuid / "home/Inbox").exists()


def test_unknown_and_forbidden_targets_look_alike(low: Cage, high: Cage) -> None:
    high.sh("echo secret > plan.txt")
    forbidden, unknown = send(high, "low", "plan.txt"), send(high, "owl", "plan.txt")
    assert low.name in forbidden.stderr.decode()
    assert (forbidden.returncode, forbidden.stdout) == (unknown.returncode, unknown.stdout) == (126, b"")
    assert forbidden.stderr.replace(b'"low"', b"@") == unknown.stderr.replace(b'"owl"', b"@")


def test_nobody_sends_in_the_name_of_another(runtime: Runtime, low: Cage, high: Cage) -> None:
    """Who sends follows from the gateway: a cage that rewrites its own identity stays what it is."""
    forged = 'mkdir x; cp -r /run/cage x; sed -i s/low/high/ x/cage/identity.json 2>/dev/null; echo a > f'
    low.enter("sh", "-c", forged, root=True)
    low.sh("echo a > f; incage send f --to high")
    assert inbox(runtime, high) == ["low/f"]
    high.sh("rm -r Inbox")


@pytest.mark.parametrize(
    ("level", "says"),
    [("internal", ": its home is full"), ("secret", ", which may be stopped or full; the core's audit log says why")],
)
def test_a_full_target_says_so_to_its_peers_and_keeps_nothing(
    runtime: Runtime, low: Cage, cage: MakeCage, level: str, says: str
) -> None:
    small = cage("small", "--level", level, "--ephemeral", "--disk", "1M")
    low.sh("head -c 3000000 /dev/urandom > large")
    ended = send(low, "small", "large")
    assert (ended.returncode, ended.stdout) == (1, b"")
    assert ended.stderr.decode() == f'incage: "large" did not arrive in small{says}\n'
    assert runtime.events("transfer")[-1]["outcome"] == '"large" did not arrive in small: its home is full'
    assert small.sh("find Inbox 2>/dev/null; true") == ""
    low.sh("echo less > less; incage send less --to small")
    assert small.sh("cat Inbox/low/less") == "less\n"


# --- what is cut off ---------------------------------------------------------------------------------------------
def children_of(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def incage_of(runtime: Runtime, source: Cage) -> int:
    """The one incage that runs there."""
    (pid,) = (pid for pid in runtime.cage_processes(source.uuid)
              if any(word.endswith("/incage") for word in arguments_of(pid)[:4]))
    return pid


def nothing_is_left(runtime: Runtime, high: Cage) -> None:
    assert high.sh("find Inbox 2>/dev/null; true") == ""
    assert os.listdir(runtime.state / "staging") == []


def test_a_mediator_killed_while_it_copies_leaves_nothing_and_it_is_sent_again(
    runtime: Runtime, low: Cage, high: Cage
) -> None:
    low.sh(f"head -c {LARGE} /dev/zero > large")
    mediator = runtime.process("cage-mediator")
    with low.popen("incage", "send", "large", "--to", "high", stdout=subprocess.PIPE,
                   stderr=subprocess.PIPE) as sending:
        while not (workers := children_of(mediator)):
            assert sending.poll() is None
        runtime.kill_and_wait("cage-mediator")
        for worker in workers:
            wait_gone(worker)
        output, errors = sending.communicate(timeout=SECONDS)
    assert (sending.returncode, output, errors) == (0, b"large -> high: Inbox/low/\n", b"")
    assert inbox(runtime, high) == ["low/large"]
    assert os.listdir(runtime.state / "staging") == []
    high.sh("rm -r Inbox")
    low.sh("rm large")


def test_what_whoever_sends_it_has_given_up_does_not_arrive(runtime: Runtime, low: Cage, high: Cage) -> None:
    low.sh(f"head -c {LARGE} /dev/zero > large")
    mediator = runtime.process("cage-mediator")
    with Changes(runtime.state / "audit") as changes:
        recorded = len(runtime.events("transfer"))
        with low.popen("incage", "send", "large", "--to", "high", stderr=subprocess.DEVNULL) as sending:
            while not (workers := children_of(mediator)):
                assert sending.poll() is None
            os.kill(workers[0], signal.SIGSTOP)  # it is being staged until whoever sends it has gone
            os.kill(incage_of(runtime, low), signal.SIGKILL)
            changes.until(lambda: len(runtime.events("transfer")) > recorded, "its record")
    assert [event["outcome"] for event in runtime.events("transfer")[recorded:]] == [
        "given up, because whoever sent it has gone; nothing arrived"]
    wait_gone(workers[0])
    nothing_is_left(runtime, high)
    low.sh("rm large")


@pytest.mark.parametrize("program", ["cage-mediator", "caged", "cage-spawner"])
def test_what_is_cut_off_while_it_is_delivered_is_not_there(
    runtime: Runtime, low: Cage, high: Cage, program: str
) -> None:
    low.sh("echo figures > figures")
    high.sh("true")
    with Changes(runtime.state / "audit") as changes:
        decided = len(runtime.events("decision"))
        with stopped(runtime, high):
            sending = low.popen("incage", "send", "figures", "--to", "high", stdout=subprocess.PIPE,
                                stderr=subprocess.PIPE)
            changes.until(lambda: len(runtime.events("decision")) >= decided + 2, "the second decision")
            runtime.kill_and_wait(program)
        output, errors = sending.communicate(timeout=SECONDS)
    arrived = high.sh("find Inbox -type f 2>/dev/null; true")
    if sending.returncode == 0 or program == "cage-mediator":  # without that one it is sent again
        assert (output, arrived) == (b"figures -> high: Inbox/low/\n", "Inbox/low/figures\n")
    else:
        assert arrived == "", errors
        # A caged or a spawner that comes back finds the target paused, which takes nothing.
        assert errors.decode() == NOT_THERE.format("figures", "high")
    assert os.listdir(runtime.state / "staging") == []
    assert send(low, "high", "figures").returncode == 0
    high.sh("rm -r Inbox")


def test_a_target_that_stands_still_stops_nobody_else(
    runtime: Runtime, low: Cage, high: Cage, cage: MakeCage
) -> None:
    """Some places are for it, for which others wait, and they are free again once whoever sent has gone."""
    most = TRANSFERS_PER_PAIR
    hostile = cage("hostile", "--level", "secret")
    low.sh("echo figures > f")
    decided = len(runtime.events("decision"))
    with Changes(runtime.state / "audit") as changes, stopped(runtime, hostile):
        sending = [low.popen("incage", "send", "f", "--to", "hostile", stderr=subprocess.DEVNULL)
                   for _ in range(most + 1)]
        changes.until(lambda: len(runtime.events("decision")) >= decided + 2 * most, "all second decisions")
        assert send(low, "high", "f").returncode == 0
        assert [each.poll() for each in sending] == [None] * (most + 1)
        recorded = len(runtime.events("transfer"))
        mediator = next(pid for pid in runtime.cage_processes(low.uuid) if "--cage" in arguments_of(pid))
        os.kill(mediator, signal.SIGKILL)
        changes.until(lambda: len(runtime.events("transfer")) >= recorded + most, "their end")
    assert {event["outcome"] for event in runtime.events("transfer")[-most:]} == {
        "given up, because whoever sent it has gone; nothing arrived"}
    assert 0 not in [each.wait(SECONDS) for each in sending]
    assert inbox(runtime, high) == ["low/f"]
    assert hostile.sh("find Inbox 2>/dev/null; true") == ""
    high.sh("rm -r Inbox")


def test_a_cage_that_asks_too_often_is_recorded_once_for_all(runtime: Runtime, cage: MakeCage) -> None:
    hasty = cage("hasty")
    hasty.sh("echo a > f")
    refusals = len(runtime.events("decision"))
    flood = hasty.enter("incage", "send", *["f"] * 400, "--to", "nobody")
    assert b"incage: this cage asks too often; try again in a moment\n" in flood.stderr
    assert flood.stderr.count(b"\n") == 400
    assert len(runtime.events("decision")) - refusals < 399


def test_no_process_of_a_transfer_stays(runtime: Runtime, low: Cage, high: Cage) -> None:
    low.sh("echo a > f; incage send f --to high")
    assert children_of(runtime.process("cage-mediator")) == []
    assert [pid for pid in runtime.cage_processes(high.uuid) if "--deliver" in arguments_of(pid)] == []
    high.sh("rm -r Inbox")
