# SPDX-License-Identifier: LGPL-2.1-or-later
"""The log mediator's halves, and with them what all halves have alike, on real buses: lines of a cage that reach the
host's journal, and everything that a hostile cage half may try instead."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from cage_runtime.bucket import Rate
from cage_runtime.bus import Bus, Variant
from cage_runtime.errors import CageError, CutOff, PolicyRefused, RuntimeFailure, UsageError
from cage_runtime.journald import Journald
from mediators import cagehalf, corehalf, gateways, wire
from mediators.log import core, protocol
from mediators.log.cage import check

WORK, VAULT = "11111111-work", "22222222-vault"
NAMES = (wire.bus_name("log"), wire.path("log"), wire.bus_name("log"))


def fields(datagram: bytes) -> dict[str, str]:
    """As journald reads them, whose values all have their length before them."""
    found = {}
    while datagram:
        name, datagram = datagram.split(b"\n", 1)
        (length,) = struct.unpack("<Q", datagram[:8])
        found[name.decode()] = datagram[8 : 8 + length].decode()
        assert datagram[8 + length : 9 + length] == b"\n"
        datagram = datagram[9 + length :]
    return found


class World:
    """A stand-in caged that lets work write, the core half, a journal, and each cage's gateway."""

    def __init__(self, caged: Any, kit: Any, journal: socket.socket) -> None:
        self.caged, self.kit = caged, kit
        self._entries: asyncio.Queue[dict[str, str]] = asyncio.Queue()
        asyncio.get_running_loop().add_reader(journal, lambda: self._entries.put_nowait(fields(journal.recv(1 << 20))))
        self.clients: dict[str, Bus] = {}
        self.addresses: dict[str, str] = {}

    async def write(self, cage: str, *lines: str, **options: str) -> None:
        told = {name: Variant("s", value) for name, value in options.items()}
        await self.clients[cage].call(*NAMES, "Write", "asa{sv}", (list(lines), told), seconds=20)

    async def entry(self) -> dict[str, str]:
        return await asyncio.wait_for(self._entries.get(), 20)

    def messages(self) -> list[str]:
        """Of all entries that are there by now."""
        return [self._entries.get_nowait()["MESSAGE"] for _ in range(self._entries.qsize())]

    def asks_for_ever(self) -> asyncio.Event:
        """From now on nobody answers; set once somebody is asked."""
        asked = asyncio.Event()

        async def never(_call: Any) -> Any:
            asked.set()
            await asyncio.Event().wait()

        self.caged._confirm = never
        self.caged._serve()
        return asked

    async def refused(self, cage: str, *lines: str, **options: str) -> CageError:
        with pytest.raises(CageError) as refused:
            await self.write(cage, *lines, **options)
        return refused.value


Test = Callable[[World], Coroutine[Any, Any, None]]
Play = Callable[[Test], None]


@pytest.fixture
def play(tmp_path: Path, start_gateway: Callable[[str], Any], system_bus: Any, kit: Any) -> Play:
    del system_bus

    @contextlib.asynccontextmanager
    async def world() -> AsyncIterator[World]:
        caged = await kit.caged.start(tmp_path / "homes")
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as journal:
            journal.bind(str(tmp_path / "journal"))
            here = World(caged, kit, journal)
            for name, uuid in (("work", WORK), ("vault", VAULT)):
                here.addresses[name] = start_gateway(name).address
                caged.add(name, uuid, here.addresses[name])
                here.clients[name] = await kit.client(here.addresses[name])
            caged.allowed[WORK, "@core"] = ""
            await caged.appear()
            ledger = core.Ledger(Journald(str(tmp_path / "journal")))
            serving = asyncio.ensure_future(corehalf.serve_until_bus_ends(
                "log", protocol.SERVICE, lambda it: {"Write": core.LogCore(it, ledger).write}, left=ledger.left))
            try:
                for connection in here.clients.values():
                    await kit.present(connection, NAMES[0])
                yield here
            finally:
                asyncio.get_running_loop().remove_reader(journal)
                serving.cancel()
                await asyncio.gather(serving, return_exceptions=True)
                for bus in (caged.bus, *here.clients.values()):
                    bus.disconnect()

    plays: Play = kit.plays(world)
    return plays


def test_a_line_is_in_the_journal_as_the_cage_s(play: Play) -> None:
    async def test(world: World) -> None:
        await world.write("work", "the backup is done", tag="backup", priority="notice")
        assert await world.entry() == {
            "MESSAGE": "backup: the backup is done", "PRIORITY": "5", "SYSLOG_IDENTIFIER": "cage-work", "CAGE": "work",
            "CAGE_UUID": WORK, "CAGE_TAG": "backup"}
        source, name, target, service, details = world.caged.records.get_nowait()
        assert (source, name, target, service) == (WORK, "work", "@core", "log.Write")
        assert details["outcome"] == "1 of 1 lines are written"
        assert [asked[1] for asked in world.caged.asked] == ["log.Write"] * 2

    play(test)


