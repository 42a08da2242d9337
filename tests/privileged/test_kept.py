# SPDX-License-Identifier: LGPL-2.1-or-later
"""What was accepted of one cage for another, where nothing comes back: it arrives, once, whatever ends meanwhile."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from cage_runtime.model import KEPT_PER_CAGE
from tests.privileged import rules
from tests.privileged.conftest import MakeCage
from tests.privileged.runtime import SECONDS, Cage, Changes, Ended, Runtime
from tests.privileged.test_asking import prompts
from tests.privileged.test_transfer import stopped

RULES = """files.Send * diode high allow direction=one-way
files.Send * diode passing allow direction=one-way
files.Send * passing high allow direction=one-way
"""
ACCEPTED = b"f -> high: Inbox/diode/\n"
KILLED = ["cage-mediator", "caged", "cage-spawner"]


@pytest.fixture(autouse=True, scope="module")
def policy(runtime: Runtime) -> Iterator[None]:
    with rules.policy(runtime, RULES):
        yield


@pytest.fixture(scope="module")
def diode(shared_cage: MakeCage) -> Cage:
    made = shared_cage("diode", "--level", "internal")
    made.sh("echo figures > f; mkdir -p papers/sub; echo one > papers/one; echo two > papers/sub/two")
    return made


@pytest.fixture
def high(cage: MakeCage) -> Cage:
    return cage("high", "--level", "secret")


def send(source: Cage, name: str = "f", target: str = "high") -> Ended:
    return source.enter("incage", "send", name, "--to", target)


def inbox(target: Cage) -> list[str]:
    """Without the marks, which are hidden."""
    return target.sh("cd Inbox/diode 2>/dev/null && find . -type f ! -name '*.given' | sort; true").splitlines()


def of_staging(runtime: Runtime) -> list[str]:
    return sorted(Path(entry).suffix for entry in os.listdir(runtime.state / "staging"))


class Outcomes:
    """What is recorded of transfers, from now on."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime, self._before = runtime, len(runtime.events("transfer"))

    def all(self) -> list[str]:
        return [str(event["outcome"]) for event in self._runtime.events("transfer")[self._before :]]

    def until(self, *starts: str) -> str:
        """The first that begins with one of these, once it is there."""
        found: list[str] = []
        with Changes(self._runtime.state / "audit") as changes:
            changes.until(lambda: found.extend(said for said in self.all() if said.startswith(starts)) or bool(found),
                          f"{starts} in {self.all()}")
        return found[0]


def nothing_is_kept(runtime: Runtime) -> None:
    with Changes(runtime.state / "staging") as changes:
        changes.until(lambda: of_staging(runtime) == [], "an empty folder")


@pytest.mark.parametrize(("name", "arrived"), [("f", ["./f"]), ("papers", ["./papers/one", "./papers/sub/two"])])
def test_a_target_that_does_not_run_gets_it_when_it_does(
    runtime: Runtime, diode: Cage, high: Cage, name: str, arrived: list[str]
) -> None:
    outcomes = Outcomes(runtime)
    runtime.ok("stop", "high")
    ended = send(diode, name)
    assert (ended.returncode, ended.stdout.decode()) == (0, f"{name} -> high: Inbox/diode/\n"), ended.stderr
    assert outcomes.until("waits") == "waits, because one of the two does not run"
    assert of_staging(runtime) == [".copy", ".kept"]
    runtime.ok("start", "high")
    assert outcomes.until("arrived") == f"arrived as Inbox/diode/{name}"
    assert inbox(high) == arrived
    assert runtime.events("transfer")[-1]["resumed"] == "yes"
    nothing_is_kept(runtime)


@pytest.mark.parametrize("program", KILLED)
def test_what_is_cut_off_while_it_is_delivered_arrives_once(
    runtime: Runtime, diode: Cage, high: Cage, program: str
) -> None:
    outcomes = Outcomes(runtime)
    high.sh("true")
    with stopped(runtime, high):
        assert send(diode).stdout == ACCEPTED
        assert of_staging(runtime) == [".copy", ".kept"]
        runtime.kill_and_wait(program)
    assert outcomes.until("arrived", "had arrived", "given up", '"f" did not') in (
        "arrived as Inbox/diode/f", "had arrived already")
    assert inbox(high) == ["./f"]
    nothing_is_kept(runtime)


@pytest.mark.parametrize("program", KILLED)
def test_what_waits_outlives_whoever_is_killed(runtime: Runtime, diode: Cage, high: Cage, program: str) -> None:
    outcomes = Outcomes(runtime)
    runtime.ok("stop", "high")
    assert send(diode).stdout == ACCEPTED
    outcomes.until("waits")
    runtime.kill_and_wait(program)
    runtime.ok("start", "high")
    outcomes.until("arrived")
    assert inbox(high) == ["./f"]
    nothing_is_kept(runtime)


