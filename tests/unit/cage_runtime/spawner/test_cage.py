# SPDX-License-Identifier: LGPL-2.1-or-later
"""A cage's end of the spawner, without a cage: nothing that its cage-init does or leaves keeps the spawner waiting."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cage_runtime.errors import RuntimeFailure
from cage_runtime.spawner import cage as module
from cage_runtime.spawner.birth import Cradle
from cage_runtime.spawner.cage import Cage
from cage_runtime.spawner.cgroup import Cgroup
from cage_runtime.spawner.loop import Loop
from cage_runtime.spawner.spec import Logs

UUID = "a" * 32


@pytest.fixture
def cradle(tmp_path: Path) -> Cradle:
    cradle = Cradle(directory=tmp_path / "cradle", gateway=tmp_path / "gateway")
    cradle.directory.mkdir()
    return cradle


@pytest.fixture
def init(cradle: Cradle) -> Iterator[socket.socket]:
    """The socket on which a cage-init listens that has stood still while spawners came and went."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(cradle.socket)
        listener.listen(1)
        while True:
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK) as spawner:
                try:
                    spawner.connect(cradle.socket)
                except BlockingIOError:
                    break
        yield listener


def test_a_cage_init_that_takes_no_connection_is_reached_when_it_does(
    cradle: Cradle, init: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RECONNECT_SECONDS", 0.01)
    loop = Loop()
    cage = Cage(UUID, loop, cradle, Cgroup(tmp_path / "cgroup"), lambda _cage: None)
    request = Logs(id=7, uuid=UUID)
    cage.adopt()
    with pytest.raises(RuntimeFailure, match="the cage does not answer"):
        cage.ask(request, [], lambda _reply: None)
    monkeypatch.setattr(cage, "_hear", lambda: None)

    def ended_spawners_then_us() -> None:
        connection, _ = init.accept()

        def hear() -> None:
            loop.forget(connection.fileno())
            with connection:
                loop.running = not connection.recv(4096)

        loop.watch(connection.fileno(), hear)

    def ask_again() -> None:
        try:
            cage.ask(request, [], lambda _reply: None)
        except RuntimeFailure:
            loop.after(0.01, ask_again)

    loop.watch(init.fileno(), ended_spawners_then_us)
    ask_again()
    loop.run()
    assert not cage.ending


def test_a_teardown_that_the_host_has_no_room_for_is_tried_again(
    cradle: Cradle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RETRY_SECONDS", 0.01)
    loop, refusals = Loop(), [OSError(24, "Too many open files"), OSError(39, "Directory not empty")]

    def remove(_cradle: Cradle) -> None:
        if refusals:
            raise refusals.pop()

    monkeypatch.setattr(module, "remove_cradle", remove)
    cage = Cage(UUID, loop, cradle, Cgroup(tmp_path / "cgroup"), lambda _cage: setattr(loop, "running", False))
    cage.end()
    assert loop.running
    loop.run()
    assert refusals == []


def test_what_caged_could_put_beside_its_sockets_keeps_no_cage_from_going(cradle: Cradle, tmp_path: Path) -> None:
    """A tree deeper than Python's recursion goes; nothing that a link in it leads to."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/kept").touch()
    cradle.gateway.mkdir()
    (cradle.gateway / "link").symlink_to(tmp_path / "elsewhere")
    before = os.open(".", os.O_PATH | os.O_DIRECTORY)
    os.chdir(cradle.gateway)
    try:
        for _ in range(2 * sys.getrecursionlimit()):
            os.mkdir("d")
            os.chdir("d")
    finally:
        os.fchdir(before)
        os.close(before)
    loop = Loop()
    cage = Cage(UUID, loop, cradle, Cgroup(tmp_path / "cgroup"), lambda _cage: setattr(loop, "running", False))
    cage.end()
    assert not loop.running
    assert [entry.name for entry in tmp_path.iterdir()] == ["elsewhere"]
    assert (tmp_path / "elsewhere/kept").exists()


def test_a_step_that_was_to_be_tried_again_leaves_the_next_life_alone(
    cradle: Cradle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RETRY_SECONDS", 0.0)
    removed: list[Cradle] = []
    monkeypatch.setattr(module, "remove_cradle", removed.append)
    loop = Loop()
    cage = Cage(UUID, loop, cradle, Cgroup(tmp_path / "cgroup"), lambda _cage: None)
    cage.end()
    for step in (cage._kill, cage._remove):
        loop.after(0.0, step)
    loop.after(0.0, lambda: setattr(loop, "running", False))
    loop.run()
    assert removed == [cradle]


def test_a_cage_init_that_is_gone_is_told_at_once(cradle: Cradle, tmp_path: Path) -> None:
    cage = Cage(UUID, Loop(), cradle, Cgroup(tmp_path / "cgroup"), lambda _cage: None)
    with pytest.raises(FileNotFoundError):
        cage.adopt()