def test_no_line_reaches_out_of_its_place(play: Play) -> None:
    """M80, M81, M83: what looks like fields, lines and terminals' commands is text."""
    hostile = [
        "x\nCAGE=vault\nPRIORITY=0", "\r\x1b[2Jgone", "\x1b]8;;http://example.org\x07link\x1b]8;;\x07",
        "\x1bP1;2|q\x1b\\", "\x1b]52;c;aGVsbG8=\x07",
        "\x9b31mred", "a\u202egnp.exe", "\u2028second", "back\b\bslash \\n", "CAGE=vault",
    ]

    async def test(world: World) -> None:
        await world.write("work", *hostile)
        shown = [await world.entry() for _ in hostile]
        assert {(entry["CAGE"], entry["CAGE_UUID"], entry["PRIORITY"]) for entry in shown} == {("work", WORK, "6")}
        assert all(entry["MESSAGE"].isprintable() for entry in shown)
        assert shown[0]["MESSAGE"] == "x\\nCAGE=vault\\nPRIORITY=0"
        assert not {"\n", "\r", "\x1b", "\x9b", "\u202e"} & set("".join(entry["MESSAGE"] for entry in shown))

    play(test)


@pytest.mark.parametrize(("lines", "options", "why"), [
    ([], {}, "writes 1 to 32 lines, not 0"),
    (["x"] * (protocol.LINES_MAX + 1), {}, "writes 1 to 32 lines, not 33"),
    (["x" * (protocol.LINE_CHARACTERS_MAX + 1)], {}, "at most 2000 characters"),
    (["x" * 1000] * 17, {}, "at most 16000 characters"),
    (["x"], {"priority": "emerg"}, '"emerg" is no priority'),
    (["x"], {"priority": ""}, "is no priority"),
    (["x"], {"tag": ""}, "is no tag"), (["x"], {"tag": "a" * 33}, "is no tag"), (["x"], {"tag": "sshd\n"}, "is no tag"),
    (["x"], {"tag": "a b"}, "is no tag"), (["x"], {"source": "vault"}, 'no option "source"'),
    (["x"], {"CAGE": "vault"}, 'no option "CAGE"'),
])
def test_what_is_too_much_is_refused_and_recorded(play: Play, lines: list[str], options: dict[str, str],
                                                   why: str) -> None:
    """M2, M12: nothing of it is decided or written."""

    async def test(world: World) -> None:
        refused = await world.refused("work", *lines, **options)
        assert isinstance(refused, UsageError)
        assert why in refused.sentence
        source, name, service, fault = await asyncio.wait_for(world.caged.malformed.get(), 20)
        assert (source, name, service, fault) == (WORK, "work", "log.Write", refused.sentence)
        assert world.caged.asked == []
        assert world.messages() == []

    play(test)


def test_what_is_just_not_too_much_goes(play: Play) -> None:
    async def test(world: World) -> None:
        await world.write("work", *["x" * 500] * protocol.LINES_MAX)
        await world.write("work", "x" * protocol.LINE_CHARACTERS_MAX, tag="a" * 32)
        await world.write("work", "")
        assert [await world.entry() for _ in range(protocol.LINES_MAX + 2)]
        assert world.messages() == []

    play(test)


def test_whom_the_policy_does_not_let_writes_nothing(play: Play) -> None:
    async def test(world: World) -> None:
        assert isinstance(await world.refused("vault", "x"), PolicyRefused)
        assert world.messages() == []

    play(test)


def test_what_cannot_be_recorded_is_not_written(play: Play) -> None:
    async def test(world: World) -> None:
        world.caged.full = True
        assert "the chain takes nothing" in (await world.refused("work", "x")).sentence
        assert world.messages() == []

    play(test)


