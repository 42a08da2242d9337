# SPDX-License-Identifier: LGPL-2.1-or-later
"""Trees across the wall, between real cages: all of it under one name, or nothing; and what a move leaves behind."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.privileged import rules
from tests.privileged.conftest import MakeCage
from tests.privileged.runtime import SECONDS, Cage, Changes, Ended, Runtime, arguments_of, wait_gone

MANY = ("mkdir many; cd many; for d in a b c d; do mkdir -p $d/e; for i in $(seq 100); do echo $d$i > $d/e/$i; done; "
        "done")
SUMS = "find . -type f -exec sha256sum {} + | sort"
RULES = """files.Move * low peer allow
files.Send * picky peer allow types=application/pdf,image/* max-files=3
files.Send * diode high allow direction=one-way
files.Move * diode high allow direction=one-way
"""


@pytest.fixture(autouse=True, scope="module")
def policy(runtime: Runtime) -> Iterator[None]:
    with rules.policy(runtime, RULES):
        yield


@pytest.fixture(scope="module")
def low(shared_cage: MakeCage) -> Cage:
    return shared_cage("low", "--level", "internal")


@pytest.fixture(scope="module")
def peer(shared_cage: MakeCage) -> Cage:
    return shared_cage("peer", "--level", "internal")


@pytest.fixture(scope="module")
def high(shared_cage: MakeCage) -> Cage:
    return shared_cage("high", "--level", "secret")


def send(source: Cage, target: str, *words: str, verb: str = "send") -> Ended:
    return source.enter("incage", verb, *words, "--to", target)


def children_of(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_a_tree_arrives_as_it_was(runtime: Runtime, low: Cage, high: Cage) -> None:
    low.sh(f"{MANY}; echo '#!/bin/sh' > run; chmod 4755 run; touch empty; mkdir none; chmod 1777 none; "
           "setfattr -n user.secret -v x run 2>/dev/null; truncate -s 2M a/sparse; touch -d @4294967296 empty")
    ended = send(low, "high", "many")
    assert (ended.returncode, ended.stdout) == (0, b"many -> high: Inbox/low/\n"), ended.stderr
    assert low.sh(f"cd many; {SUMS}") == high.sh(f"cd Inbox/low/many; {SUMS}")
    about = high.sh("cd Inbox/low/many; stat -c '%U %a %n' run empty none a/e/1 .")
    assert about.splitlines() == ["user 755 run", "user 644 empty", "user 755 none", "user 644 a/e/1", "user 755 ."]
    assert high.sh("find Inbox -mindepth 1 -maxdepth 2") == "Inbox/low\nInbox/low/many\n"
    noted = runtime.events("transfer")[-1]
    assert (noted["name"], noted["files"], noted["outcome"]) == ("many/", "412", "arrived as Inbox/low/many")
    assert os.listdir(runtime.state / "staging") == []
    high.sh("rm -r Inbox")
    low.sh("rm -r many")


def test_a_name_that_is_taken(low: Cage, peer: Cage) -> None:
    low.sh("mkdir -p papers; echo one > papers/one")
    said = [send(low, "peer", *words, "papers").stdout for words in ((), (), ("--conflict", "skip"))]
    assert said == [b"papers -> peer: Inbox/low/papers\n", b"papers -> peer: Inbox/low/papers (2)\n",
                    b"papers -> peer: skipped, because the name is taken\n"]
    failed = send(low, "peer", "--conflict", "fail", "papers")
    assert failed.returncode == 1
    assert b"its Inbox has something of this name" in failed.stderr
    low.sh("rm papers/one; echo two > papers/two")
    assert send(low, "peer", "--conflict", "replace", "papers").stdout == b"papers -> peer: Inbox/low/papers\n"
    assert peer.sh("find Inbox -type f | sort") == "Inbox/low/papers (2)/one\nInbox/low/papers/two\n"
    peer.sh("rm -r Inbox")
    low.sh("rm -r papers")


HOSTILE_NAMES = ("$'a\\nb'", "$'\\e[2J'", "-rf", "'a '", "'a.'", "$'a\\u202etxt'", "$'p\\u0430y'", "$'\\xff'",
                 ".incoming-1")


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_a_tree_with_a_name_that_cannot_be_told_is_refused_whole(low: Cage, high: Cage, name: str) -> None:
    """M26."""
    low.enter("bash", "-c", f"mkdir -p odd/deep; echo 1 > odd/good; LC_ALL=C.UTF-8; echo 2 > odd/deep/{name}")
    ended = send(low, "high", "odd")
    assert ended.returncode != 0
    assert ended.stderr.startswith(b'incage: "odd" '), ended.stderr
    assert b"\x1b" not in ended.stderr
    assert high.sh("find Inbox 2>/dev/null; true") == ""
    low.sh("rm -r odd")


def test_twins_are_refused_whole(low: Cage, high: Cage) -> None:
    low.enter("bash", "-c", "mkdir odd; LC_ALL=C.UTF-8; echo 1 > odd/$'\\u00e9'; echo 2 > odd/$'e\\u0301'")
    ended = send(low, "high", "odd")
    assert b"has two entries" in ended.stderr
    assert high.sh("find Inbox 2>/dev/null; true") == ""
    low.sh("rm -r odd")


def test_more_files_than_a_tree_may_have_are_refused_before_anything_is_sent(
    runtime: Runtime, low: Cage, high: Cage
) -> None:
    """M27."""
    low.sh("mkdir tiny; cd tiny; python3 -c 'for i in range(100001): open(str(i), \"x\").close()'")
    decided = len(runtime.events("decision"))
    ended = send(low, "high", "tiny")
    assert ended.stderr == b'incage: "tiny" has more than 100000 files and directories; send it in parts\n'
    assert len(runtime.events("decision")) == decided
    low.sh("rm -r tiny")
    assert high.sh("find Inbox 2>/dev/null; true") == ""


# --- what is moved -----------------------------------------------------------------------------------------------
def test_what_was_moved_is_not_here_any_more(low: Cage, peer: Cage) -> None:
    low.sh("mkdir -p papers/deep/none; echo one > papers/deep/one; echo f > figures")
    ended = send(low, "peer", "papers", "figures", verb="move")
    assert (ended.returncode, ended.stderr) == (0, b"")
    assert peer.sh("cat Inbox/low/papers/deep/one Inbox/low/figures") == "one\nf\n"
    assert low.sh("ls papers figures 2>/dev/null; true") == ""
    peer.sh("rm -r Inbox")


def test_what_did_not_arrive_is_kept(low: Cage, peer: Cage) -> None:
    low.sh("mkdir papers; echo one > papers/one")
    send(low, "peer", "papers")
    for conflict in ("fail", "skip"):
        ended = send(low, "peer", "--conflict", conflict, "papers", verb="move")
        assert ended.returncode == 1
        assert low.sh("cat papers/one") == "one\n"
    assert send(low, "nobody", "papers", verb="move").returncode == 126
    assert low.sh("cat papers/one") == "one\n"
    peer.sh("rm -r Inbox")
    low.sh("rm -r papers")


def test_what_has_changed_since_it_was_read_is_kept(runtime: Runtime, low: Cage, peer: Cage) -> None:
    """M31: while the target has not taken it yet, somebody writes to one of the files, and makes another."""
    low.sh("mkdir papers; echo one > papers/one; echo two > papers/two")
    peer.sh("true")
    cgroup = runtime.cgroups()[peer.uuid]
    decided = len(runtime.events("decision"))
    with Changes(runtime.state / "audit") as changes:
        (cgroup / "cgroup.freeze").write_text("1")
        try:
            moving = low.popen("incage", "move", "papers", "--to", "peer", stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE)
            changes.until(lambda: len(runtime.events("decision")) >= decided + 2, "the second decision")
            low.sh("echo more >> papers/one; echo new > papers/new")
        finally:
            (cgroup / "cgroup.freeze").write_text("0")
        output, errors = moving.communicate(timeout=SECONDS)
    assert (moving.returncode, output) == (1, b"papers -> peer: Inbox/low/papers\n")
    assert errors == b'incage: "papers": kept here, because it has changed since it was read: papers/one\n'
    assert low.sh("cat papers/*") == "new\none\nmore\n"
    assert peer.sh("cat Inbox/low/papers/*") == "one\ntwo\n"
    peer.sh("rm -r Inbox")
    low.sh("rm -r papers")


# --- what a rule says of it --------------------------------------------------------------------------------------
def test_what_is_in_a_file_counts_and_not_its_name(runtime: Runtime, cage: MakeCage, peer: Cage) -> None:
    picky = cage("picky", "--level", "internal")
    picky.sh("printf '%%PDF-1.5\\n' > good.txt; echo text > bad.pdf; mkdir both few; cp good.txt few/a; cp *.* both; "
             "mkdir many; for i in 1 2 3 4; do cp good.txt many/$i; done")
    for good, name in (("good.txt", "good.txt"), ("few", "few")):
        ended = send(picky, "peer", good)
        assert (ended.returncode, ended.stdout.decode()) == (0, f"{good} -> peer: Inbox/picky/{name}\n"), ended.stderr
    for bad in ("bad.pdf", "both", "many"):
        ended = send(picky, "peer", bad)
        assert (ended.returncode, ended.stdout) == (126, b""), ended.stderr
    assert peer.sh("find Inbox -type f | sort") == "Inbox/picky/few/a\nInbox/picky/good.txt\n"
    assert os.listdir(runtime.state / "staging") == []
    peer.sh("rm -r Inbox")


def test_through_a_diode_nothing_comes_back(runtime: Runtime, cage: MakeCage, high: Cage) -> None:
    """Whether the target takes it or not, the source hears the same."""
    diode = cage("diode", "--level", "internal")
    diode.sh("echo one > one; mkdir tree; echo two > tree/two")
    high.sh("true")
    said = []
    with Changes(runtime.state / "audit") as changes:
        for blocked in (False, True):
            if blocked:
                high.sh("rm -rf Inbox; ln -s / Inbox")
            before = len(runtime.events("transfer"))
            said.append([send(diode, "high", what) for what in ("one", "tree")])
            recorded = 2 if blocked else 4
            changes.until(lambda least=before + recorded: len(runtime.events("transfer")) >= least, "the records")
            if not blocked:
                assert high.sh("cat Inbox/diode/one Inbox/diode/tree/two") == "one\ntwo\n"
    first, second = ([(ended.returncode, ended.stdout, ended.stderr) for ended in each] for each in said)
    assert first == second
    assert first[0] == (0, b"one -> high: Inbox/diode/\n", b"")
    moved = send(diode, "high", "one", verb="move")
    assert moved.returncode == 126
    high.sh("rm Inbox")


# --- what is cut off ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("program", ["cage-mediator", "caged", "cage-spawner"])
def test_a_tree_that_is_cut_off_while_it_is_delivered_is_there_or_not(
    runtime: Runtime, low: Cage, high: Cage, program: str
) -> None:
    low.sh(MANY)
    high.sh("true")
    decided = len(runtime.events("decision"))
    cgroup = runtime.cgroups()[high.uuid]
    with Changes(runtime.state / "audit") as changes:
        (cgroup / "cgroup.freeze").write_text("1")
        try:
            sending = low.popen("incage", "send", "many", "--to", "high", stdout=subprocess.PIPE,
                                stderr=subprocess.PIPE)
            changes.until(lambda: len(runtime.events("decision")) >= decided + 2, "the second decision")
            runtime.kill_and_wait(program)
        finally:
            (cgroup / "cgroup.freeze").write_text("0")
            if high.status["state"] == "paused":
                runtime.ok("resume", high.name)
        _, errors = sending.communicate(timeout=SECONDS)
    arrived = high.sh("ls Inbox/low 2>/dev/null; true")
    assert (sending.returncode, arrived) in [(0, "many\n"), (1, "")], errors
    assert os.listdir(runtime.state / "staging") == []
    high.sh("rm -rf Inbox")
    assert send(low, "high", "many").returncode == 0
    assert low.sh(f"cd many; {SUMS}") == high.sh(f"cd Inbox/low/many; {SUMS}")
    high.sh("rm -r Inbox")
    low.sh("rm -r many")


def test_a_delivery_half_killed_leaves_what_the_next_one_clears_away(runtime: Runtime, low: Cage, high: Cage) -> None:
    low.sh(MANY)
    mediator = runtime.process("cage-mediator")
    sending = low.popen("incage", "send", "many", "--to", "high", stderr=subprocess.PIPE)
    killed = False
    while sending.poll() is None and not killed:
        for pid in runtime.cage_processes(high.uuid):
            words = arguments_of(pid)
            if "--deliver" in words and list(Path(f"/proc/{pid}/fd").glob("*")):
                os.kill(pid, signal.SIGKILL)
                wait_gone(pid)
                killed = True
    _, errors = sending.communicate(timeout=SECONDS)
    assert killed, errors
    assert sending.returncode == 1
    assert high.sh("ls Inbox/low 2>/dev/null; true") == ""
    assert send(low, "high", "many").returncode == 0
    assert high.sh("ls -A Inbox/low") == "many\n"
    assert children_of(mediator) == []
    high.sh("rm -r Inbox")
    low.sh("rm -r many")
