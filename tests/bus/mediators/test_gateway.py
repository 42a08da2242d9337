# SPDX-License-Identifier: LGPL-2.1-or-later
"""The gateway's configuration in a real dbus-daemon: what a cage may say there, and what not (M90)."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from dbus_fast import Message
from dbus_next import Message as NextMessage
from dbus_next.aio import MessageBus as NextBus
from dbus_next.auth import AuthExternal

from cage_runtime import generate
from cage_runtime.bus import DBUS, Answer, Bus, Call, Service
from cage_runtime.errors import RuntimeFailure
from mediators import wire
from mediators.files import protocol

FILES = (protocol.BUS_NAME, protocol.PATH, protocol.INTERFACE)
SENT = ("ssha{sv}", ("vault", "x", 0, {}))


class Wall:
    """A gateway with a core half on one side and two connections of the cage on the other."""

    def __init__(self, address: str, core: Bus, cage: Bus, other: Bus) -> None:
        self.address, self.core, self.cage, self.other = address, core, cage, other
        self.heard: list[Call] = []

    async def answer(self, call: Call) -> Answer:
        self.heard.append(call)
        return Answer(values=("Inbox/work/x",))


@pytest.fixture
def play(start_gateway: Any, kit: Any) -> Callable[[Callable[[Wall], Coroutine[Any, Any, None]]], None]:
    def run(test: Callable[[Wall], Coroutine[Any, Any, None]]) -> None:
        async def whole() -> None:
            address = start_gateway("work").address
            wall = Wall(address, await Bus.connect(address), await kit.client(address), await kit.client(address))
            interface = wire.interface("files")
            wall.core.serve(protocol.PATH, Service(interface=interface, handlers={"Send": wall.answer}))
            await wall.core.own(protocol.BUS_NAME)
            await test(wall)
            for bus in (wall.core, wall.cage, wall.other):
                bus.disconnect()

        asyncio.run(whole())

    return run


Play = Callable[[Callable[[Wall], Coroutine[Any, Any, None]]], None]


def test_a_cage_may_send_and_is_answered(play: Play) -> None:
    async def test(wall: Wall) -> None:
        descriptor = os.open("/dev/null", os.O_RDONLY)
        answer = await wall.cage.call(*FILES, "Send", *SENT, (descriptor,))
        os.close(descriptor)
        assert answer.values == ("Inbox/work/x",)
        assert len(wall.heard) == 1

    play(test)


class _Anonymous(AuthExternal):
    """Which negotiates descriptors, as the library's own does not."""

    def _authentication_start(self, negotiate_unix_fd: bool = False) -> str:
        self.negotiate_unix_fd = negotiate_unix_fd
        return "AUTH ANONYMOUS"


def test_a_cage_may_send_with_another_library(play: Play) -> None:
    async def test(wall: Wall) -> None:
        bus = NextBus(bus_address=wall.address, auth=_Anonymous(), negotiate_unix_fd=True)
        await bus.connect()
        with open("/dev/null", "rb") as file:
            message = NextMessage(destination=FILES[0], path=FILES[1], interface=FILES[2], member="Send",
                                  signature=SENT[0], body=list(SENT[1]), unix_fds=[file.fileno()])
            reply = await bus.call(message)
        assert reply is not None
        assert (reply.signature, reply.body) == ("s", ["Inbox/work/x"])
        bus.disconnect()

    play(test)


