# SPDX-License-Identifier: LGPL-2.1-or-later
"""The notify mediator's halves on real buses: what comes to a person's desktop is text, and what is clicked goes back
to the life that showed it alone."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from cage_runtime.bus import Bus, Variant
from cage_runtime.errors import CageError, PolicyRefused, UsageError
from cage_runtime.model import (
    NOTIFICATION_ACTIONS_MAX,
    NOTIFICATION_LINE_MAX,
    NOTIFICATION_LINES_MAX,
    NOTIFICATIONS_PER_CAGE,
)
from mediators import corehalf, wire
from mediators.notify import protocol
from mediators.notify.core import NotifyCore

WORK, VAULT = "11111111-work", "22222222-vault"
NAMES = (wire.bus_name("notify"), wire.path("notify"), wire.bus_name("notify"))


class World:
    def __init__(self, caged: Any) -> None:
        self.caged = caged
        self.clients: dict[str, Bus] = {}
        self.cores: list[NotifyCore] = []

    async def show(self, cage: str, summary: str, body: str = "", **options: Variant) -> int:
        answer = await self.clients[cage].call(*NAMES, "Show", "ssa{sv}", (summary, body, options), seconds=20)
        return int(answer.values[0])

    async def close(self, cage: str, number: int) -> None:
        await self.clients[cage].call(*NAMES, "Close", "u", (number,), seconds=20)

    async def wait(self, cage: str, *numbers: int) -> tuple[int, str]:
        answer = await self.clients[cage].call(*NAMES, "Wait", "au", (list(numbers),), seconds=20)
        return answer.values[0], answer.values[1]

    async def refused(self, cage: str, *arguments: str, **options: Variant) -> CageError:
        with pytest.raises(CageError) as refused:
            await self.show(cage, *arguments, **options)
        return refused.value


Test = Callable[[World], Coroutine[Any, Any, None]]
Play = Callable[[Test], None]


@pytest.fixture
def play(tmp_path: Path, start_gateway: Callable[[str], Any], system_bus: Any, kit: Any) -> Play:
    del system_bus

    @contextlib.asynccontextmanager
    async def world() -> AsyncIterator[World]:
        caged = await kit.caged.start(tmp_path / "homes")
        here = World(caged)
        for name, uuid in (("work", WORK), ("vault", VAULT)):
            address = start_gateway(name).address
            caged.add(name, uuid, address)
            here.clients[name] = await kit.client(address)
            caged.allowed[uuid, protocol.TARGET] = ""
        await caged.appear()

        def handlers(it: wire.Caged) -> dict[str, corehalf.Handler]:
            here.cores.append(NotifyCore(it))
            return {"Show": here.cores[0].show, "Close": here.cores[0].close, "Wait": here.cores[0].wait}

        serving = asyncio.ensure_future(corehalf.serve_until_bus_ends(
            "notify", protocol.SERVICE, handlers, left=lambda uuid: here.cores[0].left(uuid)))
        try:
            for connection in here.clients.values():
                await kit.present(connection, NAMES[0])
            yield here
        finally:
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)
            for bus in (caged.bus, *here.clients.values()):
                bus.disconnect()

    plays: Play = kit.plays(world)
    return plays


def actions(*named: tuple[str, str]) -> Variant:
    return Variant("a(ss)", [list(each) for each in named])


def test_what_is_shown_is_decided_and_is_the_cage_s(play: Play) -> None:
    async def test(world: World) -> None:
        number = await world.show("work", "the backup is done", "12 files\nno errors", urgency=Variant("s", "low"))
        assert world.caged.notifications == [(WORK, number, {
            "summary": "the backup is done", "body": "12 files\nno errors", "urgency": "low", "actions": []})]
        assert [[*asked[:2], asked[3]] for asked in world.caged.asked] == [[WORK, "notify.Show", "@core"]] * 2
        assert world.caged.told[0]["lines"] == ["the backup is done", "12 files", "no errors"]

    play(test)


def test_nothing_of_it_is_more_than_text(play: Play) -> None:
    """M50, M80, M81: markup, entity bombs and a terminal's commands are characters that can be seen."""
    bomb = '<!DOCTYPE x [<!ENTITY a "&b;&b;">]><img src="file:///etc/passwd"/><b>&a;</b>'

    async def test(world: World) -> None:
        await world.show("work", bomb, "\x1b]8;;http://example.org\x07link\n\r\x1b[2J\u202egnp.exe\x9b31m")
        ((_source, _number, shown),) = world.caged.notifications
        assert shown["summary"] == bomb, "the agent shows it as the text that it is"
        assert shown["body"].split("\n") == [r"\x1b]8;;http://example.org\x07link", r"\r\x1b[2J\u202egnp.exe\x9b31m"]

    play(test)


