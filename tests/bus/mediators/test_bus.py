# SPDX-License-Identifier: LGPL-2.1-or-later
"""The bus adapter against a bus that answers when and as it likes: no reply takes or leaves what is another's.

The far end here is a socket, played in the same loop: so what comes in one piece with what is certain.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import gc
import itertools
import os
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from jeepney import HeaderFields, Message, MessageType
from jeepney.low_level import Endianness, Header, MessageFlag

from cage_runtime.bus import DBUS, Answer, Bus, Call, Service
from cage_runtime.errors import NotAuthorized, PolicyRefused, RuntimeFailure, UsageError
from mediators import wire

OURS = ":1.7"
WHERE = ("org.example.There", "/there", "org.example.There")


class FarEnd:
    """A bus daemon, as far as one connection can tell."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._serials = itertools.count(100)

    async def greet(self) -> None:
        loop = asyncio.get_running_loop()
        for expected, answer in ((b"AUTH", b"OK 1234\r\n"), (b"NEGOTIATE_UNIX_FD", b"AGREE_UNIX_FD\r\n")):
            while expected not in await loop.sock_recv(self._end, 4096):
                continue
            await loop.sock_sendall(self._end, answer)
        while b"Hello" not in await loop.sock_recv(self._end, 4096):
            continue
        self.say(MessageType.method_return, reply_serial=1, signature="s", body=(OURS,))

    def say(self, kind: MessageType, *descriptors: int, sender: str = ":1.8", signature: str = "",
            body: tuple[Any, ...] = (), **fields: Any) -> None:
        named = {HeaderFields[name]: value for name, value in fields.items()}
        if signature:
            named[HeaderFields.signature] = signature
        named |= {HeaderFields.sender: sender, HeaderFields.destination: OURS}
        rights = array.array("i")
        header = Header(Endianness.little, kind, MessageFlag(0), 1, -1, next(self._serials), named)
        content = Message(header, body).serialise(fds=rights)
        assert list(rights) == list(descriptors)
        self._end.sendmsg([content], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)] if rights else [])

    def answer(self, serial: int, *descriptors: int) -> None:
        self.say(MessageType.method_return, *descriptors, reply_serial=serial,
                 signature="h" * len(descriptors), body=descriptors)

    def refuse(self, serial: int, name: str = "org.cageruntime.Error.PolicyRefused", **more: Any) -> None:
        self.say(MessageType.error, reply_serial=serial, error_name=name, signature="s", body=("no",), **more)

    def cancel(self) -> None:
        self.say(MessageType.signal, path="/x", interface="org.example.X", member="Cancel")

    def close(self) -> None:
        self._end.close()


@contextlib.asynccontextmanager
async def connected(folder: Path) -> AsyncIterator[tuple[Bus, FarEnd]]:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(f"{folder}/bus")
        listening.listen()
        listening.setblocking(False)
        connecting = asyncio.ensure_future(Bus.connect(f"unix:path={folder}/bus"))
        end, _ = await asyncio.get_running_loop().sock_accept(listening)
        far = FarEnd(end)
        await far.greet()
        bus = await connecting
        try:
            yield bus, far
        finally:
            bus.disconnect()
            far.close()


Play = Callable[[Callable[[Bus, FarEnd], Coroutine[Any, Any, None]]], None]


@pytest.fixture
def play(tmp_path: Path) -> Play:
    def run(test: Callable[[Bus, FarEnd], Coroutine[Any, Any, None]]) -> None:
        async def whole() -> None:
            async with connected(tmp_path) as (bus, far):
                before = set(os.listdir("/proc/self/fd"))
                await test(bus, far)
                gc.collect()
                assert set(os.listdir("/proc/self/fd")) <= before

        asyncio.run(whole())

    return run


async def asked(bus: Bus, number: int = 1) -> tuple[list[asyncio.Task[Answer]], list[int]]:
    """So many calls that have gone out, and their serials."""
    tasks = [asyncio.ensure_future(bus.call(*WHERE, "Do", seconds=20)) for _ in range(number)]
    await asyncio.sleep(0)
    return tasks, list(bus._replies)


async def end_of(pipe: int) -> None:
    """Until nobody holds the other end any more."""
    ended = asyncio.Event()
    asyncio.get_running_loop().add_reader(pipe, ended.set)
    async with asyncio.timeout(20):
        await ended.wait()
    asyncio.get_running_loop().remove_reader(pipe)
    assert os.read(pipe, 1) == b""
    os.close(pipe)


def test_a_refusal_does_not_take_the_descriptors_of_the_reply_behind_it(play: Play) -> None:
    async def test(bus: Bus, far: FarEnd) -> None:
        (refused, answered), serials = await asked(bus, 2)
        near, sent = os.pipe()
        far.refuse(serials[0])
        far.answer(serials[1], sent)
        os.close(sent)
        with pytest.raises(PolicyRefused):
            await refused
        (received,) = (await answered).descriptors
        assert os.write(received, b"x") == 1
        assert not os.get_inheritable(received)
        os.close(received)
        os.close(near)

    play(test)