DRIVER = DBUS[0]
REFUSED: dict[str, tuple[tuple[str, str, str], str, str, tuple[Any, ...]]] = {
    "own the mediator's name": (DBUS, "RequestName", "su", (protocol.BUS_NAME, 7)),
    "own another name": (DBUS, "RequestName", "su", ("org.example.X", 0)),
    "release a name": (DBUS, "ReleaseName", "s", (protocol.BUS_NAME,)),
    "list names": (DBUS, "ListNames", "", ()),
    "list activatable names": (DBUS, "ListActivatableNames", "", ()),
    "start a service": (DBUS, "StartServiceByName", "su", ("org.example.X", 0)),
    "change the environment": (DBUS, "UpdateActivationEnvironment", "a{ss}", ({"PATH": "/tmp"},)),
    "reload": (DBUS, "ReloadConfig", "", ()),
    "credentials": (DBUS, "GetConnectionCredentials", "s", (protocol.BUS_NAME,)),
    "machine id": ((DRIVER, DBUS[1], "org.freedesktop.DBus.Peer"), "GetMachineId", "", ()),
    "introspect the driver": ((DRIVER, DBUS[1], "org.freedesktop.DBus.Introspectable"), "Introspect", "", ()),
    "properties of the driver": ((DRIVER, DBUS[1], "org.freedesktop.DBus.Properties"), "GetAll", "s", (DRIVER,)),
    "monitor": ((DRIVER, DBUS[1], "org.freedesktop.DBus.Monitoring"), "BecomeMonitor", "asu", ([], 0)),
    "statistics": ((DRIVER, DBUS[1], "org.freedesktop.DBus.Debug.Stats"), "GetStats", "", ()),
    "another member": (FILES, "Cancel", "", ()),
    "another path": ((FILES[0], "/", FILES[2]), "Send", "", ()),
    "introspect": ((FILES[0], FILES[1], "org.freedesktop.DBus.Introspectable"), "Introspect", "", ()),
    "ping": ((FILES[0], FILES[1], "org.freedesktop.DBus.Peer"), "Ping", "", ()),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_cage_may_do_nothing_else(play: Play, what: str) -> None:
    where, member, signature, arguments = REFUSED[what]

    async def test(wall: Wall) -> None:
        with pytest.raises(RuntimeFailure, match=r"Rejected send message"):
            await wall.cage.call(*where, member, signature, arguments)
        assert wall.heard == []

    play(test)


def test_a_cages_connections_do_not_reach_each_other(play: Play) -> None:
    async def test(wall: Wall) -> None:
        with pytest.raises(RuntimeFailure, match="Rejected send message"):
            await wall.cage.call(str(wall.other._connection.unique_name), *FILES[1:], "Send", "s", ("x",))

    play(test)


def test_a_cage_does_not_overhear_what_another_connection_says(play: Play) -> None:
    async def test(wall: Wall) -> None:
        overheard: list[str] = []
        wall.other._connection.add_message_handler(lambda message: overheard.append(str(message.member)))
        with pytest.raises(RuntimeFailure, match="rejected attempt to call AddMatch"):
            await wall.other.match("eavesdrop='true'")
        await wall.other.match("type='method_call'")
        descriptor = os.open("/dev/null", os.O_RDONLY)
        await wall.cage.call(*FILES, "Send", *SENT, (descriptor,))
        os.close(descriptor)
        await wall.other.call(*DBUS, "NameHasOwner", "s", (FILES[0],))  # in order: all that came before is here
        assert "Send" not in overheard

    play(test)


def test_signals_from_a_cage_go_nowhere(play: Play) -> None:
    async def test(wall: Wall) -> None:
        heard: list[str] = []
        wall.core.listen(lambda message: heard.append(str(message.member)))
        await wall.core.match("type='signal'")
        await wall.cage._connection.send(Message.new_signal(protocol.PATH, protocol.INTERFACE, "Arrived", "s", ["x"]))
        await wall.cage.call(*DBUS, "NameHasOwner", "s", (FILES[0],))
        await wall.core.call(*DBUS, "NameHasOwner", "s", (FILES[0],))
        assert "Arrived" not in heard

    play(test)


@pytest.mark.parametrize(
    ("signature", "arguments", "descriptors"),
    [("hhhh", (0, 1, 2, 3), 4), ("s", ("x" * 40_000,), 0)],
    ids=["more descriptors than any mediator takes", "a long message"],
)
def test_what_exceeds_a_bound_ends_the_connection_that_sent_it(
    play: Play, signature: str, arguments: tuple[Any, ...], descriptors: int
) -> None:
    async def test(wall: Wall) -> None:
        opened = [os.open("/dev/null", os.O_RDONLY) for _ in range(descriptors)]
        sending = asyncio.ensure_future(wall.cage.call(*FILES, "Send", signature, arguments, tuple(opened)))
        async with asyncio.timeout(20):
            await wall.cage.closed()
        sending.cancel()
        for descriptor in opened:
            os.close(descriptor)
        assert wall.heard == []
        assert (await wall.other.call(*DBUS, "NameHasOwner", "s", (FILES[0],))).values == (True,)

    play(test)


def test_connections_have_a_bound(play: Play, kit: Any, tmp_path: Any) -> None:
    """For all mediators together, of which each has its part."""
    most = generate.CONNECTIONS + generate.CONNECTIONS_EACH * len(kit.mediators)

    async def test(_wall: Wall) -> None:
        connected = await asyncio.gather(
            *(kit.client(f"unix:path={tmp_path}/gateway-work") for _ in range(most + 4)), return_exceptions=True
        )
        more = [bus for bus in connected if isinstance(bus, Bus)]
        for bus in more:
            bus.disconnect()
        assert len(more) == most - 3

    play(test)
