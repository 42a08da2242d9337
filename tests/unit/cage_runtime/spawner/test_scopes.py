# SPDX-License-Identifier: LGPL-2.1-or-later
"""The spawner's end of cage-scopes, with a program in its place that does as each test wants it to."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cage_runtime.errors import CageError, HostUnsupported, RuntimeFailure
from cage_runtime.spawner import scopes as module
from cage_runtime.spawner.loop import Loop
from cage_runtime.spawner.scopes import Scopes

PROGRAM = """#!{python} -I
import json, os, socket, sys
spawner = socket.socket(fileno=3)
while message := spawner.recv(4096):
    asked = json.loads(message)
    {answer}
"""
ANSWERS = {
    "opens": 'spawner.send(json.dumps({"op": "opened", "number": asked["number"], "seed": os.getpid()}).encode())',
    "refuses": 'spawner.send(json.dumps({"op": "opened", "number": asked["number"], "fault": "masked"}).encode())',
    "ends": "sys.exit(3)",
    "babbles": 'spawner.send(b"{}")',
    "is silent": "pass",
    "warns": """spawner.send(b'{"op": "leaving", "unit": "cage-work.scope"}')""",
}


class Client:
    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.loop = Loop()
        self.leaving: list[str] = []
        self.told: list[int | CageError] = []
        self.scopes = Scopes(self.loop, (str(directory / "program"),), self._leaving)

    def _leaving(self, unit: str) -> None:
        self.leaving.append(unit)
        self.loop.running = False

    def program(self, answer: str) -> None:
        file = self.directory / "program"
        file.write_text(PROGRAM.format(python=sys.executable, answer=ANSWERS[answer]))
        file.chmod(0o755)

    def _told(self, outcome: int | CageError) -> None:
        self.told.append(outcome)
        self.loop.running = False

    def open(self) -> int | CageError:
        """What comes of one request."""
        self.scopes.open("work", "", self._told)
        self.loop.running = True
        self.loop.run()
        return self.told.pop()


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    client = Client(tmp_path)
    yield client
    client.scopes.end()


def test_the_seed_is_told(client: Client) -> None:
    client.program("opens")
    first, second = client.open(), client.open()
    assert isinstance(first, int)
    assert first == second, "one process serves all"


def test_a_refusal_is_told(client: Client) -> None:
    client.program("refuses")
    outcome = client.open()
    assert isinstance(outcome, HostUnsupported)
    assert outcome.sentence == "masked"


@pytest.mark.parametrize("answer", ["ends", "babbles"])
def test_one_that_fails_fails_what_it_was_asked_and_the_next_request_has_another(client: Client, answer: str) -> None:
    client.program(answer)
    assert isinstance(client.open(), RuntimeFailure)
    client.program("opens")
    assert isinstance(client.open(), int)


def test_a_program_that_is_not_there_is_a_sentence(client: Client) -> None:
    outcome = client.open()
    assert isinstance(outcome, RuntimeFailure)
    assert outcome.sentence == "cage-scopes cannot be asked for a scope: No such file or directory"


def test_a_systemd_that_does_not_answer_is_given_up(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "OPEN_SECONDS", 0.1)
    client.program("is silent")
    outcome = client.open()
    assert isinstance(outcome, HostUnsupported)
    assert "no scope within" in outcome.sentence


def test_an_end_that_systemd_announces_is_passed_on(client: Client) -> None:
    client.program("warns")
    client.scopes.open("work", "", lambda _outcome: None)
    client.loop.run()
    assert client.leaving == ["cage-work.scope"]


def test_what_nobody_is_there_for_starts_nobody(client: Client) -> None:
    calls: list[Callable[[], None]] = [lambda: client.scopes.close(1), lambda: client.scopes.register("a", "b" * 32, 2),
                                        lambda: client.scopes.unregister("a", "b" * 32)]
    for call in calls:
        call()  # the program does not exist
    assert client.told == []
