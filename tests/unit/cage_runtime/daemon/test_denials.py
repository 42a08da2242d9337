# SPDX-License-Identifier: LGPL-2.1-or-later
"""What is recorded of what the kernel refuses: how much it was, and never how fast it came."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from cage_runtime.audit.event import Kind
from cage_runtime.daemon.denials import Denials
from cage_runtime.daemon.manager import Manager
from cage_runtime.errors import RuntimeFailure
from cage_runtime.model import DENIALS_SECONDS
from cage_runtime.spawner.spec import Denied

UUID, OTHER = "a" * 32, "b" * 32


class World:
    """A manager with two cages, a clock that is set, and what is to happen later."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.recorded: list[tuple[str, str, int]] = []
        self.there = {UUID: "work", OTHER: "vault"}
        self.full, self.time = False, 1000.0
        self.later: list[tuple[float, Callable[[], None]]] = []
        self.denials = self.caged()

    def caged(self) -> Denials:
        """As at a start of the core."""
        denials = Denials(cast(Manager, self), self.directory, clock=lambda: self.time,
                          later=lambda seconds, what: self.later.append((self.time + seconds, what)))
        denials.begin()
        return denials

    def by_uuid(self, uuid: str) -> SimpleNamespace | None:
        return SimpleNamespace(name=self.there[uuid]) if uuid in self.there else None

    def record(self, kind: Kind, about: None, fields: dict[str, str]) -> None:
        assert (kind, about) == (Kind.DENIED_BY_KERNEL, None)
        if self.full:
            raise RuntimeFailure("the chain takes nothing")
        assert fields.keys() == {"cage", "uuid", "operation", "count"}
        self.recorded.append((fields["cage"], fields["operation"], int(fields["count"])))

    def hear(self, uuid: str = UUID, xid: int = 16, **denials: int) -> None:
        self.denials.heard(Denied(uuid=uuid, xid=xid, denials=denials))

    def after(self, seconds: float) -> None:
        self.time += seconds
        due = [what for when, what in self.later if when <= self.time]
        self.later = [(when, what) for when, what in self.later if when > self.time]
        for what in due:
            what()

    def take(self) -> list[tuple[str, str, int]]:
        taken, self.recorded = self.recorded, []
        return taken


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "denials")


def test_the_first_is_recorded_at_once_and_a_flood_together(world: World) -> None:
    world.hear(kill=1)
    assert world.take() == [("work", "kill", 1)]
    for second in range(1, 50):
        world.hear(kill=1 + second * 100_000, ptrace=second)
        world.after(1)
    assert world.take() == []
    assert len(world.later) == 1
    world.after(DENIALS_SECONDS)
    assert world.take() == [("work", "kill", 4_900_000), ("work", "ptrace", 49)]
    world.after(DENIALS_SECONDS)
    assert world.take() == []


def test_one_cage_s_flood_does_not_hold_up_another_s(world: World) -> None:
    world.hear(kill=1)
    world.hear(kill=100)
    world.hear(OTHER, xid=17, connect=2)
    assert world.take() == [("work", "kill", 1), ("vault", "connect", 2)]


def test_what_is_left_is_recorded_when_the_cage_has_ended_also_when_it_is_destroyed(world: World) -> None:
    world.hear(kill=1)
    world.hear(kill=5)
    del world.there[UUID]
    world.denials.ended(UUID)
    assert world.take() == [("work", "kill", 1), ("work", "kill", 4)]
    assert list(world.directory.iterdir()) == []
    world.after(DENIALS_SECONDS)
    assert world.take() == []


def test_the_next_core_goes_on_where_the_last_one_was(world: World) -> None:
    world.hear(kill=3)
    world.denials = world.caged()
    world.hear(kill=3)
    world.hear(kill=10)
    assert world.take() == [("work", "kill", 3), ("work", "kill", 7)]


def test_another_life_of_the_cage_is_counted_from_its_own_beginning(world: World) -> None:
    """Also where nobody has told that the last one ended."""
    world.hear(kill=10)
    world.hear(xid=20, kill=4)
    world.denials = world.caged()
    world.hear(xid=21, kill=2)
    assert world.take() == [("work", "kill", 10), ("work", "kill", 4), ("work", "kill", 2)]


def test_what_could_not_be_recorded_is_recorded_later(world: World) -> None:
    world.full = True
    world.hear(kill=3)
    world.full = False
    world.after(DENIALS_SECONDS)
    assert world.take() == [("work", "kill", 3)]


def test_a_cage_that_is_gone_leaves_no_file(world: World) -> None:
    world.hear(kill=1)
    assert [file.name for file in world.directory.iterdir()] == [UUID]
    del world.there[UUID]
    world.caged()
    assert list(world.directory.iterdir()) == []


def test_a_cage_that_nobody_knows_is_not_recorded(world: World) -> None:
    world.hear("c" * 32, kill=1)
    assert world.take() == []
