# SPDX-License-Identifier: LGPL-2.1-or-later
"""incage log from real cages: whose line it is, where it goes, and what a rule lets through.

This core is no systemd's and this host may have no journal: where none is, the lines are in the core's own log.  What a
journal is told is in tests/bus/mediators/test_log.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.privileged.conftest import MakeCage
from tests.privileged.rules import policy
from tests.privileged.runtime import Cage, Ended, Runtime

RULES = """log.Write * muted * deny
log.Write * bounded @core allow max-size=8
log.Write * * @core allow
"""


@pytest.fixture(scope="module", autouse=True)
def rules(runtime: Runtime) -> Iterator[None]:
    with policy(runtime, RULES):
        yield


@pytest.fixture(scope="module")
def work(shared_cage: MakeCage) -> Cage:
    return shared_cage("work")


def log(cage: Cage, *words: str, lines: bytes | None = None) -> Ended:
    return cage.enter("incage", "log", *words, input=lines)


def events(runtime: Runtime, kind: str) -> list[dict[str, Any]]:
    return [fields for fields in runtime.events(kind) if fields.get("mediator") == "log"]


@pytest.fixture
def told(runtime: Runtime) -> Any:
    """The lines that the core has from cages since the test began."""
    if Path("/run/systemd/journal/socket").exists():
        pytest.fail("this host has a journal, so the core's own log has no lines of cages; run in a container")
    before = len(runtime.log())

    def lines() -> list[str]:
        return [line.partition("the cage ")[2] for line in runtime.log()[before:].splitlines() if "log.core" in line]

    return lines


def test_a_line_is_the_cage_s_whatever_it_says(runtime: Runtime, work: Cage, told: Any) -> None:
    assert log(work, "--tag", "backup", "it", "is\ndone: the cage vault: x\x1b[2J").returncode == 0
    assert told() == ["work: backup: it is\\ndone: the cage vault: x\\x1b[2J"]
    assert events(runtime, "transfer")[-1]["outcome"] == "1 of 1 lines are written"
    decisions = events(runtime, "decision")[-2:]
    assert {(event["cage"], event["target"], event["decision"]) for event in decisions} == {("work", "@core", "allow")}


def test_lines_are_read_to_their_end_and_keep_their_order(work: Cage, told: Any) -> None:
    lines = [f"line {number}" for number in range(100)] + ["x" * 2500, "\\", "last"]
    assert log(work, lines="\n".join(lines).encode() + b"\xff\0").returncode == 0
    assert told() == [f"work: line {number}" for number in range(100)] + [
        f"work: {'x' * 2000}", f"work: {'x' * 500}", "work: \\\\", "work: last\\\\xff\\\\0"]


def test_lines_of_long_characters_are_no_more_than_a_message_has(work: Cage, told: Any) -> None:
    """Each has four bytes, and the bus of a cage ends a connection for a message of more than 32 KiB."""
    assert log(work, lines=("\U00010348" * 1500 + "\n").encode() * 20).returncode == 0
    assert len(told()) == 20


def test_what_is_too_much_at_once_is_told_as_that(work: Cage) -> None:
    ended = work.enter("incage", "notify", "much", "x" * 40_000)
    assert (ended.returncode, ended.stdout) == (2, b"")
    assert ended.stderr.startswith(b"incage: all that is given to Show has 40"), ended.stderr


def test_a_cage_has_no_log_of_its_own(work: Cage, told: Any) -> None:
    """As incage(1) says: what programs say by syslog(3) goes nowhere."""
    assert work.enter("ls", "/dev/log", "/run/systemd/journal", "/dev/kmsg").stdout == b""
    said = work.enter("/usr/bin/python3", "-c", "import syslog; syslog.syslog('said')")
    assert (said.returncode, said.stderr, told()) == (0, b"", [])


def test_nothing_to_read_is_nothing_to_write(work: Cage, told: Any) -> None:
    assert log(work, lines=b"").returncode == 0
    assert told() == []


def test_root_of_the_cage_is_the_cage_too(work: Cage, told: Any) -> None:
    assert work.enter("incage", "log", "x", root=True).returncode == 0
    assert told() == ["work: x"]


def test_a_cage_that_no_rule_lets_writes_nothing(runtime: Runtime, cage: MakeCage, told: Any) -> None:
    ended = log(cage("muted"), "x")
    assert (ended.returncode, told()) == (126, [])
    assert ended.stderr.startswith(b"incage: ")
    assert events(runtime, "decision")[-1]["decision"] == "deny"


def test_a_rule_s_bound_holds(cage: MakeCage, told: Any) -> None:
    bounded = cage("bounded")
    assert log(bounded, "12345678").returncode == 0
    assert log(bounded, "123456789").returncode == 126
    assert told() == ["bounded: 12345678"]


@pytest.mark.parametrize("words", [("--priority", "emerg", "x"), ("--tag", "a b", "x"), ("--tag", "", "x")])
def test_what_no_cage_may_say_is_refused_in_the_cage(runtime: Runtime, work: Cage, told: Any,
                                                     words: tuple[str, ...]) -> None:
    before = len(events(runtime, "malformed"))
    ended = log(work, *words)
    assert (ended.returncode, told()) == (2, [])
    assert len(events(runtime, "malformed")) == before
