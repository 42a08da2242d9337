# SPDX-License-Identifier: LGPL-2.1-or-later
"""How much of a connection is heard, on a real bus: some in each turn of the loop, and what its pace says (M13)."""

from __future__ import annotations

import asyncio
from xml.etree import ElementTree as ET

from cage_runtime.bus import Answer, Bus, Call, Service
from cage_runtime.listening import MESSAGES_PER_TURN
from tests.bus.mediators.conftest import StartBus

NAME, PATH, CALLS = "org.example.Heard1", "/org/example", 5 * MESSAGES_PER_TURN
INTERFACE = ET.fromstring(f'<interface name="{NAME}"><method name="Say"/></interface>')
SECONDS = 30


class Wall:
    """Somebody who listens, and somebody who talks."""

    def __init__(self, listener: Bus, talker: Bus) -> None:
        self.listener, self.talker = listener, talker
        self.arrived = 0

    async def serve(self) -> None:
        async def said(_: Call) -> Answer:
            self.arrived += 1
            return Answer()

        self.listener.serve(PATH, Service(interface=INTERFACE, handlers={"Say": said}))
        await self.listener.own(NAME)

    def talk(self) -> asyncio.Future[list[Answer]]:
        return asyncio.gather(*(self.talker.call(NAME, PATH, NAME, "Say") for _ in range(CALLS)))


async def wall(address: str) -> Wall:
    made = Wall(await Bus.connect(address), await Bus.connect(address))
    await made.serve()
    return made


def test_all_that_is_said_is_heard_by_turns(start_bus: StartBus) -> None:
    """Nobody's turn has more than MESSAGES_PER_TURN, however many are there."""

    async def test() -> None:
        both = await wall(start_bus("bus").address)
        turns: list[int] = []
        both.listener.hear_by(lambda heard: turns.append(heard) or 0.0)
        async with asyncio.timeout(SECONDS):
            assert len(await both.talk()) == CALLS
        assert both.arrived == CALLS
        assert (max(turns), sum(turns)) == (MESSAGES_PER_TURN, CALLS)

    asyncio.run(test())


def test_whoever_talks_too_much_waits_and_others_do_not(start_bus: StartBus) -> None:
    async def test() -> None:
        loud, quiet = await wall(start_bus("loud").address), await wall(start_bus("quiet").address)
        paused = asyncio.Event()

        def pace(heard: int) -> float:
            paused.set()
            return 3600.0 if heard else 0.0

        loud.listener.hear_by(pace)
        talking = loud.talk()
        async with asyncio.timeout(SECONDS):
            await paused.wait()
            assert len(await quiet.talk()) == CALLS
        assert loud.arrived <= MESSAGES_PER_TURN
        talking.cancel()

    asyncio.run(test())


def test_one_that_ends_while_it_waits_is_closed(start_bus: StartBus) -> None:
    async def test() -> None:
        both = await wall(start_bus("bus").address)
        paused = asyncio.Event()

        def pace(_: int) -> float:
            paused.set()
            return 3600.0

        both.listener.hear_by(pace)
        talking = both.talk()
        async with asyncio.timeout(SECONDS):
            await paused.wait()
            both.listener.disconnect()
            await both.listener.closed()
        talking.cancel()

    asyncio.run(test())
