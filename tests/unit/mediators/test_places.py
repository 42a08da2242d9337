# SPDX-License-Identifier: LGPL-2.1-or-later
"""Who goes on beside whom."""

from __future__ import annotations

import asyncio

from mediators.places import Turns


def test_one_after_the_other_and_others_beside_them() -> None:
    async def test() -> None:
        turns, order = Turns(60.0), list[str]()

        async def one(whose: str, name: str, go: asyncio.Event) -> None:
            async with turns.take(whose):
                order.append(name)
                await go.wait()

        go = asyncio.Event()
        tasks = [asyncio.ensure_future(one(whose, name, go)) for whose, name in (
            ("a", "first"), ("a", "second"), ("b", "other"))]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert sorted(order) == ["first", "other"]
        go.set()
        await asyncio.gather(*tasks)
        assert order[-1] == "second"
        assert not turns._locks, "none is kept for nobody"

    asyncio.run(test())


def test_patience_ends() -> None:
    """Whoever stands still in its turn holds nobody up."""

    async def test() -> None:
        turns = Turns(0.01)
        async with turns.take("a"), asyncio.timeout(30), turns.take("a"):
            pass
        async with asyncio.timeout(30), turns.take("a"):
            pass
        assert not turns._locks

    asyncio.run(test())


def test_who_is_cancelled_leaves_the_turn_to_the_next() -> None:
    async def test() -> None:
        turns = Turns(60.0)

        async def wait() -> None:
            async with turns.take("a"):
                pass

        async with turns.take("a"):
            gone, next_ = asyncio.ensure_future(wait()), asyncio.ensure_future(wait())
            await asyncio.sleep(0)
            gone.cancel()
        async with asyncio.timeout(30):
            await next_

    asyncio.run(test())
