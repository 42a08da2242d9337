# SPDX-License-Identifier: LGPL-2.1-or-later
"""A hostile cage half, raw on its gateway, against the names of all mediators (M2, M11, M90): what it sends that is no
call of theirs reaches no core half, and what it does to the bus is done to its own cage alone."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import socket
from array import array
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest
from jeepney import DBusAddress, HeaderFields, Message, MessageType, new_method_call, new_signal
from jeepney.low_level import Endianness, Header

from cage_runtime.bus import DBUS, Answer, Bus, Call, Service
from cage_runtime.errors import RuntimeFailure
from cage_runtime.model import CORE_PATH
from mediators import wire

SECONDS = 20.0


class Raw:
    """A connection that says whatever it is told to."""

    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(SECONDS)
        self.socket.connect(address.removeprefix("unix:path="))
        self.name = ""
        self._serial = 1

    def authenticate(self) -> Raw:
        self.socket.sendall(b"\0AUTH ANONYMOUS\r\n")
        assert self.socket.recv(4096).startswith(b"OK ")
        self.socket.sendall(b"NEGOTIATE_UNIX_FD\r\n")
        assert self.socket.recv(4096) == b"AGREE_UNIX_FD\r\n"
        self.socket.sendall(b"BEGIN\r\n")
        self.say(new_method_call(DBusAddress(DBUS[1], DBUS[0], DBUS[2]), "Hello"))
        assert self.socket.recv(4096)
        return self

    def say(self, message: Message) -> None:
        self.socket.sendall(message.serialise(self._serial))
        self._serial += 1

    def is_closed(self) -> bool:
        """Whether the bus ends it, before long."""
        with contextlib.suppress(ConnectionResetError):
            while self.socket.recv(65536):
                pass
        return True

    def close(self) -> None:
        self.socket.close()


class Wall:
    """The gateways of the cages work, which is hostile, and vault, with a core half of each mediator on both."""

    def __init__(self, kit: Any, addresses: dict[str, str]) -> None:
        self.kit, self.addresses = kit, addresses
        self.cores: dict[tuple[str, str], Bus] = {}
        self.heard: list[Call] = []
        self.arrived: list[str] = []
        """All that reached a core half and is not from the bus itself."""

    async def attend(self, cage: str, mediator: str) -> None:
        bus = await Bus.connect(self.addresses[cage])
        interface = wire.interface(mediator)
        members = [method.attrib["name"] for method in interface.findall("method")]
        bus.serve(wire.path(mediator), Service(interface=interface, handlers=dict.fromkeys(members, self._answer)))
        bus._connection._user_message_handlers.insert(0, self._look)  # before ours, which lets no call through
        await bus.follow_callers()
        await bus.own(wire.bus_name(mediator))
        self.cores[cage, mediator] = bus

    def _look(self, message: Any) -> None:
        if message.sender != DBUS[0]:
            self.arrived.append(f"{message.message_type.name} {message.member}")

    async def _answer(self, call: Call) -> Answer:
        self.heard.append(call)
        raise RuntimeFailure("heard")

    async def settled(self) -> None:
        """All that was sent to core halves before has been dealt with."""
        for bus in self.cores.values():
            await bus.call(*DBUS, "NameHasOwner", "s", (DBUS[0],))

    async def serves(self, cage: str) -> None:
        """Every mediator answers a call of an honest half of the cage."""
        client = await self.kit.client(self.addresses[cage])
        for mediator in self.kit.mediators:
            names = (mediator.bus_name, mediator.path, mediator.bus_name)
            with pytest.raises(RuntimeFailure, match=r"takes the signature|heard"):
                await client.call(*names, mediator.methods[0], seconds=SECONDS)
        client.disconnect()


Play = Callable[[Callable[[Wall], Coroutine[Any, Any, None]]], None]


@pytest.fixture
def play(start_gateway: Any, kit: Any) -> Play:
    @contextlib.asynccontextmanager
    async def wall() -> AsyncIterator[Wall]:
        here = Wall(kit, {name: start_gateway(name).address for name in ("work", "vault")})
        for cage in here.addresses:
            for mediator in kit.mediators:
                await here.attend(cage, mediator.name)
        try:
            yield here
        finally:
            for bus in here.cores.values():
                bus.disconnect()

    def run(test: Callable[[Wall], Coroutine[Any, Any, None]]) -> None:
        async def whole() -> None:
            async with wall() as here:
                await test(here)

        asyncio.run(whole())

    return run


def hostile(wall: Wall) -> Raw:
    return Raw(wall.addresses["work"]).authenticate()


def call(mediator: Any, member: str, signature: str | None = None, body: tuple[Any, ...] = ()) -> Message:
    return new_method_call(DBusAddress(mediator.path, mediator.bus_name, mediator.bus_name), member, signature, body)


def test_a_forged_sender_is_replaced(play: Play) -> None:
    """M2: who calls is what the bus says, on a bus that is one cage's."""

    async def test(wall: Wall) -> None:
        victim = str(wall.cores["work", "files"]._connection.unique_name)
        raw, asked = hostile(wall), 0
        for sender in (victim, DBUS[0], "org.cageruntime.Core1", ":9.9"):
            message = call(next(it for it in wall.kit.mediators if it.name == "log"), "Write", "asa{sv}", (["x"], {}))
            message.header.fields[HeaderFields.sender] = sender
            raw.say(message)
            asked += 1
        await wall.kit.until(lambda: len(wall.heard) == asked)
        senders = {call.sender for call in wall.heard}
        assert len(senders) == 1
        assert not senders & {victim, DBUS[0], "org.cageruntime.Core1", ":9.9"}
        raw.close()

    play(test)


