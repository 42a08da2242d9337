# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a core half does while a person is asked: it waits, holds no call open, and is gone when its caller is."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest

from cage_runtime.bus import Answer, Bus, Call, Service, Variant, described
from cage_runtime.errors import PolicyRefused, RuntimeFailure
from cage_runtime.model import CORE_BUS_NAME, CORE_CALLS_AT_ONCE, CORE_PATH, Action
from mediators import wire
from mediators.wire import Caged, What

pytestmark = pytest.mark.usefixtures("system_bus")
SOURCE = "11111111-work"
WORDS = ("target", "target-uuid", "source-name", "flow", "transform", "require", "log", "user", "ticket")
FLAGS = ("two-way", "one-way", "notify", "autostart")


class Asking:
    """A caged that has a person asked, and what it was told."""

    def __init__(self, bus: Bus) -> None:
        self.bus = bus
        self.calls: list[tuple[str, str]] = []
        self.says: dict[str, str] = {}
        """What is answered to a request: allow or deny; a person is asked until it is here."""
        self.sender = ""
        self.hold: asyncio.Event | None = None
        self.at_once = self.most = 0
        self.called = asyncio.Condition()
        handlers = {"Decide": self._decide, "Confirm": self._confirm, "Withdraw": self._withdraw}
        interface = described("org.cageruntime.Core1.xml", wire.MEDIATION)
        bus.serve(CORE_PATH, Service(interface=interface, handlers=handlers))

    async def _note(self, call: Call, request: str) -> None:
        self.sender = call.sender
        async with self.called:
            self.calls.append((call.member, request))
            self.called.notify_all()

    async def until(self, count: int, member: str) -> None:
        async with asyncio.timeout(20), self.called:
            await self.called.wait_for(lambda: [known for known, _ in self.calls].count(member) >= count)

    async def _decide(self, call: Call) -> Answer:
        await self._note(call, call.arguments[4])
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        if self.hold is not None:
            await self.hold.wait()
        self.at_once -= 1
        return self._permission("ask")

    async def _confirm(self, call: Call) -> Answer:
        request = call.arguments[4]
        await self._note(call, request)
        said = self.says.get(request, "ask")
        if said == "deny":
            raise PolicyRefused("a person refused it")
        return self._permission(said)

    async def _withdraw(self, call: Call) -> Answer:
        await self._note(call, call.arguments[0])
        return Answer()

    @staticmethod
    def _permission(action: str) -> Answer:
        return Answer(values=({
            **{key: Variant("s", "") for key in WORDS}, **{key: Variant("b", False) for key in FLAGS},
            "action": Variant("s", action), "max-size": Variant("t", 0), "max-files": Variant("u", 0),
            "types": Variant("as", []), "choices": Variant("as", []),
        },))

    def answered(self, request: str, *, sender: Bus | None = None) -> None:
        bus = self.bus if sender is None else sender
        bus.emit(CORE_PATH, wire.MEDIATION, "Answered", "s", (request,), to=self.sender)


@contextlib.asynccontextmanager
async def world() -> AsyncIterator[tuple[Asking, Caged]]:
    asking, bus = Asking(await Bus.connect()), await Bus.connect()
    await asking.bus.own(CORE_BUS_NAME)
    caged = Caged(bus)
    await caged.presence.follow()
    try:
        yield asking, caged
    finally:
        asking.bus.disconnect()
        bus.disconnect()


Test = Callable[[Asking, Caged], Coroutine[Any, Any, None]]


def play(test: Test) -> None:
    async def whole() -> None:
        async with world() as (asking, caged):
            await test(asking, caged)

    asyncio.run(whole())


async def confirming(caged: Caged, request: str) -> asyncio.Task[wire.Permission]:
    permission = await caged.decide(SOURCE, "files.Send", "", "vault", request)
    assert permission.action is Action.ASK
    return asyncio.ensure_future(caged.confirm(permission, What(size=1, lines=("x",))))


def test_it_waits_until_it_is_told_and_asks_again() -> None:
    async def test(asking: Asking, caged: Caged) -> None:
        first, second = await confirming(caged, "1" * 32), await confirming(caged, "2" * 32)
        await asking.until(2, "Confirm")
        asking.says = {"1" * 32: "allow", "2" * 32: "deny"}
        asking.answered("1" * 32)
        assert (await first).action is Action.ALLOW
        assert not second.done()
        asking.answered("2" * 32)
        with pytest.raises(PolicyRefused, match="a person refused it"):
            await second
        assert sorted(asking.calls) == sorted((member, digit * 32) for digit in "12" for member in (
            "Decide", "Confirm", "Confirm"))

    play(test)


