# SPDX-License-Identifier: LGPL-2.1-or-later
"""Disposable cages are at most what their caller is, bounded in number, and gone once they have ended."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import cast

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cage_runtime.config import Definition, Network, Paths, Session
from cage_runtime.daemon.cage import Cage
from cage_runtime.daemon.disposables import (
    NONE_NOW,
    Disposables,
    Template,
    disposable_definition,
    disposable_label,
    load_template,
    template_of,
)
from cage_runtime.daemon.manager import Manager
from cage_runtime.daemon.state import Record, now
from cage_runtime.errors import CageError, InvalidName, NoSuchCage, RuntimeFailure, UnknownLevel, UsageError, WrongState
from cage_runtime.model import (
    DISPOSABLES_PER_CAGE,
    DISPOSABLES_PER_PERSON,
    CageState,
    Levels,
    check_new_name,
)

LEVELS = Levels(names=("public", "internal", "secret"), compartments=frozenset({"a", "b"}))


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    (tmp_path / "templates.d").mkdir()
    (tmp_path / "templates.d/disposable.toml").write_text("[session]\nephemeral = true\n")
    return Paths(shipped=str(tmp_path), administrator=str(tmp_path / "none"))


class World:
    """A manager whose cages are made at once, or stay in the making where `hold` is unset."""

    def __init__(self, paths: Paths) -> None:
        self.levels, self.in_hand = LEVELS, set[str]()
        self.known: dict[str, Cage] = {}
        self.hold = asyncio.Event()
        self.hold.set()
        self.destroyed: list[tuple[str, str]] = []
        self.fault: CageError | None = None
        self._uuids = itertools.count(1)
        self.over: Callable[[Cage], None] = lambda _cage: None
        self.disposables = Disposables(cast(Manager, self), paths)

    def add(self, name: str, definition: Definition, owner: int = 1000, caller: str = "") -> Cage:
        record = Record(name=name, uuid=f"{next(self._uuids):032x}", created=now(), owner=owner, definition=definition,
                        caller=caller)
        label = LEVELS.label(definition.level, definition.compartments)
        self.known[name] = Cage(record=record, label=label, state=CageState.RUNNING)
        return self.known[name]

    def cages(self) -> list[Cage]:
        return list(self.known.values())

    def is_taken(self, name: str) -> bool:
        return name in self.known

    async def create(self, name: str, definition: Definition, *, owner: int, start: bool, caller: str) -> Cage:
        assert start
        await self.hold.wait()
        if self.fault:
            raise self.fault
        return self.add(name, definition, owner, caller)

    async def destroy(self, cage: Cage, why: str) -> None:
        if self.fault:
            raise self.fault
        self.destroyed.append((cage.name, why))
        del self.known[cage.name]


# --- what it is ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("text", "level", "compartments"), [
    ("", "internal", {"a", "b"}),
    ('level = "public"\n', "public", {"a", "b"}),
    ('level = "secret"\n', "internal", {"a", "b"}),
    ('compartments = ["b"]\n', "internal", {"b"}),
    ("compartments = []\n", "internal", set()),
])
def test_its_label_is_the_callers_or_less(paths: Paths, text: str, level: str, compartments: set[str]) -> None:
    Path(paths.shipped, "templates.d/mine.toml").write_text(text)
    label = disposable_label(LEVELS.label("internal", ["a", "b"]), load_template("mine", paths), LEVELS)
    assert (label.level, label.compartments) == (level, frozenset(compartments))


@given(
    caller=st.tuples(st.sampled_from(LEVELS.names), st.sets(st.sampled_from(["a", "b"]))),
    template=st.builds(
        Template, caps_level=st.booleans(), caps_compartments=st.booleans(),
        definition=st.builds(lambda level, compartments: Definition(level=level, compartments=sorted(compartments)),
                             st.sampled_from(LEVELS.names), st.sets(st.sampled_from(["a", "b"]))),
    ),
)
def test_no_template_raises_a_label(caller: tuple[str, set[str]], template: Template) -> None:
    label = LEVELS.label(*caller)
    assert label.dominates(disposable_label(label, template, LEVELS))


def test_a_template_with_a_level_of_no_host_makes_nothing() -> None:
    template = Template(definition=Definition(level="cosmic"), caps_level=True)
    with pytest.raises(UnknownLevel, match='no level "cosmic"'):
        disposable_label(LEVELS.label("secret"), template, LEVELS)


def test_m63_it_has_no_network_where_its_caller_has_none() -> None:
    caller = Definition(network=Network(mode="none"))
    wider = msgspec.structs.replace(Definition(), network=msgspec.convert({"mode": "none"}, Network))
    made = disposable_definition(caller, LEVELS.label("public"), Template(definition=wider))
    assert made.network.mode == "none"


def test_it_is_private_and_walled_where_its_caller_is() -> None:
    caller = Definition(session=Session(private=True), require=["lsm"])
    template = Template(definition=Definition(require=["landlock"], session=Session(autostart=True)))
    made = disposable_definition(caller, LEVELS.label("secret", ["a"]), template)
    assert (made.session.private, made.session.ephemeral, made.session.autostart) == (True, True, False)
    assert (made.level, made.compartments, made.require) == ("secret", ["a"], ["landlock", "lsm"])


@pytest.mark.parametrize(("target", "template"), [
    ("@disposable", "disposable"), ("@disposable:", "disposable"), ("@disposable:web", "web"), ("@disposables", None),
    ("work", None), ("", None), ("@core", None),
])
def test_a_target_names_a_template(target: str, template: str | None) -> None:
    assert template_of(target) == template


@pytest.mark.parametrize("name", ["nosuch", "../default", "-", "", "x" * 40])
def test_a_template_that_is_not_there_is_an_error(paths: Paths, name: str) -> None:
    Path(paths.shipped, "templates.d/disposable.toml").unlink()
    with pytest.raises(UsageError, match="there is no template"):
        load_template(name, paths)


@pytest.mark.parametrize("name", ["disp-1", "disp-9999", "disp-00"])
def test_its_name_is_the_cores_to_give(name: str) -> None:
    with pytest.raises(InvalidName, match="gives to disposable cages"):
        check_new_name(name)
    assert [check_new_name(other) for other in ("disp-", "disp-x", "disp", "disp-1a")] == ["disp-", "disp-x", "disp",
                                                                                         "disp-1a"]


# --- how many --------------------------------------------------------------------------------------------------------
def test_they_are_named_in_turn_and_never_as_one_that_is_there(paths: Paths) -> None:
    async def make() -> list[str]:
        world = World(paths)
        work = world.add("work", Definition(level="internal"))
        world.add("disp-2", Definition(), caller="somebody")
        return [(await world.disposables.make(work, "")).name for _ in range(2)]

    assert asyncio.run(make()) == ["disp-1", "disp-3"]


def test_a_cage_has_a_bounded_number_also_of_those_in_the_making(paths: Paths) -> None:
    async def make() -> World:
        world = World(paths)
        work, other = world.add("work", Definition()), world.add("other", Definition())
        world.hold.clear()
        making = [asyncio.ensure_future(world.disposables.make(work, "")) for _ in range(DISPOSABLES_PER_CAGE)]
        await asyncio.sleep(0)
        with pytest.raises(RuntimeFailure, match=f"has {DISPOSABLES_PER_CAGE} disposable"):
            await world.disposables.make(work, "")
        world.hold.set()
        await asyncio.gather(*making)
        with pytest.raises(RuntimeFailure, match=f"has {DISPOSABLES_PER_CAGE} disposable"):
            await world.disposables.make(work, "")
        await world.disposables.make(other, "")
        del world.known["disp-1"]
        await world.disposables.make(work, "")
        return world

    names = [cage.name for cage in asyncio.run(make()).cages() if cage.record.disposable]
    assert len(names) == len(set(names)) == DISPOSABLES_PER_CAGE + 1


@pytest.mark.parametrize("owner", [0, 1000])
def test_a_person_has_a_bounded_number_and_root_too(paths: Paths, owner: int) -> None:
    async def make() -> None:
        world = World(paths)
        callers = [world.add(f"c{number}", Definition(), owner) for number in range(DISPOSABLES_PER_PERSON + 1)]
        for caller in callers[:-1]:
            await world.disposables.make(caller, "")
        with pytest.raises(RuntimeFailure) as refused:
            await world.disposables.make(callers[0], "")
        assert refused.value.sentence == NONE_NOW
        await world.disposables.make(world.add("elsewhere", Definition(), 1001), "")

    asyncio.run(make())


def test_whatever_others_have_a_cage_that_has_none_gets_one(paths: Paths) -> None:
    async def make() -> None:
        world = World(paths)
        greedy = [world.add(f"c{number}", Definition()) for number in range(DISPOSABLES_PER_PERSON)]
        late = world.add("late", Definition())
        for number in range(DISPOSABLES_PER_PERSON):
            await world.disposables.make(greedy[number // DISPOSABLES_PER_CAGE], "")
        await world.disposables.make(late, "")
        with pytest.raises(RuntimeFailure) as refused:
            await world.disposables.make(late, "")
        assert refused.value.sentence == NONE_NOW

    asyncio.run(make())


def test_what_disposable_cages_make_is_of_the_cage_that_they_are_for(paths: Paths) -> None:
    """One cage cannot have more by way of them, nor once that has gone which made them."""
    async def make() -> set[str]:
        world = World(paths)
        work = world.add("work", Definition())
        first = await world.disposables.make(work, "")
        second = await world.disposables.make(first, "")
        del world.known[first.name]
        for _ in range(DISPOSABLES_PER_CAGE - 1):
            await world.disposables.make(second, "")
        for caller in (work, second):
            with pytest.raises(RuntimeFailure, match=f"has {DISPOSABLES_PER_CAGE} disposable"):
                await world.disposables.make(caller, "")
        return {cage.record.caller for cage in world.cages() if cage.record.disposable} - {work.uuid}

    assert asyncio.run(make()) == set()


def test_one_that_could_not_be_made_does_not_count(paths: Paths) -> None:
    async def make() -> int:
        world = World(paths)
        work = world.add("work", Definition())
        world.fault = RuntimeFailure("this host has 1000 cages already")
        for _ in range(DISPOSABLES_PER_CAGE + 1):
            with pytest.raises(RuntimeFailure) as refused:
                await world.disposables.make(work, "")
            assert refused.value.sentence == NONE_NOW, "what the host lacks is not for the cage to hear"
        world.fault = None
        await world.disposables.make(work, "")
        return len(world.known)

    assert asyncio.run(make()) == 2


def test_a_cage_that_does_not_run_gets_none(paths: Paths) -> None:
    world = World(paths)
    work = world.add("work", Definition())
    work.state = CageState.STOPPED
    with pytest.raises(WrongState, match="work is stopped"):
        asyncio.run(world.disposables.make(work, ""))


# --- its end ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("fault", [None, NoSuchCage("it is gone"), RuntimeFailure("the chain is full")])
def test_one_that_has_ended_is_destroyed_once(paths: Paths, fault: CageError | None,
                                              caplog: pytest.LogCaptureFixture) -> None:
    async def end() -> World:
        world = World(paths)
        world.fault = fault
        ended = world.add("disp-1", Definition(), caller="1" * 32)
        world.over(ended)
        world.over(ended)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        return world

    world = asyncio.run(end())
    assert world.destroyed == ([] if fault else [("disp-1", "it was disposable, and has ended")])
    assert ("is not destroyed yet: the chain is full" in caplog.text) == isinstance(fault, RuntimeFailure)
