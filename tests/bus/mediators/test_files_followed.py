# SPDX-License-Identifier: LGPL-2.1-or-later
"""What is followed through the core half: figures of its own file, a word that gives it up, and what a hostile half
makes of the pipes."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterable
from typing import Any

import pytest

from cage_runtime.bus import PROPERTIES
from cage_runtime.errors import CageError, PolicyRefused, UsageError
from cage_runtime.model import PROGRESS_SECONDS, PROGRESS_UNREAD_MAX, TRANSFERS_PER_PAIR, Flow
from mediators.files import protocol
from mediators.files.protocol import CANCEL, COMMITTED, DELIVERING, READING
from tests.bus.mediators.conftest import CONTENT, Play, World
from tests.unit.mediators.files.trees import TREE, stream

pytestmark = pytest.mark.usefixtures("system_bus")
FILES = (protocol.BUS_NAME, protocol.PATH, protocol.INTERFACE)
CANCELLED = {"error": "org.cageruntime.Error.Cancelled", "sentence": '"figures.txt" was cancelled; nothing arrived'}
RAW = stream(TREE)
SLOW_STEPS = 8


def slowly(source: int, target: int, size: int) -> tuple[int, str]:
    """A copier whose disk needs two figures' time for each byte."""
    digest = hashlib.sha256()
    for offset in range(size):
        byte = os.pread(source, 1, offset)
        digest.update(byte)
        os.write(target, byte)
        if offset < SLOW_STEPS:
            time.sleep(PROGRESS_SECONDS * 2 / SLOW_STEPS)
    return size, digest.hexdigest()


def hang(source: int, target: int, size: int) -> tuple[int, str]:
    del source, target, size
    while True:
        time.sleep(60)


class Followed:
    """What the gateway's end of StartFile or StartTree has."""

    def __init__(self, status: int, control: int, tree: int = -1) -> None:
        self.status, self.control, self.tree = status, control, tree
        self._rest = b""

    @classmethod
    async def file(cls, world: World, name: str = "figures.txt") -> Followed:
        descriptor = os.open(world.homes / "source", os.O_RDONLY)
        try:
            answer = await world.clients["work"].call(
                *FILES, protocol.START_FILE, protocol.SEND_SIGNATURE, ("vault", name, 0, {}), (descriptor,), seconds=20)
        finally:
            os.close(descriptor)
        return cls(*answer.descriptors)

    @classmethod
    async def of_tree(cls, world: World) -> Followed:
        answer = await world.clients["work"].call(
            *FILES, protocol.START_TREE, protocol.SEND_TREE_SIGNATURE, ("vault", "papers", {}), seconds=20)
        tree, status, control = answer.descriptors
        return cls(status, control, tree)

    def cancel(self, words: bytes = CANCEL) -> None:
        os.write(self.control, words)

    async def line(self) -> dict[str, Any] | None:
        """The next one; None at the end."""
        async with asyncio.timeout(20):
            while b"\n" not in self._rest:
                chunk = await asyncio.to_thread(os.read, self.status, 4096)
                if not chunk:
                    return None
                self._rest += chunk
        line, _, self._rest = self._rest.partition(b"\n")
        return dict(json.loads(line))

    async def until(self, state: str) -> None:
        while (line := await self.line()) is not None:
            if line.get("state") == state:
                return
        raise AssertionError(f"never {state}")

    async def rest(self) -> list[dict[str, Any]]:
        found = []
        while (line := await self.line()) is not None:
            found.append(line)
        self.close()
        return found

    def close(self) -> None:
        os.close(self.status)
        os.close(self.control)


def states(lines: Iterable[dict[str, Any]]) -> list[str]:
    found: list[str] = []
    for line in lines:
        word = line.get("state") or next(key for key in ("arrived", "error") if key in line)
        if word not in found[-1:]:
            found.append(word)
    return found


async def outcomes(world: World) -> list[str]:
    return [(await world.recorded())["outcome"] for _ in range(world.caged.records.qsize())]


# --- what is told ------------------------------------------------------------------------------------------------
def test_it_is_told_how_far_it_is_until_it_has_arrived(play: Play) -> None:
    async def test(world: World) -> None:
        told = await (await Followed.file(world)).rest()
        assert states(told) == [READING, DELIVERING, COMMITTED, "arrived"]
        assert told[-1] == {"arrived": "Inbox/work/figures.txt"}
        assert told[0] == {"state": READING, "done": 0, "total": len(CONTENT)}
        assert {line["done"] for line in told if line.get("state") == DELIVERING} == {len(CONTENT)}

    play(test)


