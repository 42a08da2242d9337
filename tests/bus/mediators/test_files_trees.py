# SPDX-License-Identifier: LGPL-2.1-or-later
"""Trees through the core half: by pipes that the core has made, told once, given up when nobody listens any more."""

from __future__ import annotations

import asyncio
import json
import os
import stat
from typing import Any

import pytest

from cage_runtime import packing
from cage_runtime.bus import Variant
from cage_runtime.errors import InvalidName, PolicyRefused, UsageError
from cage_runtime.model import TRANSFERS_PER_PAIR, Flow
from mediators.files import protocol
from tests.bus.mediators.conftest import CONTENT, VAULT, WORK, Play, World
from tests.unit.mediators.files.trees import DIGEST, TREE, stream

pytestmark = pytest.mark.usefixtures("system_bus")
RAW = stream(TREE)
SIZE = sum(len(content) for _, _, content in TREE)
FLOWS = [Flow.LEVEL, Flow.UP]


class Tree:
    """A tree that is being sent: its two pipes."""

    def __init__(self, tree: int, status: int) -> None:
        self.tree, self.status = tree, status

    @classmethod
    async def begin(cls, world: World, name: str = "papers", **options: Any) -> Tree:
        variants = {key: Variant("b" if isinstance(value, bool) else "s", value) for key, value in options.items()}
        answer = await world.clients["work"].call(
            protocol.BUS_NAME, protocol.PATH, protocol.INTERFACE, protocol.SEND_TREE, protocol.SEND_TREE_SIGNATURE,
            ("vault", name, variants), seconds=20)
        return cls(*answer.descriptors)

    async def send(self, raw: bytes = RAW) -> None:
        await asyncio.to_thread(self._write, raw)

    def _write(self, raw: bytes) -> None:
        try:
            rest = memoryview(raw)
            while rest:
                rest = rest[os.write(self.tree, rest) :]
        except BrokenPipeError:
            pass
        os.close(self.tree)

    async def told(self) -> dict[str, str]:
        async with asyncio.timeout(20):
            raw = await asyncio.to_thread(self._read)
        return dict(json.loads(raw)) if raw else {}

    def _read(self) -> bytes:
        with open(self.status, "rb") as status:
            return status.read()


async def whole(world: World, raw: bytes = RAW, **options: Any) -> dict[str, str]:
    tree = await Tree.begin(world, **options)
    await tree.send(raw)
    return await tree.told()


def arrived(world: World) -> list[str]:
    top = world.homes / "vault/Inbox/work"
    return sorted(str(path.relative_to(top)) for path in top.rglob("*"))


@pytest.mark.parametrize(("flow", "says"), [(Flow.LEVEL, "Inbox/work/papers"), (Flow.UP, "Inbox/work/")])
def test_a_tree_arrives_and_is_recorded(play: Play, flow: Flow, says: str) -> None:
    async def test(world: World) -> None:
        world.caged.flow = flow
        assert await whole(world) == {"arrived": says}
        assert (world.homes / "vault/Inbox/work/papers/sub/run").read_bytes() == b"#!/bin/sh\n"
        assert (await world.recorded())["outcome"] == "is given its name in the inbox"
        details = await world.recorded()
        assert details["outcome"] == "arrived as Inbox/work/papers"
        assert (details["name"], details["size"], details["files"]) == ("papers/", str(SIZE), "6")
        assert details["sha256"] == DIGEST

    play(test)


def test_the_pipes_are_the_cores_and_one_way_each(play: Play) -> None:
    async def test(world: World) -> None:
        tree = await Tree.begin(world)
        kinds = [(stat.S_ISFIFO(os.fstat(end).st_mode), os.get_inheritable(end)) for end in (tree.tree, tree.status)]
        assert kinds == [(True, False), (True, False)]
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.read(tree.tree, 1)
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.write(tree.status, b"x")
        os.set_blocking(tree.status, False)  # of our end, and of nobody else's
        os.set_blocking(tree.status, True)
        await tree.send()
        assert await tree.told() == {"arrived": "Inbox/work/papers"}

    play(test)