def test_a_reply_that_comes_too_late_leaves_no_descriptor(play: Play) -> None:
    async def test(bus: Bus, far: FarEnd) -> None:
        near, sent = os.pipe()
        call = asyncio.ensure_future(bus.call(*WHERE, "Do", seconds=0.05))
        await asyncio.sleep(0)
        (serial,) = bus._replies
        with pytest.raises(RuntimeFailure, match=r"org.example.There did not answer Do within 0 s"):
            await call
        far.answer(serial, sent)
        os.close(sent)
        await end_of(near)

    play(test)


def test_a_reply_that_comes_as_its_call_is_cancelled_leaves_no_descriptor(play: Play) -> None:
    """The reply is there, and whoever waits for it has not had its turn yet."""

    async def test(bus: Bus, far: FarEnd) -> None:
        near, sent = os.pipe()
        (call,), (serial,) = await asked(bus)
        bus.listen(lambda _signal: call.cancel() and None)
        far.answer(serial, sent)
        far.cancel()
        os.close(sent)
        with pytest.raises(asyncio.CancelledError):
            await call
        await end_of(near)

    play(test)


def test_a_second_reply_and_one_that_nobody_asked_for_leave_none(play: Play) -> None:
    async def test(bus: Bus, far: FarEnd) -> None:
        (call,), (serial,) = await asked(bus)
        ends = []
        for number in (serial, serial, 4711):
            near, sent = os.pipe()
            far.answer(number, sent)
            os.close(sent)
            ends.append(near)
        (received,) = (await call).descriptors
        os.close(received)
        for near in ends:
            await end_of(near)

    play(test)


def test_what_is_sent_is_what_was_handed_over_however_long_that_takes(play: Play) -> None:
    """The far end does not read; the call is given up; its descriptor's number is another file's by then."""

    async def test(bus: Bus, far: FarEnd) -> None:
        fill = [asyncio.ensure_future(bus.call(*WHERE, "Do", "s", ("x" * 65536,), seconds=20)) for _ in range(40)]
        near, handed = os.pipe()
        call = asyncio.ensure_future(bus.call(*WHERE, "Take", "h", (0,), (handed,), seconds=20))
        await asyncio.sleep(0)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        os.close(handed)
        other = os.open("/dev/null", os.O_RDONLY)
        assert other == handed
        received = await taken(far)
        assert os.fstat(received).st_ino == os.fstat(near).st_ino
        for descriptor in (received, other, near):
            os.close(descriptor)
        for task in fill:
            task.cancel()
        await asyncio.gather(*fill, return_exceptions=True)

    play(test)


async def taken(far: FarEnd) -> int:
    """The first descriptor that arrives."""
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(far._end, readable.set)
    try:
        async with asyncio.timeout(20):
            while True:
                await readable.wait()
                readable.clear()
                with contextlib.suppress(BlockingIOError):
                    while True:
                        _, ancillary, _, _ = far._end.recvmsg(65536, 64)
                        for _, _, content in ancillary:
                            return array.array("i", content)[0]
    finally:
        loop.remove_reader(far._end)


def test_a_bus_that_ends_ends_what_waits_for_it(play: Play) -> None:
    async def test(bus: Bus, far: FarEnd) -> None:
        (call,), _ = await asked(bus)
        far.close()
        with pytest.raises(RuntimeFailure, match=r"the bus went away while org.example.There was asked for Do"):
            await call
        await bus.closed()
        with pytest.raises(RuntimeFailure, match="the bus went away"):
            await bus.call(*WHERE, "Do")

    play(test)


BUS_ERROR = "org.freedesktop.DBus.Error"
ABSENT = "nobody answers to org.example.There: it is not running, or just being started again; try again"


@pytest.mark.parametrize(
    ("name", "sender", "says"),
    [
        (f"{BUS_ERROR}.ServiceUnknown", DBUS[0], ABSENT),
        (f"{BUS_ERROR}.NameHasNoOwner", DBUS[0], ABSENT),
        (f"{BUS_ERROR}.NoReply", DBUS[0], "org.example.There ended before it answered; try again"),
        (f"{BUS_ERROR}.ServiceUnknown", ":1.8", "no"),
    ],
)
def test_what_the_bus_itself_says_is_said_for_a_person(play: Play, name: str, sender: str, says: str) -> None:
    async def test(bus: Bus, far: FarEnd) -> None:
        (call,), (serial,) = await asked(bus)
        far.refuse(serial, name, sender=sender)
        with pytest.raises(RuntimeFailure) as failed:
            await call
        assert failed.value.sentence == says

    play(test)


def test_a_name_that_the_bus_does_not_know_is_the_one_that_was_asked_about(play: Play) -> None:
    async def test(bus: Bus, far: FarEnd) -> None:
        call = asyncio.ensure_future(bus.uid_of(":1.5"))
        await asyncio.sleep(0)
        far.refuse(*bus._replies, f"{BUS_ERROR}.NameHasNoOwner", sender=DBUS[0])
        with pytest.raises(RuntimeFailure, match=r"nobody answers to :1\.5: "):
            await call

    play(test)