def test_it_looks_as_often_as_it_is_told_to() -> None:
    """Where another policy asks anew, it is still waited for."""

    async def test(asking: Asking, caged: Caged) -> None:
        waiting = await confirming(caged, "1" * 32)
        for count in (1, 2, 3):
            await asking.until(count, "Confirm")
            asking.answered("1" * 32)
        await asking.until(4, "Confirm")
        asking.says["1" * 32] = "allow"
        asking.answered("1" * 32)
        await waiting

    play(test)


def test_what_waits_is_withdrawn_when_its_caller_is_gone() -> None:
    """M16."""

    async def test(asking: Asking, caged: Caged) -> None:
        waiting = await confirming(caged, "1" * 32)
        await asking.until(1, "Confirm")
        waiting.cancel()
        await asking.until(1, "Withdraw")
        assert asking.calls[-1] == ("Withdraw", "1" * 32)
        with pytest.raises(asyncio.CancelledError):
            await waiting

    play(test)


def test_another_caged_is_asked_anew() -> None:
    async def test(asking: Asking, caged: Caged) -> None:
        waiting = await confirming(caged, "1" * 32)
        await asking.until(1, "Confirm")
        asking.bus.disconnect()
        next_ = Asking(await Bus.connect())
        await next_.bus.own(CORE_BUS_NAME)
        await next_.until(1, "Confirm")
        next_.says["1" * 32] = "allow"
        next_.answered("1" * 32)
        await waiting
        next_.bus.disconnect()

    play(test)


def test_nobody_else_says_that_it_was_answered() -> None:
    async def test(asking: Asking, caged: Caged) -> None:
        waiting = await confirming(caged, "1" * 32)
        await asking.until(1, "Confirm")
        stranger = await Bus.connect()
        await stranger.own("org.example.Stranger")
        asking.says["1" * 32] = "allow"
        asking.answered("1" * 32, sender=stranger)
        with pytest.raises(RuntimeFailure, match="no object"):  # by when the signal has come
            await stranger.call(asking.sender, "/", "org.freedesktop.DBus.Peer", "Ping")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(waiting), 0.1)
        assert [member for member, _ in asking.calls] == ["Decide", "Confirm"]
        asking.answered("1" * 32)
        await waiting
        stranger.disconnect()

    play(test)


def test_no_more_calls_wait_at_once_than_the_bus_takes_and_none_is_refused() -> None:
    """dbus-daemon refuses a connection's 129th call without an answer."""

    async def test(asking: Asking, caged: Caged) -> None:
        asking.hold = asyncio.Event()
        calls = [asyncio.ensure_future(caged.decide(f"source-{number}", "files.Send", "", "vault", f"{number:032x}"))
                 for number in range(257)]
        await asking.until(CORE_CALLS_AT_ONCE, "Decide")
        asking.hold.set()
        await asyncio.gather(*calls)
        assert asking.most == CORE_CALLS_AT_ONCE

    play(test)


def test_a_source_that_asks_much_stands_in_its_own_way() -> None:
    """M13."""

    async def test(asking: Asking, caged: Caged) -> None:
        asking.hold = asyncio.Event()
        flood = [asyncio.ensure_future(caged.decide(SOURCE, "files.Send", "", "vault", f"{number:032x}"))
                 for number in range(257)]
        await asking.until(1, "Decide")
        other = asyncio.ensure_future(caged.decide("another", "files.Send", "", "vault", "f" * 32))
        await asking.until(2, "Decide")
        assert asking.calls[1] == ("Decide", "f" * 32)
        asking.hold.set()
        await asyncio.gather(other, *flood)
        assert asking.most == 2

    play(test)


def test_many_requests_wait_for_persons_and_hold_no_call_open() -> None:
    async def test(asking: Asking, caged: Caged) -> None:
        waiting = [await confirming(caged, f"{number:032x}") for number in range(200)]
        await asking.until(200, "Confirm")
        for number in range(200):
            asking.says[f"{number:032x}"] = "allow"
            asking.answered(f"{number:032x}")
        assert {permission.action for permission in await asyncio.gather(*waiting)} == {Action.ALLOW}

    play(test)