@pytest.mark.parametrize(
    ("name", "options", "kind"),
    [("../x", {}, InvalidName), ("", {}, InvalidName), (".incoming-1", {}, InvalidName), ("p\u0430y", {}, InvalidName),
     ("x", {"conflict": "merge"}, UsageError), ("x", {"mode": "4755"}, UsageError)],
)
def test_what_is_wrong_is_refused_before_anything_is_read(
    play: Play, name: str, options: dict[str, str], kind: type[Exception]
) -> None:
    async def test(world: World) -> None:
        with pytest.raises(kind):
            await Tree.begin(world, name, **options)
        assert world.caged.asked == []

    play(test)


def test_a_forbidden_target_is_refused_without_pipes(play: Play) -> None:
    async def test(world: World) -> None:
        world.caged.allowed.clear()
        with pytest.raises(PolicyRefused, match="no rule allows"):
            await Tree.begin(world)

    play(test)


@pytest.mark.parametrize(
    ("raw", "says"),
    [(stream([(packing.FILE, b"..", b"")]), "cannot be a file's name"), (RAW[:-30], "did not come whole"),
     (b"", "did not come as a tree comes"), (packing.header(10**6, 0, 1 << 30), "has 1000000 files")],
)
def test_a_stream_that_is_no_tree_is_told_and_recorded(play: Play, raw: bytes, says: str) -> None:
    async def test(world: World) -> None:
        told = await whole(world, raw)
        assert told["error"] == "org.cageruntime.Error.TransferFailed"
        assert told["sentence"].startswith('"papers" ')
        assert says in told["sentence"]
        assert (await world.recorded())["outcome"] == told["sentence"]
        assert world.caged.delivering == 0
        assert arrived(world) == []

    play(test)


@pytest.mark.parametrize("sent", [b"", RAW[:40], RAW])
def test_it_is_given_up_when_nobody_hears_of_it_any_more(play: Play, sent: bytes) -> None:
    """Whether nothing has come, some of it, or all of it."""
    async def test(world: World) -> None:
        world.caged.starting = asyncio.Event()
        tree = await Tree.begin(world)
        if sent == RAW:
            await tree.send(sent)
            await world.until(lambda: world.caged.delivering > 0)
        else:
            os.write(tree.tree, sent)
        os.close(tree.status)
        details = await world.recorded()
        assert details["outcome"] == "given up, because whoever sent it has gone; nothing arrived"
        if sent != RAW:
            os.close(tree.tree)
        world.caged.starting.set()
        world.caged.starting = None
        assert await whole(world) == {"arrived": "Inbox/work/papers"}
        assert len(arrived(world)) == 1 + packing.HEADER.unpack(RAW[: packing.HEADER.size])[1]

    play(test)


def test_those_that_are_too_many_are_told_so(play: Play) -> None:
    async def test(world: World) -> None:
        trees = [await Tree.begin(world) for _ in range(TRANSFERS_PER_PAIR)]
        with pytest.raises(Exception, match=f"{TRANSFERS_PER_PAIR} transfers of this cage to that one"):
            await Tree.begin(world)
        for tree in trees:
            await tree.send()
            assert "arrived" in await tree.told()
        assert "arrived" in await whole(world)

    play(test)


# --- a name that is taken ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("flow", FLOWS)
def test_what_is_skipped_arrives_where_it_was(play: Play, flow: Flow) -> None:
    async def test(world: World) -> None:
        world.caged.flow = flow
        await whole(world)
        told = await whole(world, conflict="skip")
        assert told == {"arrived": "" if flow is Flow.LEVEL else "Inbox/work/"}
        for _ in range(3):
            await world.recorded()
        assert (await world.recorded())["outcome"] == "skipped: the name is taken"
        assert os.listdir(world.homes / "vault/Inbox/work") == ["papers"]

    play(test)


