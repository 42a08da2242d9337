# SPDX-License-Identifier: LGPL-2.1-or-later
"""What is being sent, seen and cancelled from the cage that sends it: by whose it is, and by nobody else."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.privileged import rules
from tests.privileged.conftest import MakeCage
from tests.privileged.runtime import SECONDS, Cage, Changes, Runtime, arguments_of, wait_gone

LARGE = 96 << 20
CANCELLED = 'incage: "{}" was cancelled; nothing arrived\n'


@pytest.fixture(scope="module")
def low(shared_cage: MakeCage) -> Cage:
    cage = shared_cage("low", "--level", "internal")
    cage.sh(f"head -c {LARGE} /dev/zero > large; mkdir many; cp large many/one; echo two > many/two; echo 3 > small")
    return cage


@pytest.fixture(scope="module")
def high(shared_cage: MakeCage) -> Cage:
    return shared_cage("high", "--level", "secret")


def incage_of(runtime: Runtime, source: Cage) -> int:
    """The one that sends there."""
    (pid,) = (pid for pid in runtime.cage_processes(source.uuid)
              if any(word.endswith("/incage") for word in arguments_of(pid)[:4]) and "send" in arguments_of(pid))
    return pid


@contextmanager
def sending(runtime: Runtime, low: Cage, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    """While it is being read by the core, whose worker stands still."""
    mediator = runtime.process("cage-mediator")
    children = Path(f"/proc/{mediator}/task/{mediator}/children")
    with low.popen("incage", "send", *words, "--to", "high", stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        while not (workers := [int(word) for word in children.read_text().split()]):
            assert process.poll() is None
        os.kill(workers[0], signal.SIGSTOP)
        with ExitStack() as failed:
            failed.callback(process.kill)
            yield process
            failed.pop_all()
    wait_gone(workers[0])


def jobs(cage: Cage, *, root: bool = False) -> list[dict[str, object]]:
    ended = cage.enter("incage", "jobs", "--json=short", root=root)
    assert ended.returncode == 0, ended.stderr
    return list(json.loads(ended.stdout))


def nothing_is_left(runtime: Runtime, high: Cage) -> None:
    assert high.sh("find Inbox 2>/dev/null; true") == ""
    assert os.listdir(runtime.state / "staging") == []


@pytest.mark.parametrize("moving", [(), ("--move",)])
@pytest.mark.parametrize("what", ["large", "many"])
def test_ctrl_c_cancels_and_says_so(
    runtime: Runtime, low: Cage, high: Cage, what: str, moving: tuple[str, ...]
) -> None:
    """Of what was to be moved, too, all is still here."""
    recorded = len(runtime.events("transfer"))
    words = (*moving, what, "small")
    with rules.policy(runtime, "files.Move * low high allow\n"), sending(runtime, low, *words) as process:
        os.kill(incage_of(runtime, low), signal.SIGINT)
        output, errors = process.communicate(timeout=SECONDS)
    assert (process.returncode, output, errors.decode()) == (130, b"", CANCELLED.format(what))
    assert [event["outcome"] for event in runtime.events("transfer")[recorded:]] == ["cancelled; nothing arrived"]
    nothing_is_left(runtime, high)
    assert jobs(low) == []
    assert low.sh("ls large many small | tr '\\n' ' '") == "large small  many: one two "


def test_what_is_being_sent_is_listed_and_cancelled_by_whose_it_is(runtime: Runtime, low: Cage, high: Cage) -> None:
    """The user's other programs may; the root of the same cage sees none of it, and no other cage does."""
    with sending(runtime, low, "large") as process:
        (job,) = jobs(low)
        assert job["total"] in (0, LARGE)  # it may stand still before it has looked
        assert {**job, "job": 0, "done": 0, "total": 0} == {
            "job": 0, "state": "reading", "target": "high", "name": "large", "done": 0, "total": 0}
        number = str(job["job"])
        gone = f"incage: there is no job {number} that is under way\n".encode()
        for cage, root in ((low, True), (high, False)):
            assert jobs(cage, root=root) == []
            refused = cage.enter("incage", "cancel", number, root=root)
            assert (refused.returncode, refused.stderr) == (1, gone)
        assert process.poll() is None
        cancelled = low.enter("incage", "cancel", number)
        assert (cancelled.returncode, cancelled.stdout) == (0, f"{number}: cancelled, nothing arrived\n".encode())
        _, errors = process.communicate(timeout=SECONDS)
    assert (process.returncode, errors.decode()) == (1, CANCELLED.format("large"))
    again = low.enter("incage", "cancel", number)
    assert (again.returncode, again.stderr) == (1, gone)
    nothing_is_left(runtime, high)