def replies(destination: str) -> list[Message]:
    """Answers and errors to every serial that a core half may be waiting for, and more."""
    made = []
    for kind in (MessageType.method_return, MessageType.error):
        for serial in range(1, 65):
            fields: dict[HeaderFields, Any] = {HeaderFields.destination: destination, HeaderFields.reply_serial: serial}
            if kind is MessageType.error:
                fields[HeaderFields.error_name] = "org.cageruntime.Error.PolicyRefused"
            made.append(Message(Header(Endianness.little, kind, 1, 1, 0, 1, fields), ()))
    return made


def test_what_only_the_other_side_may_say_arrives_nowhere(play: Play) -> None:
    """M11: answers that nobody waits for, what caged says to mediators, and calls that core halves make."""

    async def test(wall: Wall) -> None:
        raw = hostile(wall)
        for mediator in wall.kit.mediators:
            core = str(wall.cores["work", mediator.name]._connection.unique_name)
            for message in replies(core):
                raw.say(message)
            for name in (core, mediator.bus_name, None):
                for member in ("GatewayUp", "GatewayDown", "Answered", "NameOwnerChanged"):
                    told = new_signal(DBusAddress(CORE_PATH, interface=wire.MEDIATION), member, "s", ("x",))
                    if name:
                        told.header.fields[HeaderFields.destination] = name
                    raw.say(told)
            for member in ("Decide", "Deliver", "Record"):
                raw.say(new_method_call(DBusAddress(CORE_PATH, mediator.bus_name, wire.MEDIATION), member))
        raw.say(new_method_call(DBusAddress(DBUS[1], DBUS[0], DBUS[2]), "NameHasOwner", "s", ("x",)))
        await asyncio.to_thread(raw.socket.recv, 1)
        await wall.settled()
        assert wall.arrived == []
        await wall.serves("work")
        raw.close()

    play(test)


@pytest.mark.parametrize("what", [
    "monitor", "eavesdrop", "own", "own queued", "own replacing", "release", "listen to all", "another's object",
])
def test_the_bus_lets_a_cage_do_nothing_to_a_mediator_s_name(play: Play, what: str) -> None:
    async def test(wall: Wall) -> None:
        client = await wall.kit.client(wall.addresses["work"])
        other = await wall.kit.client(wall.addresses["work"])
        for mediator in wall.kit.mediators:
            core = wall.cores["work", mediator.name]
            name, owner = mediator.bus_name, str(core._connection.unique_name)
            monitoring = (DBUS[0], DBUS[1], "org.freedesktop.DBus.Monitoring")
            attempts: dict[str, tuple[Any, ...]] = {
                "monitor": (*monitoring, "BecomeMonitor", "asu", ([f"sender='{name}'"], 0)),
                "eavesdrop": (*DBUS, "AddMatch", "s", (f"eavesdrop='true',destination='{name}'",)),
                "own": (*DBUS, "RequestName", "su", (name, 4)), "own queued": (*DBUS, "RequestName", "su", (name, 0)),
                "own replacing": (*DBUS, "RequestName", "su", (name, 2)),
                "release": (*DBUS, "ReleaseName", "s", (name,)),
                "listen to all": (*DBUS, "AddMatch", "s", ("eavesdrop=true",)),
                "another's object": (name, "/org/cageruntime/Other1", name, mediator.methods[0]),
            }
            with pytest.raises(RuntimeFailure, match=r"Rejected send message|rejected attempt to call AddMatch"):
                await client.call(*attempts[what], seconds=SECONDS)
            assert (await other.call(*DBUS, "GetNameOwner", "s", (name,))).values == (owner,)
        await wall.serves("work")
        client.disconnect()
        other.disconnect()

    play(test)


def test_a_core_half_makes_no_call_on_a_gateway(play: Play) -> None:
    """One that a cage has taken over would be that cage, or any other, to the mediators beside it."""

    async def test(wall: Wall) -> None:
        for mediator in wall.kit.mediators:
            core = wall.cores["vault", "log"]
            with pytest.raises(RuntimeFailure, match="Rejected send message"):
                await core.call(mediator.bus_name, mediator.path, mediator.bus_name, mediator.methods[0])
        assert wall.heard == []

    play(test)


def header_of(length: int) -> bytes:
    """The begin of a call whose body is said to have `length` bytes."""
    whole = bytearray(new_method_call(DBusAddress("/x", "org.cageruntime.Files1", "org.cageruntime.Files1"), "Send",
                                      "s", ("x",)).serialise(7))
    whole[4:8] = length.to_bytes(4, "little")
    return bytes(whole)