def test_where_a_rule_asks_somebody_is_asked_again(runtime: Runtime, cage: MakeCage, high: Cage) -> None:
    """Once for each time that it can be delivered, and not whenever its source starts."""
    passing, outcomes = cage("passing", "--level", "internal"), Outcomes(runtime)
    passing.sh("echo figures > f")
    with rules.policy(runtime, "files.Send * passing high ask direction=one-way\n"):
        runtime.ok("stop", "high")
        with passing.popen("incage", "send", "f", "--to", "high", stdout=subprocess.PIPE) as sending:
            rules.until(lambda: prompts(runtime), "nobody is asked")
            runtime.ok("prompts", "answer", prompts(runtime)[0]["id"], "allow")
            assert sending.communicate(timeout=SECONDS)[0] == b"f -> high: Inbox/passing/\n"
        outcomes.until("waits")
        for word in ("stop", "start"):
            runtime.ok(word, "passing")
        assert prompts(runtime) == []
        runtime.ok("start", "high")
        rules.until(lambda: prompts(runtime), "nobody is asked again")
        (prompt,) = prompts(runtime)
        assert (prompt["source"], prompt["target"], prompt["lines"]) == ("passing", "high", ["f"])
        assert prompt["types"] == ["text/plain"]
        assert "arrived" not in "".join(outcomes.all())
        runtime.ok("prompts", "answer", prompt["id"], "allow")
        outcomes.until("arrived")
    assert high.sh("cat Inbox/passing/f") == "figures\n"
    nothing_is_kept(runtime)


def test_a_core_that_ends_and_comes_back_with_its_cages_stopped(runtime: Runtime, cage: MakeCage, high: Cage) -> None:
    """As after the machine's end: neither of the two runs, until both do."""
    passing, outcomes = cage("passing", "--level", "internal"), Outcomes(runtime)
    passing.sh("echo figures > f")
    runtime.ok("stop", "high")
    assert send(passing).returncode == 0
    outcomes.until("waits")
    runtime.ok("stop", "passing")
    runtime.restart()
    runtime.ok("start", "high")
    assert "arrived" not in "".join(outcomes.all())
    runtime.ok("start", "passing")
    assert outcomes.until("arrived") == "arrived as Inbox/passing/f"
    assert high.sh("cat Inbox/passing/f") == "figures\n"
    nothing_is_kept(runtime)


@pytest.mark.parametrize("gone", ["high", "passing"])
def test_nothing_stays_of_it_where_one_of_the_two_is_destroyed(
    runtime: Runtime, cage: MakeCage, high: Cage, gone: str
) -> None:
    passing, outcomes = cage("passing", "--level", "internal"), Outcomes(runtime)
    passing.sh("echo figures > f")
    runtime.ok("stop", "high")
    assert send(passing).returncode == 0
    outcomes.until("waits")
    runtime.ok("destroy", gone, "--yes")
    assert outcomes.until({"high": 'files.Send to "high" is refused', "passing": "the cage that asks is gone"}[gone])
    nothing_is_kept(runtime)
    runtime.ok("create", gone, "--level", "secret")
    if gone == "passing":
        runtime.ok("start", "high")
    assert high.sh("find Inbox 2>/dev/null; true") == "", "another cage of that name is another cage"


def test_a_cage_fills_its_own_share_and_nobody_elses(runtime: Runtime, cage: MakeCage, diode: Cage, high: Cage) -> None:
    """Attack D: accepted transfers for a cage that does not run, as many as can be."""
    other = cage("passing", "--level", "internal")
    other.sh("echo figures > f")
    runtime.ok("stop", "high")
    ended = diode.enter("incage", "send", *["f"] * (KEPT_PER_CAGE + 2), "--to", "high")
    assert ended.returncode == 1
    assert ended.stdout.count(ACCEPTED) == KEPT_PER_CAGE
    assert len(ended.stderr.splitlines()) == 2
    assert of_staging(runtime).count(".kept") == KEPT_PER_CAGE
    assert send(other).returncode == 0, "what another one sends is counted apart"
    runtime.ok("start", "high")
    with Changes(runtime.state / "staging") as changes:
        changes.until(lambda: of_staging(runtime) == [], "all of them")
    assert len(inbox(high)) == KEPT_PER_CAGE
    assert high.sh("cat Inbox/passing/f") == "figures\n"


def test_a_record_that_somebody_has_damaged_is_set_aside(runtime: Runtime, diode: Cage, high: Cage) -> None:
    outcomes = Outcomes(runtime)
    runtime.ok("stop", "high")
    assert send(diode).stdout == ACCEPTED
    outcomes.until("waits")
    (record,) = (runtime.state / "staging").glob("*.kept")
    record.write_bytes(b"{}")
    runtime.kill_and_wait("cage-mediator")
    assert outcomes.until("not resumed").startswith("not resumed, and set aside: ")
    assert runtime.events("transfer")[-1]["record"] == record.name
    aside = list((runtime.state / "staging").iterdir())
    assert sorted(path.name[:6] + path.suffix for path in aside) == ["aside-.copy", "aside-.kept"]
    for path in aside:
        path.unlink()
    runtime.ok("start", "high")
    assert inbox(high) == []