def test_the_cage_s_bus_gives_out_no_more_than_the_job(runtime: Runtime, low: Cage, high: Cage) -> None:
    """As busctl sees it; nobody can make the half say anything else."""
    with sending(runtime, low, "large") as process:
        path = f"/org/cageruntime/Files1/jobs/{jobs(low)[0]['job']}"
        script = """
import sys
sys.path[:0] = ["/opt/cage-runtime/lib"]
from cage_runtime.sdbus import BusError, Connection
bus, path = Connection(), sys.argv[1]
name, job, properties = "org.cageruntime.Files1", "org.cageruntime.Files1.Job", "org.freedesktop.DBus.Properties"
print(bus.call(name, path, properties, "Get", "ss", (job, "State"), returns="v")[0])
for interface, member, signature, values in (
        (properties, "Set", "ssv", (job, "State", "x")), ("org.freedesktop.DBus.Introspectable", "Introspect", "", ()),
        ("org.freedesktop.DBus.Peer", "GetMachineId", "", ()), (job, "Wait", "", ())):
    try:
        bus.call(name, path, interface, member, signature, values, timeout=20)
        print("answered")
    except BusError as error:
        print(error.name.rpartition(".")[2])
"""
        said = low.enter("/usr/bin/python3", "-IS", "-c", script, path)
        assert said.stdout.decode().split() == ["reading", *["AccessDenied"] * 4], said.stderr
        low.enter("incage", "cancel", path.rpartition("/")[2])
        process.communicate(timeout=SECONDS)
    nothing_is_left(runtime, high)


def test_progress_is_shown_where_it_is_wanted_and_the_line_is_empty_again(low: Cage, high: Cage) -> None:
    for what in ("large", "many"):
        ended = low.enter("incage", "send", "--progress", what, "--to", "high")
        assert ended.returncode == 0, ended.stderr
        shown = ended.stderr.decode()
        assert shown == "" or (f"{what} -> high: " in shown and shown.endswith("\r\x1b[K"))
        assert low.enter("incage", "send", what, "--to", "high").stderr == b""
    high.sh("rm -r Inbox")


def test_a_half_that_is_killed_takes_what_it_sends_with_it(runtime: Runtime, low: Cage, high: Cage) -> None:
    """The core sees the pipes end; whoever sends cannot know, and does not send it again by itself."""
    with Changes(runtime.state / "audit") as changes:
        recorded = len(runtime.events("transfer"))
        with sending(runtime, low, "large") as process:
            (half,) = (pid for pid in runtime.cage_processes(low.uuid) if arguments_of(pid)[-2:] == ["files", "--cage"])
            os.kill(half, signal.SIGKILL)
            _, errors = process.communicate(timeout=SECONDS)
            changes.until(lambda: len(runtime.events("transfer")) > recorded, "its record")
    assert process.returncode == 1
    assert b"it is not known whether it arrived" in errors
    assert [event["outcome"] for event in runtime.events("transfer")[recorded:]] == [
        "given up, because whoever sent it has gone; nothing arrived"]
    nothing_is_left(runtime, high)


MOMENTS = [("decision", 1), ("decision", 2), ("transfer", 1), ("transfer", 2)]
"""Of one transfer: it is decided, confirmed, about to be given its name, and has arrived."""


@pytest.mark.parametrize("moment", MOMENTS, ids=lambda moment: f"{moment[0]}-{moment[1]}")
def test_killed_at_any_moment_there_is_one_copy_or_it_is_said_that_nobody_knows(
    runtime: Runtime, low: Cage, high: Cage, moment: tuple[str, int]
) -> None:
    kind, number = moment
    before = len(runtime.events(kind))
    with Changes(runtime.state / "audit") as changes:
        process = low.popen("incage", "send", "small", "--to", "high", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        changes.until(lambda: len(runtime.events(kind)) >= before + number, f"{kind} {number}")
        runtime.kill_and_wait("cage-mediator")
    output, errors = process.communicate(timeout=SECONDS)
    copies = high.sh("ls Inbox/low 2>/dev/null; true").split("\n")[:-1]
    if process.returncode == 0:
        assert (output, errors, copies) == (b"small -> high: Inbox/low/\n", b"", ["small"])
    else:
        assert (process.returncode, output) == (1, b"")
        assert b"it is not known whether it arrived" in errors
        assert copies in ([], ["small"])
    high.sh("rm -rf Inbox")