def test_what_is_beyond_a_cage_s_share_is_left_out_and_counted(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    """M82: the flood ends where the share does, the journal says what is missing, and another cage has its own."""
    monkeypatch.setattr(core, "LINES", Rate(burst=40, per_second=0.001))
    monkeypatch.setattr(core, "LOG_GAP_SECONDS", 0.0)

    async def test(world: World) -> None:
        world.caged.allowed[VAULT, "@core"] = ""
        await world.write("work", *["x"] * 32)
        await world.write("work", *["y"] * 32)
        gap = [await world.entry() for _ in range(41)][-1]
        assert gap["MESSAGE"] == "24 messages were left out, because this cage writes more than its share"
        assert (gap["LEFT_OUT"], gap["CAGE"], gap["PRIORITY"]) == ("24", "work", "4")
        await world.write("work", "z")
        assert (await world.entry())["LEFT_OUT"] == "1"
        await world.write("vault", "heard")
        assert (await world.entry())["MESSAGE"] == "heard"

    play(test)


def test_the_gap_of_a_cage_that_ends_is_told_at_its_end(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core, "LINES", Rate(burst=1, per_second=0.001))

    async def test(world: World) -> None:
        await world.write("work", "x", "y", "z")
        assert (await world.entry())["MESSAGE"] == "x"
        assert world.messages() == []
        world.caged.bus.emit("/org/cageruntime/Core1", wire.MEDIATION, "GatewayDown", "s", (WORK,),
                             to=world.caged.mediator.result())
        assert (await world.entry())["LEFT_OUT"] == "2"

    play(test)


def test_a_journal_that_takes_nothing_is_told_later_what_it_missed(monkeypatch: pytest.MonkeyPatch, kit: Any) -> None:
    monkeypatch.setattr(core, "LOG_GAP_SECONDS", 0.0)
    monkeypatch.setattr(core, "LOG_JOURNAL_SECONDS", 0.0)
    told: list[dict[str, str]] = []

    class Full:
        answers = iter([True, False, False, True])

        def send(self, entry: dict[str, str]) -> bool:
            told.append(entry)
            return next(self.answers)

    async def test() -> None:
        ledger = core.Ledger(Full())  # type: ignore[arg-type]
        book = ledger.book(wire.Gateway(name="work", uuid=WORK, address=""))
        await ledger.write(book, protocol.Entries(untrusted_lines=["a", "b"], priority=6, tag=""), 2)
        await kit.until(lambda: len(told) == 4)
        assert [entry["MESSAGE"][:2] for entry in told] == ["a", "b", "1 ", "1 "]
        assert book.left_out == 0

    asyncio.run(test())


def test_calls_of_a_cage_wait_for_their_turn(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not use up what caged decides for the cage in a second."""
    monkeypatch.setattr(core, "CALLS", Rate(burst=2, per_second=10.0))

    async def test(world: World) -> None:
        loop = asyncio.get_running_loop()
        before = loop.time()
        await asyncio.gather(*(world.write("work", str(number)) for number in range(5)))
        assert loop.time() - before >= 0.29
        assert world.messages() == ["0", "1", "2", "3", "4"]

    play(test)


# --- what all core halves have alike -----------------------------------------------------------------------------
def test_a_cage_has_its_share_of_a_core_half_and_no_more(play: Play) -> None:
    """M13: one more than its share is refused at once, and another cage's call is answered meanwhile."""

    async def test(world: World) -> None:
        world.caged.allowed[VAULT, "@core"] = ""
        for_ever = asyncio.Event()
        mediate = world.caged._confirm

        async def slow(call: Any) -> Any:
            if call.arguments[0] == WORK:
                await for_ever.wait()
            return await mediate(call)

        world.caged._confirm = slow
        world.caged._serve()
        waiting = [asyncio.ensure_future(world.write("work", "x")) for _ in range(8)]
        await world.kit.until(lambda: any(asked[0] == WORK for asked in world.caged.asked))
        assert "8 requests of this cage are under way" in (await world.refused("work", "x")).sentence
        await world.write("vault", "heard")
        assert (await world.entry())["MESSAGE"] == "heard"
        for_ever.set()
        await asyncio.gather(*waiting)

    play(test)


@pytest.mark.parametrize(("member", "signature", "arguments"), [
    ("Write", "as", (["x"],)), ("Write", "s", ("x",)), ("Write", "", ()),
])
def test_what_no_honest_cage_half_says_closes_the_cage_s_channel_and_no_other(
        play: Play, monkeypatch: pytest.MonkeyPatch, member: str, signature: str, arguments: tuple[Any, ...]) -> None:
    """M11: it is answered, recorded, what is under way for that cage is given up, and the mediator is away a while."""
    monkeypatch.setattr(gateways, "SHUT_OUT_SECONDS", 0.5)

    async def test(world: World) -> None:
        world.caged.allowed[VAULT, "@core"] = ""
        presence = wire.Presence(world.clients["work"], NAMES[0])
        await presence.follow()
        before = presence.owner
        assert before
        with pytest.raises(RuntimeFailure, match="takes the signature"):
            await world.clients["work"].call(*NAMES, member, signature, arguments)
        assert (await asyncio.wait_for(world.caged.malformed.get(), 20))[:3] == [WORK, "work", "log.Write"]
        await world.kit.until(lambda: presence.owner == "")
        with pytest.raises(RuntimeFailure):
            await world.write("work", "x")
        await world.write("vault", "heard")
        assert (await world.entry())["MESSAGE"] == "heard"
        assert await presence.wait(20, but=before)
        await world.write("work", "again")
        assert (await world.entry())["MESSAGE"] == "again"

    play(test)


def test_a_closed_channel_gives_up_what_is_under_way_in_it(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateways, "SHUT_OUT_SECONDS", 0.0)

    async def test(world: World) -> None:
        asked = world.asks_for_ever()
        waiting = asyncio.ensure_future(world.write("work", "x"))
        await asyncio.wait_for(asked.wait(), 20)
        with pytest.raises(RuntimeFailure, match="takes the signature"):
            await world.clients["work"].call(*NAMES, "Write", "s", ("x",))
        with pytest.raises(CutOff):
            await waiting
        await world.kit.until(lambda: len(world.caged.withdrawn) == 1)
        assert world.messages() == []

    play(test)


# --- what all cage halves have alike -----------------------------------------------------------------------------
@contextlib.asynccontextmanager
async def cage_half(world: World, address: str, **options: Any) -> AsyncIterator[tuple[Bus, asyncio.Task[None]]]:
    """The cage half of work on a bus of its own, and a connection of an application to that."""
    gateway, own, application = (await world.kit.client(world.addresses["work"]), await Bus.connect(address),
                                 await Bus.connect(address))
    half = cagehalf.CageHalf("log", gateway, world.addresses["work"], checks={"Write": check}, **options)
    running = asyncio.ensure_future(half.run(own))
    try:
        await world.kit.present(application, NAMES[0])
        yield application, running
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        for bus in (gateway, own, application):
            bus.disconnect()


async def say(application: Bus, *lines: str) -> None:
    await application.call(*NAMES, "Write", "asa{sv}", (list(lines), {}), seconds=20)


def test_a_cage_half_passes_on_what_is_asked_of_it(play: Play, start_bus: Callable[..., Any]) -> None:
    async def test(world: World) -> None:
        async with cage_half(world, start_bus("cage").address) as (application, _running):
            await say(application, "from an application")
            assert (await world.entry())["MESSAGE"] == "from an application"
            del world.caged.allowed[WORK, "@core"]
            with pytest.raises(PolicyRefused, match="no rule allows"):
                await say(application, "x")

    play(test)


def test_a_cage_half_refuses_what_the_core_half_would_take_for_an_attack(play: Play,
                                                                         start_bus: Callable[..., Any]) -> None:
    """So nobody in the cage closes its channel by a mistake."""

    async def test(world: World) -> None:
        async with cage_half(world, start_bus("cage").address) as (application, _running):
            with pytest.raises(UsageError, match="writes 1 to 32 lines"):
                await say(application)
            for arguments in (("s", ("x",)), ("as", (["x"],))):
                with pytest.raises(RuntimeFailure, match="takes the signature"):
                    await application.call(*NAMES, "Write", *arguments)
            await say(application, "x")
        assert world.caged.malformed.empty()

    play(test)


def test_more_calls_than_the_core_half_takes_wait_in_the_cage(play: Play, start_bus: Callable[..., Any]) -> None:
    async def test(world: World) -> None:
        async with cage_half(world, start_bus("cage").address) as (application, _running):
            await asyncio.gather(*(say(application, str(number)) for number in range(20)))
            assert set(world.messages()) == {str(number) for number in range(20)}

    play(test)


def test_what_a_caller_asked_for_who_has_gone_is_given_up(play: Play, start_bus: Callable[..., Any]) -> None:
    async def test(world: World) -> None:
        asked = world.asks_for_ever()
        cage = start_bus("cage").address
        async with cage_half(world, cage) as (_application, _running):
            gone = await Bus.connect(cage)
            waiting = asyncio.ensure_future(say(gone, "x"))
            await asyncio.wait_for(asked.wait(), 20)
            gone.disconnect()
            with pytest.raises(CutOff):
                await waiting
            await world.kit.until(lambda: len(world.caged.withdrawn) == 1)

    play(test)


def test_a_cage_half_ends_when_nobody_has_asked_for_a_while(play: Play, start_bus: Callable[..., Any]) -> None:
    async def test(world: World) -> None:
        async with cage_half(world, start_bus("cage").address, idle_seconds=0.1) as (application, running):
            await say(application, "x")
            await asyncio.wait_for(running, 20)
            assert not await application.has_owner(NAMES[0])

    play(test)


def test_a_cage_half_says_that_the_core_half_is_not_there(play: Play, start_bus: Callable[..., Any],
                                                          start_gateway: Callable[[str], Any]) -> None:
    async def test(world: World) -> None:
        world.addresses["work"] = start_gateway("nobody").address
        async with cage_half(world, start_bus("cage").address, core_seconds=0.1) as (application, _running):
            with pytest.raises(RuntimeFailure, match="the core's log mediator is not running"):
                await say(application, "x")

    play(test)
