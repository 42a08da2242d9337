# SPDX-License-Identifier: LGPL-2.1-or-later
"""Receipts through the core half: what it asks caged for, when, and for whom."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import pytest

from cage_runtime.bus import Variant
from cage_runtime.errors import CageError, PolicyRefused, UsageError
from cage_runtime.model import Flow
from mediators.files import protocol
from tests.bus.mediators.conftest import Play, World
from tests.bus.mediators.test_files_trees import Tree, whole

pytestmark = pytest.mark.usefixtures("system_bus")


async def receipted(world: World, cage: str = "work", member: str = protocol.SEND_RECEIPTED,
                    **options: Any) -> tuple[str, str]:
    opened = os.open(world.homes / "source", os.O_RDONLY)
    variants = {key: Variant("b" if isinstance(value, bool) else "s", value) for key, value in options.items()}
    try:
        answer = await world.clients[cage].call(
            protocol.BUS_NAME, protocol.PATH, protocol.INTERFACE, member, protocol.SEND_SIGNATURE,
            ("vault", "figures.txt", 0, variants), (opened,), seconds=20)
    finally:
        os.close(opened)
    arrived, receipt = answer.values
    return arrived, receipt


@pytest.mark.parametrize("flow", [Flow.LEVEL, Flow.UP])
def test_a_receipt_is_of_the_request_and_of_the_last_record(play: Play, flow: Flow) -> None:
    async def test(world: World) -> None:
        world.caged.flow = flow
        arrived, receipt = await receipted(world)
        request = world.caged.asked[0][-1]
        assert arrived == ("Inbox/work/figures.txt" if flow is Flow.LEVEL else "Inbox/work/")
        assert receipt == f"arrived {request}"
        assert world.caged.told[0]["receipt"] is True
        records = [await world.recorded() for _ in range(2)]
        assert [record["outcome"] for record in records] == [
            "is given its name in the inbox", "arrived as Inbox/work/figures.txt"]
        assert records[1]["files"] == "1"

    play(test)


def test_what_is_skipped_has_one_that_says_so(play: Play) -> None:
    async def test(world: World) -> None:
        await world.send("work", "vault")
        assert await receipted(world, conflict="skip") == ("", f"skipped {world.caged.asked[-1][-1]}")

    play(test)


def test_of_what_was_refused_or_did_not_arrive_there_is_none(play: Play) -> None:
    async def test(world: World) -> None:
        await world.send("work", "vault")
        while not world.caged.records.empty():
            world.caged.records.get_nowait()
        with pytest.raises(CageError, match="did not arrive"):
            await receipted(world, conflict="fail")
        with pytest.raises(PolicyRefused):
            await receipted(world, cage="vault")
        assert "did not arrive in vault: its Inbox has something" in (await world.recorded())["outcome"]
        assert world.caged.records.empty()

    play(test)


def test_one_way_it_is_of_that_it_was_accepted_before_the_target_has_a_part_in_it(play: Play) -> None:
    async def test(world: World) -> None:
        world.caged.one_way, world.caged.starting = True, asyncio.Event()
        assert await receipted(world) == ("Inbox/work/", f"accepted {world.caged.asked[0][-1]}")
        assert world.caged.delivering == 0 or world.arrived() == []
        assert (await world.recorded())["outcome"] == "accepted"
        world.caged.starting.set()
        assert [(await world.recorded())["outcome"] for _ in range(2)] == [
            "is given its name in the inbox", "arrived as Inbox/work/figures.txt"]

    play(test)


def test_one_way_what_cannot_be_recorded_is_not_accepted(play: Play) -> None:
    async def test(world: World) -> None:
        world.caged.one_way = world.caged.full = True
        with pytest.raises(CageError):
            await receipted(world)
        assert (world.caged.delivering, world.arrived()) == (0, [])

    play(test)


def test_where_there_can_be_none_it_has_arrived_all_the_same(play: Play) -> None:
    async def test(world: World) -> None:
        world.caged.signs = False
        assert await receipted(world) == ("Inbox/work/figures.txt", "")

    play(test)


def test_a_tree_has_one_where_it_is_wanted(play: Play) -> None:
    async def test(world: World) -> None:
        told = await whole(world, receipt=True)
        assert told == {"arrived": "Inbox/work/papers", "receipt": f"arrived {world.caged.asked[0][-1]}"}
        assert await whole(world) == {"arrived": "Inbox/work/papers (2)"}
        assert await whole(world, receipt=False) == {"arrived": "Inbox/work/papers (3)"}

    play(test)


def test_send_says_nothing_of_receipts(play: Play) -> None:
    """Its answer has no place for one: whoever asks for one there is told so."""

    async def test(world: World) -> None:
        for member in (protocol.SEND, protocol.SEND_RECEIPTED):
            with pytest.raises(UsageError, match='there is no option "receipt" of that type'):
                await receipted(world, member=member, receipt=True)
        with pytest.raises(UsageError, match='there is no option "receipt" of that type'):
            await Tree.begin(world, receipt="yes")
        assert world.caged.asked == []

    play(test)


def test_nobody_can_ask_for_a_receipt_by_the_id_of_a_request(play: Play) -> None:
    """Not of one's own, not of another's: there is no such call on a gateway."""

    async def test(world: World) -> None:
        await receipted(world)
        request = world.caged.asked[0][-1]
        for cage in ("work", "vault"):
            with pytest.raises(CageError, match="Rejected send message"):
                await world.clients[cage].call(protocol.BUS_NAME, protocol.PATH, protocol.INTERFACE, "Receipt", "s",
                                               (request,), seconds=20)

    play(test)
