# SPDX-License-Identifier: LGPL-2.1-or-later
"""What is recorded of calls that were not authorised, and how often."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import pytest

from cage_runtime.audit.event import Kind
from cage_runtime.daemon import rate
from cage_runtime.daemon.authorization import Caller
from cage_runtime.daemon.manager import Manager
from cage_runtime.daemon.refusals import Refusals
from cage_runtime.errors import AuthenticationNeeded, NoSuchCage, NotAuthorized, RuntimeFailure
from cage_runtime.model import REFUSALS_BURST, REFUSALS_PER_SECOND

FULL = REFUSALS_BURST / REFUSALS_PER_SECOND
NO = NotAuthorized("Stop is not authorised: polkit gives no answer: x: y")


def person(uid: int) -> Caller:
    return Caller(uid=uid, sender=f":1.{uid}", member="Stop", interactive=False)


class World:
    """A manager that records, a clock that is set, and what is to happen later."""

    def __init__(self) -> None:
        self.recorded: list[dict[str, str]] = []
        self.full, self.time = False, 1000.0
        self.later: list[tuple[float, Callable[[], None]]] = []
        self.refusals = Refusals(cast(Manager, self), clock=lambda: self.time,
                                 later=lambda seconds, what: self.later.append((self.time + seconds, what)))

    def record(self, kind: Kind, about: None, fields: dict[str, str]) -> None:
        assert (kind, about) == (Kind.REFUSED, None)
        if self.full:
            raise RuntimeFailure("the chain takes nothing")
        self.recorded.append(fields)

    def refuse(self, uid: int, refusal: NotAuthorized = NO, times: int = 1) -> None:
        for _ in range(times):
            with pytest.raises(type(refusal)), self.refusals.noted(person(uid), "work"):
                raise refusal

    def run_until(self, moment: float) -> None:
        self.time = moment
        due = [what for when, what in self.later if when <= moment]
        self.later = [(when, what) for when, what in self.later if when > moment]
        for what in due:
            what()


@pytest.fixture
def world() -> World:
    return World()


def test_who_what_and_why(world: World) -> None:
    world.refuse(1000)
    world.refuse(1000, NotAuthorized("Stop needs root on this host; use sudo"))
    assert world.recorded == [
        {"cage": "work", "method": "Stop", "by": "1000", "reason": "polkit gives no answer: x: y"},
        {"cage": "work", "method": "Stop", "by": "1000", "reason": "Stop needs root on this host; use sudo"}]


def test_what_is_no_refusal_is_not_recorded(world: World) -> None:
    world.refuse(1000, AuthenticationNeeded("a password"))
    with pytest.raises(NoSuchCage), world.refusals.noted(person(1000), "work"):
        raise NoSuchCage("there is none")
    assert world.recorded == []


def test_many_are_recorded_together(world: World) -> None:
    world.refuse(1000, times=REFUSALS_BURST + 5000)
    assert len(world.recorded) == REFUSALS_BURST
    world.refuse(1001)
    assert world.recorded.pop()["by"] == "1001"
    world.run_until(1000 + FULL)
    assert world.recorded[REFUSALS_BURST:] == [{"by": "1000", "reason": "5000 more calls were refused"}]
    assert world.later == []


def test_in_a_day_there_are_no_more_than_there_may_be(world: World) -> None:
    for second in range(86400):
        world.run_until(1000.0 + second)
        world.refuse(1000)
    assert len(world.recorded) <= REFUSALS_BURST + 86400 * REFUSALS_PER_SECOND + 86400 / FULL
    told = [fields["reason"].split()[0] for fields in world.recorded if "method" not in fields]
    waiting = world.refusals._persons.of(1000, world.time).refused
    assert len(world.recorded) - len(told) + sum(map(int, told)) + waiting == 86400


def test_what_could_not_be_recorded_is_a_refusal_all_the_same(world: World) -> None:
    world.full = True
    world.refuse(1000, times=REFUSALS_BURST + 3)
    world.run_until(1000 + FULL)
    world.full = False
    assert world.recorded == []
    world.run_until(1000 + 2 * FULL)
    assert world.recorded == [{"by": "1000", "reason": "3 more calls were refused"}]


def test_of_more_persons_than_can_be_told_apart_nobody_is_blamed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rate, "PERSONS_MAX", 2)
    for uid in range(REFUSALS_BURST + 10):
        world.refuse(uid)
    world.run_until(1000 + FULL)
    assert [fields.get("by") for fields in world.recorded] == [*map(str, range(REFUSALS_BURST + 2)), None]
