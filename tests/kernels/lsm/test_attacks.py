# SPDX-License-Identifier: LGPL-2.1-or-later
"""The attacks that one cage can try alone, in a cage with a context: it holds what nothing else does on this host."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.attacks.bundle import bundle
from tests.attacks.host import marked
from tests.attacks.known import KNOWN, WITHOUT_CONTEXTS
from tests.attacks.probe.kernel import HELD, THROUGH, Answer

SECONDS = 900
"""After which something hangs: the guest is emulated."""
IN_CAGE = ("cagectl", "enter", "attacked", "--")
PROBE = "/tmp/probe.pyz"


@pytest.fixture(scope="module")
def core() -> Iterator[None]:
    """A system bus, and caged --standalone on it."""
    Path("/run/dbus").mkdir(exist_ok=True)
    read, write = os.pipe()
    with (
        subprocess.Popen(["dbus-daemon", "--system", "--nofork", "--nopidfile", "--print-address"],
                         stdout=subprocess.PIPE) as bus,
        Path("/task/results/attacked.log").open("wb") as log,
    ):
        assert bus.stdout is not None
        assert bus.stdout.readline()
        command = ["caged", "--standalone", "--ready-fd", str(write)]
        with subprocess.Popen(command, pass_fds=(write,), stderr=log) as caged:
            os.close(write)
            assert os.read(read, 16) == b"ready\n", Path("/task/results/attacked.log").read_text()
            yield
            caged.terminate()
        bus.terminate()
    os.close(read)


def ok(*command: str) -> None:
    ended = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert ended.returncode == 0, ended


@pytest.fixture(scope="module")
def answers(core: None) -> Iterator[dict[tuple[int, str], Answer]]:
    del core
    ok("cagectl", "create", "attacked", "--require", "lsm")
    subprocess.run([*IN_CAGE, "sh", "-c", f"cat > {PROBE}"], input=bundle(), check=True, timeout=SECONDS)
    with marked() as found:
        ended = subprocess.run([*IN_CAGE, "/usr/bin/python3", "-IS", PROBE, "try", json.dumps(found.alone)],
                               capture_output=True, text=True, timeout=SECONDS, check=False)
    assert ended.returncode == 0, ended.stderr
    said = [Answer(**json.loads(line)) for line in ended.stdout.splitlines()]
    yield {(answer.attack, answer.attempt): answer for answer in said}
    ok("cagectl", "destroy", "attacked", "--yes")


def test_nothing_gets_through_but_what_no_cage_can_hold(answers: dict[tuple[int, str], Answer]) -> None:
    through = {key: answer.reason for key, answer in answers.items() if answer.outcome == THROUGH}
    assert {key: reason for key, reason in through.items() if key not in KNOWN} == {}


@pytest.mark.parametrize("row", WITHOUT_CONTEXTS, ids=lambda row: f"{row[0]}: {row[1]}")
def test_what_gets_through_without_a_context_is_held(
    answers: dict[tuple[int, str], Answer], row: tuple[int, str]
) -> None:
    assert answers[row].outcome == HELD, answers[row]
