# SPDX-License-Identifier: LGPL-2.1-or-later
"""How much of what was accepted may wait, and when it is tried again."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cage_runtime import attached
from cage_runtime.errors import (
    CutOff,
    PolicyRefused,
    RuntimeFailure,
    TicketExpired,
    TooOften,
    TransferFailed,
    WrongState,
)
from cage_runtime.model import KEPT_BYTES_PER_CAGE, KEPT_PER_CAGE
from mediators.files import waiting
from mediators.files.kept import Folder, Record
from mediators.files.waiting import NOTHING_WAITS, Kept, Waiting, described, logged
from mediators.stage import Staged, Stager

GIB = 1024**3
STOPPED = WrongState("it does not run")


class Presence:
    def on_change(self, what: Callable[[], None]) -> None:
        self.changed = what


class Caged:
    """Records, unless it is full; says of which cages it is to be told."""

    def __init__(self) -> None:
        self.presence = Presence()
        self.records: list[str] = []
        self.full = False

    def on_cage(self, what: Callable[[str, bool], None]) -> None:
        self.cage = what

    async def gateways(self) -> list[object]:
        return []

    async def record(self, _source: object, _target: str, _service: str, details: dict[str, str]) -> None:
        if self.full:
            raise RuntimeFailure("the chain takes nothing")
        self.records.append(details["outcome"])


class World:
    def __init__(self, directory: Path) -> None:
        self.caged, self.stager = Caged(), Stager(directory, nameable=True)
        self.folder = Folder(directory)
        self.tried: list[str] = []
        self.answers: list[Exception | str] = []
        self.waiting = Waiting(self.caged, self.folder, self.stager, again=self._again)  # type: ignore[arg-type]
        self._number = 0

    async def _again(self, kept: Kept) -> str:
        self.tried.append(kept.record.request)
        await asyncio.sleep(0)
        return self._answer()

    def _answer(self) -> str:
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def one(self, *, source: str = "work", target: str = "vault", size: int = 10, since: int = 0) -> Kept:
        self._number += 1
        record = Record(
            request=f"{self._number:032x}", since=since or 2_000_000_000, service="files.Send", source=source,
            source_name="work", asked="vault", target="vault", target_uuid=target, name="f", tree=False,
            conflict="rename", transform="", log="", size=size, content=size, files=1, sha256="a" * 64)
        return Kept(record=record, staged=record.staged(), details=described(record))

    async def waits(self, error: Exception = STOPPED, **how: Any) -> Kept:
        kept = self.one(**how)
        with self.waiting.admitted(kept):
            pass
        self.answers.insert(0, error)
        self.lack(kept)
        await self.waiting.attempt(kept, lambda: self._first())
        return kept

    async def _first(self) -> str:
        return self._answer()

    @staticmethod
    def lack(kept: Kept) -> None:
        """It is found that its target does not run, as whoever delivers it does."""
        kept.lacks = kept.record.target_uuid

    async def settle(self) -> None:
        for _ in range(50):
            await asyncio.sleep(0)


@pytest.fixture
def run(tmp_path: Path) -> Callable[[Callable[[World], Awaitable[None]]], None]:
    def run(test: Callable[[World], Awaitable[None]]) -> None:
        async def whole() -> None:
            await test(World(tmp_path / "staging"))

        asyncio.run(whole())

    return run


Run = Callable[[Callable[[World], Awaitable[None]]], None]


def refuses(world: World, **how: Any) -> bool:
    try:
        with world.waiting.admitted(world.one(**how)):
            pass
    except TransferFailed:
        return True
    return False


def test_so_many_of_a_source_and_no_more(run: Run) -> None:
    async def test(world: World) -> None:
        assert [refuses(world) for _ in range(KEPT_PER_CAGE + 1)] == [False] * KEPT_PER_CAGE + [True]
        assert not refuses(world, source="other")

    run(test)


def test_so_many_bytes_may_wait_and_a_first_one_whatever_it_has(run: Run) -> None:
    async def test(world: World) -> None:
        await world.waits(size=60 * GIB)
        assert refuses(world, size=1)
        assert not refuses(world, source="other", size=60 * GIB)
        await world.waits(source="third", size=KEPT_BYTES_PER_CAGE - 1)
        assert not refuses(world, source="third", size=1)
        assert refuses(world, source="third", size=2)

    run(test)


def test_what_is_being_delivered_does_not_wait_and_counts_by_its_number(run: Run) -> None:
    async def test(world: World) -> None:
        assert not refuses(world, size=60 * GIB)
        assert not refuses(world, size=60 * GIB)

    run(test)


def test_one_that_cannot_be_kept_counts_no_more(run: Run) -> None:
    async def test(world: World) -> None:
        for _ in range(2 * KEPT_PER_CAGE):
            with pytest.raises(OSError, match="full"), world.waiting.admitted(world.one()):
                raise OSError("full")
        assert not refuses(world)

    run(test)


@pytest.mark.parametrize("error", [
    WrongState("it does not run"), attached.Gone("it ended"), RuntimeFailure("the chain takes nothing"),
    CutOff("caged ended")])
def test_what_is_no_answer_yet_has_it_wait_until_there_is_reason_to_try_again(run: Run, error: Exception) -> None:
    async def test(world: World) -> None:
        kept = await world.waits(error)
        told = world.caged.records
        assert told == ([] if isinstance(error, RuntimeFailure) else [told[0]])
        world.caged.cage("somebody else", True)
        await world.settle()
        assert world.tried == []
        world.caged.cage("work", True)
        await world.settle()
        assert world.tried == [], "that one ran all the time"
        for reason in (lambda: world.caged.cage("work", False), lambda: world.caged.cage("vault", True),
                       world.caged.presence.changed):
            world.answers.append(error)
            reason()
            await world.settle()
        assert world.tried == [kept.record.request] * 3
        world.answers.append("arrived as Inbox/work/f")
        world.caged.cage("vault", True)
        await world.settle()
        assert world.caged.records[-1] == "arrived as Inbox/work/f"
        assert len(world.caged.records) <= 2, "that it waits is recorded once"
        world.caged.cage("vault", True)
        await world.settle()
        assert len(world.tried) == 4, "it is no more"

    run(test)


@pytest.mark.parametrize("error", [PolicyRefused("no"), TransferFailed("its home is full"), OSError("read error")])
def test_any_other_answer_is_the_end_of_it(run: Run, error: Exception) -> None:
    async def test(world: World) -> None:
        await world.waits(error)
        assert world.caged.records == [waiting.sentence_of(error)]
        world.caged.cage("vault", True)
        await world.settle()
        assert world.tried == []

    run(test)


def test_its_end_is_nothing_until_it_is_recorded(run: Run) -> None:
    async def test(world: World) -> None:
        world.caged.full = True
        await world.waits(PolicyRefused("no"))
        world.caged.full = False
        world.answers.append("had arrived already")
        world.caged.cage("vault", True)
        await world.settle()
        assert world.caged.records == ["had arrived already"]

    run(test)


def test_a_reason_that_comes_while_it_is_tried_is_not_lost(run: Run) -> None:
    async def test(world: World) -> None:
        kept = world.one()
        with world.waiting.admitted(kept):
            pass
        world.answers = ["arrived"]

        async def stops_and_starts() -> str:
            world.lack(kept)
            world.caged.cage("vault", True)
            raise WrongState("it does not run")

        await world.waiting.attempt(kept, stops_and_starts)
        await world.settle()
        assert world.tried == [kept.record.request]
        assert world.caged.records[-1] == "arrived"

    run(test)


def test_those_of_a_pair_go_one_after_the_other_and_no_other_pair_waits_for_them(run: Run) -> None:
    async def test(world: World) -> None:
        first, second = await world.waits(), await world.waits()
        other = await world.waits(target="web")
        asked, answer = list[str](), asyncio.Event()

        async def ask(kept: Kept) -> str:
            asked.append(kept.record.request)
            await answer.wait()
            return "arrived"

        world.waiting._again = ask
        world.caged.presence.changed()
        await world.settle()
        assert sorted(asked) == [first.record.request, other.record.request]
        answer.set()
        await world.settle()
        assert second.record.request in asked

    run(test)


@pytest.mark.parametrize("error", [TooOften("not so often"), TicketExpired("too late")])
def test_what_would_be_permitted_at_another_time_is_tried_again_by_itself(
    run: Run, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr(waiting, "LATER_SECONDS", 0.01)

    async def test(world: World) -> None:
        kept = await world.waits(error)
        world.answers = [error, error, "arrived"]
        async with asyncio.timeout(20):
            while not world.caged.records:
                await asyncio.sleep(0)
        assert world.caged.records == ["arrived"]
        assert (len(world.tried), kept.delays) == (3, 3)

    run(test)


def test_what_has_waited_for_too_long_is_given_up(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(world: World) -> None:
        monkeypatch.setattr(waiting, "KEPT_SECONDS", 0.01)
        monkeypatch.setattr(waiting.time, "time", lambda: 2_000_000_000.0)
        await world.waits()
        async with asyncio.timeout(20):
            while len(world.caged.records) < 2:
                await asyncio.sleep(0)
        assert world.caged.records[-1].startswith("given up, because it has waited")
        assert not refuses(world)

    run(test)


def test_what_is_left_in_the_folder_waits_and_takes_its_share(tmp_path: Path) -> None:
    async def run() -> None:
        directory = tmp_path / "staging"
        world = World(directory)
        for _ in range(KEPT_PER_CAGE):
            record = msgspec.structs.replace(world.one().record, since=2_000_000_000)
            for kind, content in (("kept", msgspec.json.encode(record)), ("copy", b"0123456789")):
                (directory / f"{record.request}.{kind}").write_bytes(content)
                (directory / f"{record.request}.{kind}").chmod(0o600)
        again = World(directory)
        assert refuses(again)
        assert sum(staged.size for staged in again.stager._under_way) == 10 * KEPT_PER_CAGE
        again.answers = ["arrived"] * KEPT_PER_CAGE
        again.caged.presence.changed()
        await again.settle()
        while again.stager._under_way:
            await asyncio.sleep(0)
        assert os.listdir(directory) == []

    asyncio.run(run())


def test_the_oldest_of_a_pair_says_which_marks_may_go(run: Run) -> None:
    async def test(world: World) -> None:
        old = await world.waits(since=1_999_999_000)
        young = await world.waits(since=1_999_999_999)
        await world.waits(target="web", since=1)
        assert world.waiting.since("work", "vault") == old.record.since < young.record.since
        assert world.waiting.since("work", "elsewhere") == NOTHING_WAITS == world.waiting.since("other", "vault")

    run(test)


def test_each_delivery_of_it_is_known_by_the_same_and_says_nothing(run: Run) -> None:
    async def test(world: World) -> None:
        kept, other = world.one(), world.one()
        assert kept.once == Kept(record=kept.record, staged=Staged(owner="work"), details={}).once != other.once
        assert kept.record.request not in kept.once

    run(test)


def test_what_a_rule_has_left_out_of_the_record_stays_out() -> None:
    details = {"name": "f", "request": "r", "size": "1", "sha256": "a", "files": "1", "resumed": "yes"}
    arrived = "arrived as Inbox/work/f (2)"
    of_all = details | {"outcome": arrived}
    assert logged(details, "", arrived) == logged(details, "digest", arrived) == of_all
    assert logged(details, "meta", arrived) == {key: value for key, value in of_all.items() if key != "sha256"}
    assert logged(details, "no", arrived) == {"request": "r", "resumed": "yes", "outcome": "arrived"}
    failed = '"f" did not arrive in vault: the delivery there failed'
    assert logged(details, "no", failed)["outcome"] == "it did not arrive in vault: the delivery there failed"