def test_a_tree_is_followed_alike(play: Play) -> None:
    async def test(world: World) -> None:
        followed = await Followed.of_tree(world)
        os.write(followed.tree, RAW)
        os.close(followed.tree)
        told = await followed.rest()
        assert states(told) == [READING, DELIVERING, COMMITTED, "arrived"]
        assert told[0]["total"] == len(RAW)

    play(test)


def test_the_figures_are_few_and_grow(play: Play) -> None:
    async def test(world: World) -> None:
        told = await (await Followed.file(world)).rest()
        figures = [line["done"] for line in told if line.get("state") == READING]
        assert figures == sorted(figures)
        assert 2 <= len(figures) <= 10
        assert 0 < figures[-1] <= len(CONTENT)

    play(test, copier=slowly)


def test_what_is_refused_has_no_pipes(play: Play) -> None:
    async def test(world: World) -> None:
        world.caged.allowed.clear()
        with pytest.raises(PolicyRefused, match="no rule allows"):
            await Followed.file(world)
        with pytest.raises(PolicyRefused, match="no rule allows"):
            await Followed.of_tree(world)

    play(test)


@pytest.mark.parametrize("flow", [Flow.LEVEL, Flow.UP])
def test_of_a_diode_nothing_is_told_after_it_was_accepted(play: Play, flow: Flow) -> None:
    async def test(world: World) -> None:
        world.caged.one_way, world.caged.flow, world.caged.starting = True, flow, asyncio.Event()
        told = await (await Followed.file(world)).rest()
        assert states(told) == [READING, DELIVERING, COMMITTED, "arrived"]
        assert told[-1] == {"arrived": "Inbox/work/"}
        assert world.arrived() == []
        world.caged.starting.set()
        await world.until(lambda: len(world.arrived()) == 1)

    play(test)


# --- cancelled ---------------------------------------------------------------------------------------------------
async def nothing_came(world: World, followed: Followed) -> None:
    assert (await followed.rest())[-1] == CANCELLED
    assert world.arrived() == []
    assert (await outcomes(world))[-1] == "cancelled; nothing arrived"


def test_what_is_cancelled_while_it_is_read_does_not_arrive(play: Play) -> None:
    async def test(world: World) -> None:
        followed = await Followed.file(world)
        await followed.until(READING)
        followed.cancel()
        await nothing_came(world, followed)
        assert world.caged.delivering == 0

    play(test, copier=hang)


def test_what_is_cancelled_while_it_is_delivered_does_not_arrive(play: Play) -> None:
    async def test(world: World) -> None:
        world.caged.starting = asyncio.Event()
        followed = await Followed.file(world)
        await world.until(lambda: world.caged.delivering == 1)
        followed.cancel()
        await nothing_came(world, followed)
        world.caged.starting.set()
        await world.until(lambda: len(world.caged.ended) == 1)
        assert world.arrived() == []

    play(test)


def test_what_is_cancelled_while_its_name_is_being_recorded_does_not_arrive(play: Play) -> None:
    """It has all but its name there; the chain has that it is given it, and then that it was cancelled."""
    async def test(world: World) -> None:
        followed = await Followed.file(world)
        world.caged.recording = asyncio.Event()
        await followed.until(DELIVERING)
        await world.until(lambda: "is given its name in the inbox" in map(outcome, world.caged.pending))
        followed.cancel()
        await world.until(lambda: len(world.caged.pending) == 2)
        world.caged.recording.set()
        await nothing_came(world, followed)

    def outcome(record: list[Any]) -> str:
        return str(record[-1]["outcome"])

    play(test)


def test_what_is_committed_is_not_cancelled_any_more(play: Play) -> None:
    async def test(world: World) -> None:
        followed = await Followed.file(world)
        await followed.until(COMMITTED)
        followed.cancel()
        assert (await followed.rest())[-1] == {"arrived": "Inbox/work/figures.txt"}
        assert (await outcomes(world))[-1].startswith("arrived as")

    play(test)


def test_a_word_counts_once_however_much_is_written(play: Play) -> None:
    async def test(world: World) -> None:
        followed = await Followed.file(world)
        await followed.until(READING)
        os.set_blocking(followed.control, False)
        followed.cancel(CANCEL * 65536)
        await nothing_came(world, followed)
        assert world.caged.records.empty()

    play(test, copier=hang)


@pytest.mark.parametrize("word", [b"x", b""])
def test_another_word_and_none_give_it_up(play: Play, word: bytes) -> None:
    async def test(world: World) -> None:
        followed = await Followed.file(world)
        await followed.until(READING)
        os.write(followed.control, word)
        if not word:
            os.close(followed.control)
            followed.control = os.open(os.devnull, os.O_RDONLY)
        await followed.rest()
        assert await outcomes(world) == ["given up, because whoever sent it has gone; nothing arrived"]

    play(test, copier=hang)