GARBAGE = {
    "noise": bytes(range(256)) * 4, "zeros": b"\0" * 64, "text": b"GET / HTTP/1.0\r\n\r\n",
    "another version": b"l\1\0\7" + b"\0" * 60, "no such type": b"l\x63\0\1" + b"\0" * 12,
    "128 MiB": header_of(128 << 20), "more than 128 MiB": header_of((128 << 20) + 1), "4 GiB": header_of(2**32 - 1),
    "a header of 4 GiB": b"l\1\0\1" + b"\0\0\0\0" + b"\1\0\0\0" + b"\xff\xff\xff\xff",
    "just too long": header_of(40_000),
}


@pytest.mark.parametrize("what", GARBAGE)
def test_garbage_ends_the_connection_that_sent_it_and_no_other(play: Play, what: str) -> None:
    async def test(wall: Wall) -> None:
        raw = hostile(wall)
        raw.socket.sendall(GARBAGE[what])
        assert await asyncio.to_thread(raw.is_closed)
        await wall.serves("work")
        await wall.serves("vault")

    play(test)


@pytest.mark.parametrize("count", [5, 17, 253])
def test_descriptors_that_no_message_may_have_end_the_connection(play: Play, count: int) -> None:
    async def test(wall: Wall) -> None:
        raw, opened = hostile(wall), [os.open("/dev/null", os.O_RDONLY) for _ in range(count)]
        told = header_of(4)
        raw.socket.sendmsg([told], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", opened))])
        for descriptor in opened:
            os.close(descriptor)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            raw.socket.sendall(told)
        assert await asyncio.to_thread(raw.is_closed)
        await wall.serves("work")

    play(test)


@pytest.mark.parametrize("begun", [b"", b"\0", b"\0AUTH ANONY", b"\0AUTH EXTERNAL 30\r\n", b"\0NEGOTIATE_UNIX_FD\r\n"])
def test_who_does_not_say_who_he_is_is_sent_away(play: Play, begun: bytes) -> None:
    """After five seconds; others are answered meanwhile."""

    async def test(wall: Wall) -> None:
        raw = Raw(wall.addresses["work"])
        raw.socket.sendall(begun)
        closing = asyncio.ensure_future(asyncio.to_thread(raw.is_closed))
        await wall.serves("work")
        assert await asyncio.wait_for(closing, SECONDS)
        raw.close()

    play(test)


def test_half_a_message_and_silence_hold_up_nobody(play: Play) -> None:
    async def test(wall: Wall) -> None:
        silent = [hostile(wall) for _ in range(8)]
        half = call(wall.kit.mediators[0], wall.kit.mediators[0].methods[0], "s", ("x" * 100,)).serialise(9)[:-50]
        for raw in silent:
            raw.socket.sendall(half)
        await wall.serves("work")
        await wall.serves("vault")
        for raw in silent:
            raw.close()
        honest = [f"METHOD_CALL {mediator.methods[0]}" for mediator in wall.kit.mediators]
        assert wall.arrived == honest * 2

    play(test)


def test_ten_thousand_connections_are_one_cage_s_trouble(play: Play) -> None:
    """Those of another cage are answered while they come, and the cage's own once they have gone."""

    async def test(wall: Wall) -> None:
        path = wall.addresses["work"].removeprefix("unix:path=")
        kept: deque[socket.socket] = deque()
        most = min(512, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)
        for number in range(10_000):
            one = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            with contextlib.suppress(BlockingIOError):
                one.connect(path)
                one.send(b"\0AUTH ANONYMOUS\r\nBEGIN\r\n")
            kept.append(one)
            if len(kept) > most:
                kept.popleft().close()
            if number % 2500 == 0:
                await wall.serves("vault")
        for one in kept:
            one.close()
        # Whoever blocks waits until the bus has taken those that came before.
        with socket.socket(socket.AF_UNIX) as last:
            await asyncio.wait_for(asyncio.to_thread(last.connect, path), SECONDS)
        await wall.serves("work")

    play(test)


def test_a_flood_on_one_gateway_is_not_felt_on_another(play: Play) -> None:
    """M13, as far as the bus goes: calls of one cage that nobody waits for."""

    async def test(wall: Wall) -> None:
        raw = hostile(wall)
        raw.socket.setblocking(False)
        flood = call(wall.kit.mediators[0], wall.kit.mediators[0].methods[0]).serialise(3) * 200
        loop = asyncio.get_running_loop()
        flooding = loop.create_task(loop.sock_sendall(raw.socket, flood * 20))
        draining = loop.create_task(_drain(raw.socket))
        for _ in range(5):
            await wall.serves("vault")
        flooding.cancel()
        draining.cancel()
        await asyncio.gather(flooding, draining, return_exceptions=True)
        raw.close()
        await wall.serves("work")

    play(test)


async def _drain(end: socket.socket) -> None:
    while await asyncio.get_running_loop().sock_recv(end, 65536):
        pass
