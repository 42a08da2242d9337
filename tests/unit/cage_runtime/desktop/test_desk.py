# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which prompts have a window, and when a window may be answered."""

from __future__ import annotations

import pytest

from cage_runtime.desktop import prompt as words
from cage_runtime.desktop.desk import WINDOWS_MAX, Desk
from cage_runtime.desktop.guard import DEAD_SECONDS, Guard
from cage_runtime.desktop.prompt import Prompt


def prompts(*ids: str) -> list[Prompt]:
    return [words.read({"id": id_, "service": "x", "rule": "a:1", "source": "work"}) for id_ in ids]


class World:
    def __init__(self) -> None:
        self.windows: list[str] = []
        self.desk = Desk(lambda prompt: self.windows.append(prompt.id), self.windows.remove)


@pytest.fixture
def world() -> World:
    return World()


def test_the_oldest_few_have_windows(world: World) -> None:
    world.desk.add(prompts(*"abcde"))
    assert world.windows == list("abc")
    assert len(world.windows) == WINDOWS_MAX
    for gone, left in (("b", "acd"), ("e", "acd"), ("a", "cd"), ("nobody", "cd")):
        world.desk.remove(gone)
        assert world.windows == list(left)


def test_the_same_is_shown_once(world: World) -> None:
    world.desk.add(prompts("a"))
    world.desk.add(prompts("a", "b"))
    assert world.windows == ["a", "b"]


def test_what_is_put_aside_comes_back_when_it_is_wanted(world: World) -> None:
    world.desk.add(prompts(*"abcd"))
    world.desk.put_aside("a")
    assert world.windows == list("bcd")
    world.desk.add(prompts("a"))
    world.desk.remove("b")
    assert world.windows == list("cd"), "not by itself"
    world.desk.bring_back()
    assert world.windows == list("cda")


def test_it_is_put_aside_once(world: World) -> None:
    world.desk.add(prompts("a"))
    for _ in range(2):
        world.desk.put_aside("a")
    assert world.windows == []


def test_all_is_cleared(world: World) -> None:
    world.desk.add(prompts(*"abcd"))
    world.desk.put_aside("a")
    world.desk.clear()
    assert world.windows == []
    world.desk.add(prompts("a"))
    assert world.windows == ["a"], "it is another one"


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_window_lives_a_second_after_it_was_looked_at() -> None:
    clock = Clock()
    guard = Guard(clock)
    clock.now += 1000
    assert not guard.alive, "it has not the focus"
    guard.changed()
    assert not guard.alive
    for begin in (guard.focused, guard.changed):
        begin()
        clock.now += DEAD_SECONDS - 0.01
        assert not guard.alive
        clock.now += 0.01
        assert guard.alive
    guard.left()
    assert not guard.alive
    clock.now += 1000
    assert not guard.alive
    guard.focused()
    assert not guard.alive