@pytest.mark.parametrize("flow", FLOWS)
@pytest.mark.parametrize("options", [{"conflict": "fail"}, {"conflict": "skip", "move": True}])
def test_what_fails_or_is_moved_and_did_not_arrive_is_an_error(
    play: Play, flow: Flow, options: dict[str, Any]
) -> None:
    async def test(world: World) -> None:
        world.caged.flow = flow
        await whole(world)
        told = await whole(world, **options)
        assert told["error"] == "org.cageruntime.Error.TransferFailed"
        assert told["sentence"].startswith('"papers" did not arrive in vault')
        assert ("taken" in told["sentence"] or "has something" in told["sentence"]) is (flow is Flow.LEVEL)

    play(test)


def test_a_move_is_another_service(play: Play) -> None:
    async def test(world: World) -> None:
        assert "arrived" in await whole(world, move=True)
        assert {asked[1] for asked in world.caged.asked} == {"files.Move"}
        _, _, _, service, _ = world.caged.records.get_nowait()
        assert service == "files.Move"

    play(test)


# --- the diode ---------------------------------------------------------------------------------------------------
def test_one_way_it_is_accepted_before_the_target_has_a_part_in_it(play: Play) -> None:
    async def test(world: World) -> None:
        world.caged.one_way, world.caged.starting = True, asyncio.Event()
        assert await whole(world) == {"arrived": "Inbox/work/"}
        assert await world.send("work", "vault") == "Inbox/work/"
        assert world.arrived() == []
        world.caged.starting.set()
        top = world.homes / "vault/Inbox/work"
        await world.until(lambda: {"papers", "figures.txt"} <= set(os.listdir(top) if top.exists() else ()))
        assert (top / "figures.txt").read_bytes() == CONTENT

    play(test)


@pytest.mark.parametrize("fault", ["no inbox", "no room", "slow"])
def test_one_way_nothing_tells_what_came_of_it(play: Play, fault: str) -> None:
    """Neither in words nor by when they come."""
    async def test(world: World) -> None:
        world.caged.one_way = True
        if fault == "no inbox":
            (world.homes / "vault/Inbox").symlink_to("/")
        if fault == "slow":
            world.caged.starting = asyncio.Event()
        if fault == "no room":
            (world.homes / "vault/Inbox").mkdir()
            (world.homes / "vault/Inbox/work").write_text("no directory")
        assert await whole(world) == {"arrived": "Inbox/work/"}
        if fault != "slow":
            outcome = (await world.recorded())["outcome"]
            assert "Inbox is not a directory" in outcome

    play(test)


def test_one_way_it_arrives_although_whoever_sent_it_has_gone(play: Play) -> None:
    async def test(world: World) -> None:
        world.caged.one_way, world.caged.starting = True, asyncio.Event()
        assert await whole(world) == {"arrived": "Inbox/work/"}
        world.clients.pop("work").disconnect()
        world.caged.starting.set()
        await world.until(lambda: len(world.arrived()) == 1)

    play(test)


def test_one_way_nothing_is_moved(play: Play) -> None:
    async def test(world: World) -> None:
        world.caged.one_way = True
        with pytest.raises(PolicyRefused, match="of that the policy lets nothing back"):
            await Tree.begin(world, move=True)

    play(test)


LOGS = {"digest": {"name", "sha256", "size", "files"}, "meta": {"name", "size", "files"}, "no": set[str]()}


@pytest.mark.parametrize("log", LOGS)
def test_the_record_has_what_the_rule_says(play: Play, log: str) -> None:
    async def test(world: World) -> None:
        world.caged.log = log
        await whole(world)
        for _ in range(2):
            details = await world.recorded()
            assert set(details) & {"name", "sha256", "size", "files"} == LOGS[log]
            assert set(details) >= {"request", "outcome"}
        assert (details["outcome"] == "arrived") == (log == "no")

    play(test)


def test_the_source_of_all_is_its_gateway(play: Play) -> None:
    async def test(world: World) -> None:
        await whole(world)
        assert {asked[0] for asked in world.caged.asked} == {WORK}
        assert VAULT not in {asked[0] for asked in world.caged.asked}

    play(test)
