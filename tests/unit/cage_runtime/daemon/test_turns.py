# SPDX-License-Identifier: LGPL-2.1-or-later
"""Who has the next turn, where one person asks for much; and that no turn is lost."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Coroutine

from cage_runtime.daemon.turns import Turns

ALICE, BOB, CAROL = 1000, 1001, 1002


class World:
    """Work that takes as many steps of the loop as it is told, and what was done in which order."""

    def __init__(self) -> None:
        self.turns, self.done = Turns(), list[str]()
        self.at_once = 0

    async def work(self, whose: int | None, name: str, steps: int = 1) -> None:
        async with self.turns.turn(whose):
            self.at_once += 1
            assert self.at_once == 1
            try:
                for _ in range(steps):
                    await asyncio.sleep(0)
                self.done.append(name)
            finally:
                self.at_once -= 1


def done(*works: tuple[int | None, str]) -> list[str]:
    async def run() -> list[str]:
        world = World()
        await asyncio.gather(*(world.work(whose, name, 20) for whose, name in works))
        return world.done

    return asyncio.run(run())


def test_who_asks_for_much_is_passed_by_who_asks_for_little() -> None:
    much = [(ALICE, f"a{number}") for number in range(8)]
    assert done(*much, (BOB, "b0")) == ["a0", "b0", *(f"a{number}" for number in range(1, 8))]
    assert done(*much[:3], (BOB, "b0"), (BOB, "b1"), (CAROL, "c0")) == ["a0", "b0", "a1", "c0", "b1", "a2"]


def test_one_persons_go_in_their_order() -> None:
    assert done((ALICE, "a0"), (ALICE, "a1"), (None, "core"), (ALICE, "a2")) == ["a0", "core", "a1", "a2"]


def test_whoever_comes_again_at_once_keeps_nobody_waiting() -> None:
    """For more than one thing of each of the others."""
    async def run() -> list[str]:
        world = World()

        async def flood(whose: int) -> None:
            for number in range(50):
                await world.work(whose, f"{whose}-{number}")

        floods = [asyncio.ensure_future(flood(whose)) for whose in (ALICE, ALICE, ALICE, BOB, BOB)]
        await asyncio.sleep(0)
        before = len(world.done)
        await world.work(CAROL, "c")
        after = world.done.index("c") - before
        await asyncio.gather(*floods)
        assert after <= 3  # the one under way, and one of each
        return world.done

    assert len(asyncio.run(run())) == 251


def test_whoever_gives_up_leaves_the_turn_to_others() -> None:
    """Wherever they are: before, in and at the moment of their turn."""
    async def run(seed: int) -> None:
        world, chance = World(), random.Random(seed)
        tasks = [asyncio.ensure_future(world.work(chance.choice((ALICE, BOB, None)), str(number), chance.randrange(3)))
                 for number in range(40)]
        for _ in range(60):
            chance.choice(tasks).cancel()
            chance.choice(tasks).cancel()
            await asyncio.sleep(0)
        await asyncio.gather(*tasks, return_exceptions=True)
        before = len(world.done)
        await asyncio.wait_for(world.work(CAROL, "last"), 10)
        assert (world.done[before:], world.turns._waiting, world.turns._held) == (["last"], {}, False)

    def runs(works: list[Coroutine[None, None, None]]) -> None:
        for work in works:
            asyncio.run(work)

    runs([run(seed) for seed in range(200)])