@pytest.mark.parametrize("first", ["cancelled", "gone"])
def test_two_reasons_to_give_it_up_make_one_record(play: Play, first: str) -> None:
    """The second comes while the first is being recorded: nothing is lost, and nothing of it stays."""
    async def test(world: World) -> None:
        followed = await Followed.file(world)
        await followed.until(READING)
        world.caged.recording = asyncio.Event()
        if first == "cancelled":
            followed.cancel()
        else:
            os.close(followed.control)
            followed.control = os.open(os.devnull, os.O_RDONLY)
        await world.until(lambda: len(world.caged.pending) == 1)
        followed.close()
        await world.clients["vault"].has_owner(protocol.BUS_NAME)
        world.caged.recording.set()
        world.caged.recording = None
        await world.until(lambda: os.listdir(world.staging) == [])
        why = "cancelled" if first == "cancelled" else "given up, because whoever sent it has gone"
        assert await outcomes(world) == [f"{why}; nothing arrived"]

    play(test, copier=hang)


def test_the_places_of_what_was_cancelled_are_free_again(play: Play) -> None:
    async def test(world: World) -> None:
        world.caged.starting = asyncio.Event()
        for _ in range(3):
            several = [await Followed.file(world) for _ in range(TRANSFERS_PER_PAIR)]
            for followed in several:
                followed.cancel()
            for followed in several:
                assert (await followed.rest())[-1] == CANCELLED
        world.caged.starting.set()
        assert "arrived" in (await (await Followed.file(world)).rest())[-1]

    play(test)


# --- a hostile half ----------------------------------------------------------------------------------------------
def test_whoever_never_reads_has_a_bounded_backlog(play: Play) -> None:
    """Figures are left out; what has to be said fits, and it arrives."""
    async def test(world: World) -> None:
        followed = await Followed.file(world)
        fcntl.fcntl(followed.status, fcntl.F_SETPIPE_SZ, 4096)
        await world.until(lambda: len(world.arrived()) == 1)
        await world.until(lambda: world.caged.records.qsize() == 2)
        told = await followed.rest()
        assert len(json.dumps(told)) < 2 * PROGRESS_UNREAD_MAX
        assert told[-1] == {"arrived": "Inbox/work/figures.txt"}

    play(test, copier=slowly)


def test_what_cannot_be_told_is_not_delivered(play: Play) -> None:
    """The half opens its end for writing too, and fills it: it is not to be able to have two copies made."""
    async def test(world: World) -> None:
        world.caged.starting = asyncio.Event()
        followed = await Followed.file(world)
        await world.until(lambda: world.caged.delivering == 1)
        filling = os.open(f"/proc/self/fd/{followed.status}", os.O_WRONLY | os.O_NONBLOCK)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(filling, b"x")
        world.caged.starting.set()
        await world.until(lambda: world.caged.records.qsize() == 2)
        assert [outcome.partition(":")[0] for outcome in await outcomes(world)] == [
            "is given its name in the inbox", '"figures.txt" is given up']
        await world.until(lambda: len(world.caged.ended) == 1)
        assert world.arrived() == []
        os.close(filling)
        followed.close()

    play(test)


@pytest.mark.parametrize("path", [protocol.PATH, f"{protocol.PATH}/jobs/1", "/"])
@pytest.mark.parametrize(
    ("interface", "member", "signature", "arguments"),
    [(protocol.INTERFACE, protocol.LIST_JOBS, "", ()), (protocol.JOB_INTERFACE, protocol.CANCEL_JOB, "", ()),
     (PROPERTIES, "GetAll", "s", (protocol.JOB_INTERFACE,)),
     (PROPERTIES, "Get", "ss", (protocol.JOB_INTERFACE, "Done")),
     ("org.freedesktop.DBus.Introspectable", "Introspect", "", ())],
)
def test_through_a_gateway_nobody_can_ask_for_what_is_another_s(
    play: Play, path: str, interface: str, member: str, signature: str, arguments: tuple[str, ...]
) -> None:
    """There is no question about a transfer, one's own or another's: the pipes are all that there is."""
    async def test(world: World) -> None:
        followed = await Followed.file(world)
        await followed.until(READING)
        for cage in ("vault", "work"):
            with pytest.raises(CageError) as refused:
                await world.clients[cage].call(protocol.BUS_NAME, path, interface, member, signature, arguments)
            assert not isinstance(refused.value, UsageError)
            assert "rejected" in refused.value.sentence.lower()  # by the bus itself
        followed.cancel()
        await nothing_came(world, followed)

    play(test, copier=hang)
