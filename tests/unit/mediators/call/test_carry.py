# SPDX-License-Identifier: LGPL-2.1-or-later
"""A call from its start to its end: it ends for the first reason that comes, says so, and leaves nothing."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
from array import array
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from cage_runtime.errors import RuntimeFailure
from cage_runtime.outcome import STATUS_BYTES_MAX
from mediators.call import carry
from mediators.call.carry import Bounds, Carried, Ends

BOUNDS = Bounds(bytes=1 << 20)


class Call:
    """A call under way, with a caller at its three pipes and a service at the others and the channel."""

    def __init__(self, bounds: Bounds) -> None:
        near, self.channel = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        near.setblocking(False)
        self.channel.setblocking(False)
        inward, self.stdin = os.pipe()
        self.stdout, outward = os.pipe()
        self.status, told = os.pipe()
        self.service_in, into = os.pipe()
        out_of, self.service_out = os.pipe()
        self.carried = Carried(near, Ends(inward=inward, outward=outward, status=told), into=into, out_of=out_of,
                               bounds=bounds)
        self.running = asyncio.ensure_future(self.carried.run())

    def close(self, *names: str) -> None:
        for name in names or ("stdin", "stdout", "status", "service_in", "service_out"):
            if (descriptor := getattr(self, name)) >= 0:
                os.close(descriptor)
            setattr(self, name, -1)

    def exit(self, status: int) -> None:
        self.channel.send(json.dumps({"event": "exit", "status": status}).encode())

    async def signalled(self) -> int:
        message = await asyncio.get_running_loop().sock_recv(self.channel, 4096)
        return int(json.loads(message)["signal"])

    def told(self) -> dict[str, Any]:
        """What the caller hears of the end."""
        answer: dict[str, Any] = json.loads(os.read(self.status, STATUS_BYTES_MAX + 1))
        assert os.read(self.status, 1) == b"", "one line, and then the end"
        return answer

    async def arrived(self, descriptor: int, size: int) -> bytes:
        return await asyncio.to_thread(os.read, descriptor, size)


def play(test: Callable[[Call], Coroutine[Any, Any, None]], bounds: Bounds = BOUNDS) -> None:
    async def whole() -> None:
        call = Call(bounds)
        try:
            async with asyncio.timeout(20):
                await test(call)
                await call.running
        finally:
            call.running.cancel()
            await asyncio.gather(call.running, return_exceptions=True)
            call.close()
            call.channel.close()

    before = set(os.listdir("/proc/self/fd"))
    asyncio.run(whole())
    assert set(os.listdir("/proc/self/fd")) == before


def test_bytes_go_both_ways_and_the_status_comes_back() -> None:
    async def test(call: Call) -> None:
        os.write(call.stdin, b"question")
        assert await call.arrived(call.service_in, 100) == b"question"
        os.write(call.service_out, b"answer")
        assert await call.arrived(call.stdout, 100) == b"answer"
        call.exit(3)
        outcome = await call.running
        assert (outcome.status, outcome.sentence) == (3, "")
        assert call.told() == {"status": 3}
        assert await call.arrived(call.stdout, 1) == b""
        assert (call.carried.inward.moved, call.carried.outward.moved) == (8, 6)

    play(test)


def test_each_way_ends_by_itself() -> None:
    """What `sort` needs: all of its input has gone before it says anything."""

    async def test(call: Call) -> None:
        os.write(call.stdin, b"all")
        call.close("stdin")
        assert await call.arrived(call.service_in, 100) == b"all"
        assert await call.arrived(call.service_in, 100) == b""
        os.write(call.service_out, b"sorted")
        assert await call.arrived(call.stdout, 100) == b"sorted"
        call.close("service_out")
        assert await call.arrived(call.stdout, 100) == b""
        assert not call.running.done()
        call.exit(0)

    play(test)


def test_a_service_that_takes_no_more_is_not_written_to() -> None:
    async def test(call: Call) -> None:
        call.close("service_in")
        while call.carried.inward.open:
            await asyncio.sleep(0)
        with pytest.raises(BrokenPipeError):
            os.write(call.stdin, b"x")
        assert not call.running.done()
        call.exit(0)

    play(test)


def test_what_the_service_wrote_before_it_ended_arrives() -> None:
    async def test(call: Call) -> None:
        os.write(call.service_out, b"x" * 60000)
        call.exit(0)  # a program that it left behind has its output still
        await call.running
        assert len(await call.arrived(call.stdout, 1 << 20)) == 60000
        assert call.told() == {"status": 0}

    play(test)


@pytest.mark.parametrize("whole", [True, False])
def test_a_caller_that_goes_ends_the_service(whole: bool) -> None:
    async def test(call: Call) -> None:
        if whole:
            call.close("stdin", "stdout")
        call.close("status")
        assert await call.signalled() == signal.SIGTERM
        call.exit(143)
        assert await call.running is carry.GONE

    play(test)


def test_one_that_does_not_end_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(carry, "GRACE_SECONDS", 0.05)

    async def test(call: Call) -> None:
        call.close("status")
        assert await call.signalled() == signal.SIGTERM
        assert await call.signalled() == signal.SIGKILL
        assert await call.running is carry.GONE, "and is not waited for for ever: its cage may stand still"

    play(test)


def test_more_than_the_policy_lets_through_is_the_end() -> None:
    async def test(call: Call) -> None:
        os.write(call.stdin, b"x" * 101)
        assert await call.signalled() == signal.SIGTERM
        call.exit(143)
        await call.running
        assert call.told() == {"status": 126, "sentence": carry.TOO_MUCH.sentence}
        assert await call.arrived(call.service_in, 200) == b""

    play(test, Bounds(bytes=100))


def test_more_of_an_answer_too() -> None:
    async def test(call: Call) -> None:
        os.write(call.service_out, b"x" * 101)
        assert await call.signalled() == signal.SIGTERM
        call.exit(143)
        assert await call.running is carry.TOO_MUCH
        assert await call.arrived(call.stdout, 200) == b""

    play(test, Bounds(bytes=100))


@pytest.mark.parametrize(("bounds", "sentence"), [
    (Bounds(bytes=100, seconds=0.1), "the call took longer than 0 s"),
    (Bounds(bytes=100, idle_seconds=0.1), "nothing was sent either way for 0 s"),
])
def test_a_call_has_its_time(bounds: Bounds, sentence: str) -> None:
    async def test(call: Call) -> None:
        assert await call.signalled() == signal.SIGTERM
        call.exit(0)
        await call.running
        assert call.told() == {"status": 125, "sentence": sentence}

    play(test, bounds)


def test_what_moves_is_not_idle() -> None:
    async def test(call: Call) -> None:
        for _ in range(8):
            os.write(call.stdin, b"x")
            assert await call.arrived(call.service_in, 1) == b"x"
            await asyncio.sleep(0.05)
        assert not call.running.done()
        call.exit(0)

    play(test, Bounds(bytes=100, idle_seconds=0.2))


def test_a_cage_that_stops_is_said_to() -> None:
    async def test(call: Call) -> None:
        call.channel.close()
        await call.running
        assert call.told() == {"status": 137, "sentence": carry.STOPPED.sentence}

    play(test)


@pytest.mark.parametrize("message", [
    b"{", b'{"event": "exit", "status": 256}', b'{"event": "exit", "status": -1}', b'{"event": "started"}', b"[]",
    b'{"event": "refused", "status": 1}', b"x" * 5000,
])
def test_a_cage_that_says_something_odd_gets_no_further(message: bytes) -> None:
    async def test(call: Call) -> None:
        call.channel.send(message)
        outcome = await call.running
        assert outcome.status in (125, 137)
        assert call.told()["status"] == outcome.status

    play(test)


def test_an_exit_with_descriptors_is_odd_and_they_are_closed() -> None:
    async def test(call: Call) -> None:
        read, write = os.pipe()
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", (read,)))]
        call.channel.sendmsg([b'{"event": "exit", "status": 0}'], ancillary)
        os.close(read)
        outcome = await call.running
        assert outcome.status == 125
        with pytest.raises(BrokenPipeError):
            os.write(write, b"x")
        os.close(write)

    play(test)


def started(message: bytes, *descriptors: int) -> int:
    """What `start` makes of it."""

    async def whole() -> int:
        near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        near.setblocking(False)
        with near, far, contextlib.ExitStack() as held:
            ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", descriptors))] if descriptors else []
            if message:
                far.sendmsg([message], ancillary)
            else:
                far.close()
            return await carry.start(near, held)

    return asyncio.run(whole())


def test_a_service_that_has_started_gives_its_output() -> None:
    read, write = os.pipe()
    got = started(b'{"event": "started"}', read)
    os.write(write, b"x")
    assert os.read(got, 1) == b"x"
    for descriptor in (read, write, got):
        os.close(descriptor)


@pytest.mark.parametrize("message", [
    b"", b'{"event": "refused", "status": 125}', b'{"event": "exit", "status": 0}', b'{"event": "started"}', b"{"])
def test_one_that_has_not_is_a_failure(message: bytes) -> None:
    with pytest.raises(RuntimeFailure):
        started(message)


def test_what_is_no_pipe_is_no_output() -> None:
    directory = os.open("/", os.O_RDONLY)
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(RuntimeFailure):
        started(b'{"event": "started"}', directory)
    assert set(os.listdir("/proc/self/fd")) == before
    os.close(directory)
