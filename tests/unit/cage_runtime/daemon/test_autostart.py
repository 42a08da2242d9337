# SPDX-License-Identifier: LGPL-2.1-or-later
"""Enabled cages are started with the host: each once a boot, whatever is killed, and none at others' cost."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest

from cage_runtime.config import Definition, Session
from cage_runtime.daemon.autostart import AT_ONCE, ATTEMPTS_MAX, Autostart
from cage_runtime.daemon.cage import Cage
from cage_runtime.daemon.manager import Manager
from cage_runtime.daemon.state import Record, now
from cage_runtime.errors import CageError, NoSuchCage, RuntimeFailure, SpawnerUnavailable, WrongState
from cage_runtime.model import CageState


class Killed(BaseException):
    """Ends caged at once, as SIGKILL does."""


class World:
    """A host with cages, of which a fake manager starts those it is told to; each `caged` is one life of caged."""

    def __init__(self, directory: Path) -> None:
        self.file, self.boot_id = directory / "autostart.json", directory / "boot_id"
        self.boot_id.write_text("first\n")
        self.known: dict[str, Cage] = {}
        self.starts: list[str] = []
        self.recorded: list[tuple[str, str, str]] = []
        self.faults: dict[str, list[BaseException]] = {}
        self.on_start: Callable[[str], object] = lambda _name: None
        self.full = False
        self.at_once = self.most_at_once = 0

    def add(self, name: str, *, autostart: bool = True, ephemeral: bool = False) -> Cage:
        session = Session(autostart=autostart, ephemeral=ephemeral)
        record = Record(name=name, uuid=f"uuid-{name}", created=now(), owner=0, definition=Definition(session=session))
        self.known[name] = Cage(record=record, label=None)
        return self.known[name]

    def caged(self) -> Autostart:
        autostart = Autostart(cast(Manager, self), self.file, self.boot_id)
        autostart.begin()
        return autostart

    def life(self) -> list[str]:
        """One caged from its start on until nothing is to be started any more, or it is killed; what it started."""
        self.starts = []
        with contextlib.suppress(Killed):
            asyncio.run(self.caged().run())
        return self.starts

    def reboot(self) -> None:
        self.boot_id.write_text("second\n")
        for cage in self.known.values():
            cage.state = CageState.STOPPED

    # --- what the manager has --------------------------------------------------------------------------------
    def cages(self) -> list[Cage]:
        return list(self.known.values())

    def by_uuid(self, uuid: str) -> Cage | None:
        return next((cage for cage in self.known.values() if cage.uuid == uuid), None)

    async def start(self, cage: Cage) -> None:
        self.starts.append(cage.name)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        for _ in range(5):
            await asyncio.sleep(0)
        self.at_once -= 1
        self.on_start(cage.name)
        if self.faults.get(cage.name):
            raise self.faults[cage.name].pop(0)
        cage.state = CageState.RUNNING

    def record(self, kind: str, cage: Cage, fields: dict[str, str]) -> None:
        if self.full:
            raise RuntimeFailure("the chain takes nothing")
        self.recorded.append((str(kind), cage.name, fields["why"]))


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_enabled_cages_are_started_and_no_others(world: World) -> None:
    world.add("morning")
    world.add("evening", autostart=False)
    world.add("gone", ephemeral=True)
    world.add("runs").state = CageState.RUNNING
    world.add("stands").state = CageState.PAUSED
    assert world.life() == ["morning"]
    assert world.recorded == []


def test_in_one_boot_they_are_started_once(world: World) -> None:
    morning = world.add("morning")
    assert world.life() == ["morning"]
    morning.state = CageState.STOPPED  # by an administrator
    assert world.life() == []
    world.add("enabled-since")
    assert world.life() == []
    world.reboot()
    assert sorted(world.life()) == ["enabled-since", "morning"]


def test_a_run_directory_that_is_new_is_a_boot_too(world: World) -> None:
    """As in a container, whose host goes on."""
    morning = world.add("morning")
    world.life()
    world.file.unlink()
    morning.state = CageState.STOPPED
    assert world.life() == ["morning"]


def test_a_few_are_started_at_once(world: World) -> None:
    names = [f"c{number}" for number in range(3 * AT_ONCE)]
    for name in names:
        world.add(name)
    assert sorted(world.life()) == sorted(names)
    assert world.most_at_once == AT_ONCE


# --- what goes wrong -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("error", [CageError("no home"), WrongState("no home"), RuntimeFailure("no home")])
def test_one_that_fails_is_recorded_and_does_not_stop_the_others(
    world: World, error: CageError, caplog: pytest.LogCaptureFixture
) -> None:
    names = [f"c{number}" for number in range(2 * AT_ONCE)]
    for name in names:
        world.add(name)
        world.faults[name] = [error]
    world.faults["c7"] = []
    assert sorted(world.life()) == sorted(names)
    assert sorted(world.recorded) == [("autostart-failed", name, "no home") for name in names[:-1]]
    assert "c0 was not started with the host: no home" in caplog.text
    assert world.known["c7"].state is CageState.RUNNING
    assert world.life() == [], "it was tried in this boot"


def test_a_failure_that_cannot_be_recorded_does_not_stop_the_others_either(world: World) -> None:
    for name in ("a", "b"):
        world.add(name)
    world.faults["a"] = [CageError("no home")]
    world.full = True
    assert world.life() == ["a", "b"]
    assert world.known["b"].state is CageState.RUNNING


def test_a_spawner_that_comes_back_is_asked_again_but_not_for_ever(world: World) -> None:
    for name, times in (("lucky", ATTEMPTS_MAX - 1), ("doomed", ATTEMPTS_MAX)):
        world.add(name)
        world.faults[name] = [SpawnerUnavailable("it went away") for _ in range(times)]
    world.life()
    assert world.known["lucky"].state is CageState.RUNNING
    assert world.recorded == [("autostart-failed", "doomed", "it went away")]


def test_a_caged_that_is_killed_is_followed_by_one_that_goes_on_with_the_rest(world: World) -> None:
    names = [f"c{number}" for number in range(2 * AT_ONCE)]
    for name in names:
        world.add(name)
    world.faults["c5"] = [Killed()]
    begun = world.life()
    started = {cage.name for cage in world.cages() if cage.state is CageState.RUNNING}
    assert "c5" in begun
    assert started
    world.known["c0"].state = CageState.STOPPED  # by an administrator, in between
    assert sorted(world.life()) == sorted(set(names) - started)
    assert all(cage.state is CageState.RUNNING for cage in world.cages() if cage.name != "c0")
    assert world.life() == []


def test_a_cage_that_no_caged_survives_is_given_up(world: World) -> None:
    world.add("deadly")
    world.faults["deadly"] = [Killed() for _ in range(10)]
    lives = [world.life() for _ in range(ATTEMPTS_MAX + 2)]
    assert lives == [["deadly"]] * ATTEMPTS_MAX + [[], []]
    assert world.recorded == [
        ("autostart-failed", "deadly", f"the core ended each of the {ATTEMPTS_MAX} times that it was tried")]


def test_what_is_changed_while_it_waits_is_heeded(world: World) -> None:
    names = [f"c{number}" for number in range(AT_ONCE)]
    for name in (*names, "disabled", "destroyed"):
        world.add(name)

    def change(_name: str) -> None:
        world.add("disabled", autostart=False)
        world.known.pop("destroyed", None)

    world.on_start = change
    assert world.life() == names
    assert world.recorded == []


def test_one_destroyed_while_it_is_started_is_no_surprise(world: World) -> None:
    for name in ("brief", "homeless"):
        world.add(name)
        world.faults[name] = [NoSuchCage("the spawner, or the lock, knows of none")]
    world.on_start = lambda name: world.known.pop(name) if name == "brief" else None
    assert world.life() == ["brief", "homeless"]
    assert json.loads(world.file.read_bytes())["due"] == {}
    assert [name for _, name, _ in world.recorded] == ["homeless"]


@pytest.mark.parametrize("content", [b"", b"{", b'{"boot": "first"}', b'{"boot": "first", "due": {"x": "many"}}',
                                     b'{"boot": "first", "due": {}, "more": 1}', b"\xff"])
def test_a_plan_that_cannot_be_read_starts_nothing_and_says_so(
    world: World, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    world.add("morning")
    world.file.write_bytes(content)
    assert world.life() == []
    assert "no cage is started with the host" in caplog.text


def test_a_plan_that_cannot_be_written_starts_nothing_and_says_so(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """It might be started twice."""
    world.add("morning")
    world.file = world.file.with_name("nowhere") / "autostart.json"
    assert world.life() == []
    assert "no cage is started with the host" in caplog.text
    assert str(world.file) in caplog.text