@pytest.mark.parametrize(("arguments", "options", "why"), [
    (("",), {}, "needs a summary"), ((" \n",), {}, "needs a summary"),
    (("x",), {"urgency": Variant("s", "panic")}, "urgency"), (("x",), {"urgency": Variant("u", 1)}, "type s"),
    (("x",), {"icon": Variant("s", "/etc/passwd")}, 'no option "icon"'),
    (("x",), {"sound-file": Variant("s", "/etc/passwd")}, "no option"),
    (("x",), {"actions": Variant("as", ["a"])}, "type a(ss)"),
    (("x",), {"actions": actions(("a", "A"), ("a", "B"))}, "name of its own"),
    (("x",), {"actions": actions(("", "A"))}, "name of its own"),
    (("x",), {"actions": actions(("a" * (NOTIFICATION_LINE_MAX + 1), "A"))}, "name of its own"),
    (("x",), {"actions": actions(*((str(n), "A") for n in range(NOTIFICATION_ACTIONS_MAX + 1)))}, "at most 8 actions"),
    (("x",), {"replaces": Variant("s", "1")}, "type u"),
])
def test_what_is_too_much_is_refused_and_recorded(play: Play, arguments: tuple[str, ...], options: dict[str, Variant],
                                                   why: str) -> None:
    """M12, M50: icons and sounds by path are no options at all."""

    async def test(world: World) -> None:
        refused = await world.refused("work", *arguments, **options)
        assert isinstance(refused, UsageError)
        assert why in refused.sentence
        source, _name, service, fault = await asyncio.wait_for(world.caged.malformed.get(), 20)
        assert (source, service, fault) == (WORK, "notify.Show", refused.sentence)
        assert not world.caged.notifications

    play(test)


def test_what_is_long_is_cut_where_it_can_be_seen(play: Play) -> None:
    async def test(world: World) -> None:
        lines = ["x" * (NOTIFICATION_LINE_MAX + 1)] * (NOTIFICATION_LINES_MAX + 1)
        await world.show("work", "s" * (NOTIFICATION_LINE_MAX + 1), "\n".join(lines),
                         actions=actions(*((str(n), "L" * 100) for n in range(NOTIFICATION_ACTIONS_MAX))))
        ((_source, _number, shown),) = world.caged.notifications
        assert shown["summary"] == "s" * NOTIFICATION_LINE_MAX + "…"
        body = shown["body"].split("\n")
        assert body == ["x" * NOTIFICATION_LINE_MAX + "…"] * NOTIFICATION_LINES_MAX + ["…"]
        assert all(len(label) == 41 for _name, label in shown["actions"])

    play(test)


def test_whom_policy_does_not_let_shows_nothing(play: Play) -> None:
    async def test(world: World) -> None:
        del world.caged.allowed[VAULT, protocol.TARGET]
        assert isinstance(await world.refused("vault", "x"), PolicyRefused)
        assert not world.caged.notifications

    play(test)


def test_another_cage_s_is_not_there(play: Play) -> None:
    """M50: it is neither replaced, nor closed, nor waited for."""

    async def test(world: World) -> None:
        theirs = await world.show("vault", "mine", actions=actions(("open", "Open")))
        await world.show("work", "not yours", replaces=Variant("u", theirs))
        assert "replaces" not in world.caged.notifications[-1][2]
        await world.close("work", theirs)
        assert world.caged.unshown == []
        assert await world.wait("work", theirs) == (theirs, "")
        waiting = asyncio.ensure_future(world.wait("vault", theirs))
        await world.show("work", "in order: by now the wait is there")
        world.caged.act(theirs, "open")
        assert await waiting == (theirs, "open")

    play(test)


def test_one_s_own_is_replaced_and_closed(play: Play) -> None:
    async def test(world: World) -> None:
        number = await world.show("work", "1 %")
        assert await world.show("work", "99 %", replaces=Variant("u", number)) == number
        await world.close("work", number)
        assert world.caged.unshown == [(WORK, number)]
        assert await world.wait("work", number) == (number, "")

    play(test)


def test_a_click_before_it_is_waited_for_is_not_lost(play: Play) -> None:
    async def test(world: World) -> None:
        number = await world.show("work", "pick", actions=actions(("a", "A"), ("b", "B")))
        world.caged.act(number, "b")
        assert await world.wait("work", number) == (number, "b")
        assert await world.wait("work", number) == (number, ""), "once"

    play(test)


def test_what_was_not_offered_is_no_click(play: Play) -> None:
    async def test(world: World) -> None:
        number = await world.show("work", "pick", actions=actions(("a", "A")))
        world.caged.act(number, "rm")
        assert await world.wait("work", number) == (number, "")

    play(test)


def test_a_life_that_has_ended_hears_of_nothing(play: Play) -> None:
    """M52: a click after the cage's end finds nobody, and after the core half's, neither."""

    async def test(world: World) -> None:
        number = await world.show("work", "pick", actions=actions(("a", "A")))
        world.cores[0].left(WORK)
        world.caged.act(number, "a")
        assert await world.wait("work", number) == (number, "")

    play(test)


def test_a_flood_leaves_a_cage_its_newest_and_others_theirs(play: Play) -> None:
    """M13: the oldest are taken away; another cage's stays."""

    async def test(world: World) -> None:
        theirs = await world.show("vault", "here", actions=actions(("a", "A")))
        shown = [await world.show("work", f"{n}") for n in range(NOTIFICATIONS_PER_CAGE + 3)]
        assert world.caged.unshown == [(WORK, number) for number in shown[:3]]
        world.caged.act(theirs, "a")
        assert await world.wait("vault", theirs) == (theirs, "a")

    play(test)


def test_too_many_to_wait_for_are_refused(play: Play) -> None:
    async def test(world: World) -> None:
        for numbers in ((), range(NOTIFICATIONS_PER_CAGE + 1)):
            with pytest.raises(UsageError, match="1 to 32"):
                await world.wait("work", *numbers)

    play(test)