# --- serving -----------------------------------------------------------------------------------------------------
PATH, FILES = "/org/cageruntime/Files1", "org.cageruntime.Files1"


def serve(bus: Bus, handler: Callable[[Call], Coroutine[Any, Any, Answer]]) -> None:
    bus.serve(PATH, Service(interface=wire.interface("files"), handlers={"Send": handler}))


def send(far: FarEnd, descriptor: int, signature: str = "ssha{sv}") -> None:
    body = ("vault", "x", descriptor, {})[: 4 if "a" in signature else 3]
    far.say(MessageType.method_call, descriptor, path=PATH, interface=FILES, member="Send", signature=signature,
            body=body)


@pytest.mark.parametrize("begun", [True, False])
def test_what_is_done_for_a_caller_that_leaves_is_cancelled(play: Play, begun: bool) -> None:
    """Also where the call and the leaving come in one piece."""

    async def test(bus: Bus, far: FarEnd) -> None:
        ends: list[str] = []

        async def handler(call: Call) -> Answer:
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                ends.append(call.sender)
            return Answer()

        serve(bus, handler)
        following = asyncio.ensure_future(bus.follow_callers())
        await asyncio.sleep(0)
        far.answer(*bus._replies)
        await following
        near, sent = os.pipe()
        send(far, sent)
        os.close(sent)
        while begun and not bus._tasks:
            await asyncio.sleep(0)
        for gone in (":1.9", ":1.8"):
            far.say(MessageType.signal, sender=DBUS[0], path=DBUS[1], interface=DBUS[2], member="NameOwnerChanged",
                    signature="sss", body=(gone, gone, ""))
        await end_of(near)
        assert ends == [":1.8"]

    play(test)


def test_what_is_malformed_is_told_before_it_is_refused(play: Play) -> None:
    async def test(bus: Bus, far: FarEnd) -> None:
        told: asyncio.Queue[str] = asyncio.Queue()

        async def handler(_call: Call) -> Answer:
            raise PolicyRefused("no")

        async def malformed(error: UsageError) -> None:
            told.put_nowait(error.sentence)

        serve(bus, handler)
        bus.malformed = malformed
        for signature in ("ssha{sv}", "ssh"):
            with open(os.devnull, "rb") as file:
                send(far, file.fileno(), signature)
        async with asyncio.timeout(20):
            assert await told.get() == 'Send takes the signature "ssha{sv}", not "ssh"'
        assert told.empty()

    play(test)


@pytest.mark.parametrize(
    ("interface", "member", "signature", "body", "open_to_all"),
    [
        ("org.freedesktop.DBus.Properties", "Get", "ss", (FILES, "X"), False),
        ("org.freedesktop.DBus.Properties", "GetAll", "s", (FILES,), False),
        ("org.freedesktop.DBus.ObjectManager", "GetManagedObjects", "", (), False),
        ("org.freedesktop.DBus.Introspectable", "Introspect", "", (), True),
        ("org.freedesktop.DBus.Peer", "Ping", "", (), True),
    ],
)
def test_whoever_may_see_nothing_is_told_so_and_may_ping_and_introspect(
    play: Play, interface: str, member: str, signature: str, body: tuple[str, ...], open_to_all: bool
) -> None:
    async def test(bus: Bus, far: FarEnd) -> None:
        heard: list[Call] = []

        async def sight(call: Call) -> Callable[[str, int], bool]:
            heard.append(call)
            raise NotAuthorized("not for you")

        async def handler(_call: Call) -> Answer:
            return Answer()

        serve(bus, handler)
        bus.manage(PATH)
        bus.see_by(sight)
        far.say(MessageType.method_call, path=PATH, interface=interface, member=member, signature=signature, body=body)
        reply = await asyncio.get_running_loop().sock_recv(far._end, 65536)
        assert (b"NotAuthorized" in reply) is not open_to_all
        assert [call.member for call in heard] == [member]

    play(test)


def test_nobody_hears_a_signal_before_there_is_a_name_that_policy_knows(play: Play) -> None:
    async def test(bus: Bus, far: FarEnd) -> None:
        bus.emit("/x", "org.example.X", "Early", "", ())
        owning = asyncio.ensure_future(bus.own("org.example.X"))
        await asyncio.sleep(0)
        request = await asyncio.get_running_loop().sock_recv(far._end, 65536)
        assert b"RequestName" in request
        assert b"Early" not in request
        far.say(MessageType.method_return, reply_serial=serial_of(request), signature="u", body=(1,))
        await owning
        bus.emit("/x", "org.example.X", "Now", "", (), to=":1.9")
        signal = await asyncio.get_running_loop().sock_recv(far._end, 65536)
        assert b"Now" in signal
        assert b":1.9" in signal

    play(test)


def serial_of(message: bytes) -> int:
    return int.from_bytes(message[8:12], "little")
