# SPDX-License-Identifier: LGPL-2.1-or-later
"""kill -9 of each process of the core, at rest and in the middle of things: cages go on, nothing is half done."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cage_runtime.daemon.state import moment
from tests.privileged.conftest import MakeCage
from tests.privileged.runtime import PREFIX, SECONDS, USERS, Cage, Changes, Runtime, wait_gone, wait_readable
from tests.privileged.sample import NOTES, Sample

ECHO = 'while read line; do echo "$line"; done; exit 7'


@pytest.fixture(autouse=True)
def settled(runtime: Runtime) -> None:
    """A core that has just been started: what has ended often is started again less and less often."""
    runtime.restart()


@pytest.fixture(scope="module")
def standing(shared_cage: MakeCage) -> Cage:
    """A cage that has to survive all of this."""
    return shared_cage("standing", "--level", "internal")


def all_is_well(runtime: Runtime, standing: Cage) -> None:
    """Cages and audit chain are as they should be, and everything can be done."""
    assert standing.status["state"] == "running"
    assert standing.sh("echo alive") == "alive\n"
    assert runtime.cagectl("audit", "verify").returncode == 0
    listed = runtime.json("list")
    assert runtime.ranges().keys() == {cage["uuid"] for cage in listed}
    groups = set(runtime.cgroups())
    assert groups == {cage["uuid"] for cage in listed if cage["state"] in ("running", "paused")}
    assert {entry.name for entry in (runtime.run / "cages").iterdir()} == groups
    runtime.ok("create", "another")
    assert Cage(runtime, "another").sh("echo born") == "born\n"
    Cage(runtime, "another").destroy()


@contextmanager
def session(cage: Cage) -> Iterator[Callable[[bytes], bytes]]:
    """A command that runs in the cage; yields what says a word to it and hears it back, and ends it as it should."""
    with cage.popen("sh", "-c", ECHO, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        stdin, stdout = process.stdin, process.stdout
        assert stdin is not None
        assert stdout is not None

        def say(word: bytes) -> bytes:
            stdin.write(word + b"\n")
            stdin.flush()
            wait_readable(stdout.fileno(), "the session's answer")
            return stdout.readline().strip()

        assert say(b"begun") == b"begun"
        yield say
        stdin.close()
        assert process.wait(SECONDS) == 7


# --- at rest -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("program", USERS)
def test_cages_and_sessions_outlive_each_process(runtime: Runtime, standing: Cage, program: str) -> None:
    before = standing.status["uuid"], runtime.ranges()
    with session(standing) as say:
        runtime.kill_and_wait(program)
        assert say(b"still here") == b"still here"
    assert (standing.uuid, runtime.ranges()) == before
    all_is_well(runtime, standing)


def test_a_cage_runs_since_it_was_started(runtime: Runtime, standing: Cage) -> None:
    born = (runtime.run / "cages" / standing.uuid).stat().st_mtime
    assert standing.status["since"] == moment(born)
    for program in ("caged", "cage-spawner"):
        runtime.kill_and_wait(program)
        assert standing.status["since"] == moment(born)


def test_a_stop_whose_caged_is_killed_is_not_another_cage_s(runtime: Runtime, cage: MakeCage) -> None:
    stubborn, other = cage("stubborn"), cage("other")
    with (
        stubborn.popen("sh", "-c", "trap 'echo told' TERM; echo; while :; do sleep 1; done", stdout=subprocess.PIPE
                       ) as stays,
    ):
        assert stays.stdout is not None
        assert stays.stdout.readline() == b"\n"
        stopping = quietly(runtime, "stop", "stubborn")
        assert stays.stdout.readline() == b"told\n"
        runtime.kill_and_wait("caged")
        stopping.wait(SECONDS)
        assert runtime.ok("stop", "other") == "other: stopped\n"
        assert other.uuid not in runtime.cgroups()
    with Changes(runtime.state / "audit") as changes:
        changes.until(lambda: runtime.state_of("stubborn") == "stopped", "the end of what the first was asked for")


def test_a_paused_cage_is_adopted_as_paused(runtime: Runtime, cage: MakeCage) -> None:
    paused = cage("paused")
    runtime.ok("pause", "paused")
    for program in ("caged", "cage-spawner"):
        runtime.kill_and_wait(program)
        assert paused.status["state"] == "paused"
    runtime.ok("resume", "paused")
    assert paused.sh("echo resumed") == "resumed\n"


def test_all_of_the_core_is_killed_at_once(runtime: Runtime, standing: Cage, cage: MakeCage) -> None:
    stopped, forgetful = cage("stopped", "--no-start"), cage("forgetful", "--ephemeral")
    forgetful.sh("echo kept > Documents/note")
    assert runtime.supervisor is not None
    children = [runtime.process(program) for program in USERS]
    with session(standing) as say:
        runtime.supervisor.kill()
        runtime.supervisor.wait(SECONDS)
        for child in children:
            wait_gone(child)
        assert say(b"without a core") == b"without a core"
        runtime.start()
        assert say(b"with a new one") == b"with a new one"
    assert (stopped.status["state"], forgetful.status["state"]) == ("stopped", "running")
    assert forgetful.sh("cat Documents/note") == "kept\n"
    all_is_well(runtime, standing)


def test_a_cage_whose_first_process_ended_is_stopped(runtime: Runtime, cage: MakeCage) -> None:
    for program in (None, "caged", "cage-spawner"):
        orphan = cage(f"orphan-{program or 'none'}")
        init = min(runtime.cage_processes(orphan.uuid))
        if program is None:
            with Changes(runtime.run / "cages") as changes:
                os.kill(init, signal.SIGKILL)
                changes.until(lambda uuid=orphan.uuid: not (runtime.run / "cages" / uuid).exists(), "its end")
        else:
            with runtime.coming_back(program):
                runtime.kill(program)
                os.kill(init, signal.SIGKILL)
        with Changes(runtime.state / "audit") as changes:
            changes.until(lambda orphan=orphan: orphan.status["state"] == "stopped", "the news of its end")
        runtime.ok("start", orphan.name)
        assert orphan.sh("echo again") == "again\n"


# --- in the middle -----------------------------------------------------------------------------------------------
def quietly(runtime: Runtime, *words: str) -> subprocess.Popen[bytes]:
    """cagectl, whose words about what happens to it are another test's."""
    return runtime.popen(*words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def entries(directory: Path) -> set[str]:
    return set(os.listdir(directory))


@pytest.mark.parametrize("program", ["caged", "cage-spawner"])
@pytest.mark.parametrize("moment", ["state/storage", "state/cages", "run/cages", "run/gateways"])
def test_killed_while_a_cage_is_made(runtime: Runtime, standing: Cage, moment: str, program: str) -> None:
    """At the moment when its first trace is in `moment`: afterwards the cage is there as a whole, or not at all."""
    directory = runtime.top / moment
    before = entries(directory)
    with Changes(directory) as changes, quietly(runtime, "create", "unborn") as creating:
        changes.until(lambda: entries(directory) != before, moment)
        runtime.kill_and_wait(program)
        creating.wait(SECONDS)
    settle(runtime)
    if runtime.state_of("unborn") is not None:
        if runtime.state_of("unborn") == "stopped":
            runtime.ok("start", "unborn")
        assert Cage(runtime, "unborn").sh("echo whole") == "whole\n"
        Cage(runtime, "unborn").destroy()
    all_is_well(runtime, standing)


@pytest.mark.parametrize("program", ["caged", "cage-spawner"])
@pytest.mark.parametrize("moment", ["state/cages", "run/cages", "state/storage"])
def test_killed_while_a_cage_is_destroyed(runtime: Runtime, standing: Cage, moment: str, program: str) -> None:
    """What had begun is finished: a cage that is not listed any more leaves nothing."""
    runtime.ok("create", "doomed")
    Cage(runtime, "doomed").sh("for i in $(seq 200); do mkdir -p Documents/$i/x; echo > Documents/$i/x/y; done")
    directory = runtime.top / moment
    before = entries(directory)
    with Changes(directory) as changes, runtime.popen("destroy", "doomed", "--yes", stderr=subprocess.DEVNULL,
                       stdout=subprocess.DEVNULL) as destroying:
        changes.until(lambda: entries(directory) != before, moment)
        runtime.kill_and_wait(program)
        destroying.wait(SECONDS)
    settle(runtime)
    if runtime.state_of("doomed") is not None:
        Cage(runtime, "doomed").destroy()
    all_is_well(runtime, standing)


def settle(runtime: Runtime) -> None:
    """Until what was cut off has been finished: cages that are listed, and storage, are the same ones."""
    with Changes(runtime.storage, runtime.run / "cages") as changes:
        changes.until(lambda: runtime.ranges().keys() == {cage["uuid"] for cage in runtime.json("list")},
                      "the end of what was cut off")


def test_killed_while_a_command_starts(runtime: Runtime, standing: Cage) -> None:
    """A command either runs, and its status is its own, or the client is told; nothing hangs."""
    for program in ("caged", "cage-spawner"):
        with standing.popen("sh", "-c", "exit 9", stderr=subprocess.DEVNULL) as entering:
            runtime.kill_and_wait(program)
            assert entering.wait(SECONDS) in (9, 125)
    all_is_well(runtime, standing)


# --- applications ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("program", ["cage-apps", "caged", "cage-spawner"])
def test_killed_while_an_application_is_installed(
    runtime: Runtime, standing: Cage, sample: Sample, program: str
) -> None:
    if "sample" not in runtime.ok("app", "remotes"):
        key = f"--gpg-key={sample.directory}/key.gpg"
        runtime.ok("app", "remote-add", "sample", f"file://{sample.repository}", key)
    installation = runtime.state / "flatpak"
    with Changes(installation, *(path for path in installation.rglob("*") if path.is_dir())) as changes:
        seen = iter((False, True))
        with quietly(runtime, "app", "install", "standing", NOTES) as installing:
            changes.until(lambda: next(seen), "the beginning of the installation")
            runtime.kill_and_wait(program)
            installing.wait(SECONDS)
    runtime.ok("app", "install", "standing", NOTES)
    runtime.ok("run", "standing", NOTES, "--", "--write", "figures", "/home/user/Documents/figures.txt")
    assert standing.sh("cat Documents/figures.txt") == "figures\n"
    runtime.ok("app", "remove", "standing", NOTES)
    all_is_well(runtime, standing)


# --- at the start ------------------------------------------------------------------------------------------------
def test_what_is_half_made_is_cleared_at_the_start(runtime: Runtime, standing: Cage) -> None:
    """As a power cut leaves it: storage, registry, cradle and cgroup of cages that were coming or going."""
    beside = runtime.cgroups()[standing.uuid].parent
    runtime.stop()
    storage = [runtime.storage / f".new-{'d' * 32}", runtime.storage / f".gone-{'e' * 32}"]
    registry = [runtime.state / f"cages/.new-{'d' * 32}", runtime.run / f"caged/cages/.gone-{'e' * 32}"]
    # Each of a cage of its own: a teardown may have been cut off between any two of them.
    run = [runtime.run / f"cages/{'f' * 32}", runtime.run / f"gateways/{'0' * 32}", beside / ("1" * 32)]
    for directory in storage:
        (directory / "home/Documents").mkdir(parents=True)
        (directory / "range").write_text("28700")
    for directory in registry:
        directory.mkdir()
        (directory / "instance.json").touch()
        shutil.chown(directory, "caged")
    for directory in run:
        directory.mkdir()
    runtime.start()
    settle(runtime)
    assert [path for path in (*storage, *registry, *run) if path.exists()] == []
    all_is_well(runtime, standing)


def test_a_second_spawner_is_refused(runtime: Runtime, standing: Cage) -> None:
    ended = subprocess.run([PREFIX / "bin/cage-spawner", "--config", runtime.config], capture_output=True, text=True,
                           check=False, timeout=SECONDS, env=runtime.environment())
    assert ended.returncode == 125
    assert f"another cage-spawner runs with {runtime.run}; end it first" in ended.stderr
    all_is_well(runtime, standing)
