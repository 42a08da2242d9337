# SPDX-License-Identifier: LGPL-2.1-or-later
"""One direction of a call: what goes in comes out, ends go both ways, and nothing is held but a chunk."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mediators.call import stream
from mediators.call.stream import CHUNK, LEFT_MAX, Direction


class Pipes:
    """A direction between two pipes, of which `writer` and `reader` are the outer ends."""

    def __init__(self, most: int = 1 << 30) -> None:
        source, self.writer = os.pipe()
        self.reader, sink = os.pipe()
        self.ended = asyncio.Event()
        self.direction = Direction(source, sink, most=most, ended=self.ended.set)

    def close(self) -> None:
        self.direction.close()
        for descriptor in (self.writer, self.reader):
            if descriptor >= 0:
                os.close(descriptor)

    def end_writer(self) -> None:
        os.close(self.writer)
        self.writer = -1

    def end_reader(self) -> None:
        os.close(self.reader)
        self.reader = -1

    async def whole(self) -> bytes:
        """All that comes until the end, read by a thread so that the direction has its turns."""
        return await asyncio.to_thread(_all_of, self.reader)


def _all_of(descriptor: int) -> bytes:
    found = b""
    while chunk := os.read(descriptor, 1 << 20):
        found += chunk
    return found


def play(test: Callable[[Pipes], Coroutine[Any, Any, None]], most: int = 1 << 30) -> None:
    async def whole() -> None:
        pipes = Pipes(most)
        try:
            async with asyncio.timeout(20):
                await test(pipes)
        finally:
            pipes.close()

    before = set(os.listdir("/proc/self/fd"))
    asyncio.run(whole())
    assert set(os.listdir("/proc/self/fd")) == before


@settings(max_examples=25, deadline=None)
@given(st.lists(st.binary(min_size=1, max_size=5000), max_size=20))
def test_what_goes_in_comes_out(chunks: list[bytes]) -> None:
    async def test(pipes: Pipes) -> None:
        def write() -> None:
            for chunk in chunks:
                os.write(pipes.writer, chunk)
            pipes.end_writer()

        thread = threading.Thread(target=write)
        thread.start()
        assert await pipes.whole() == b"".join(chunks)
        thread.join()
        assert pipes.direction.moved == sum(map(len, chunks))
        assert not pipes.direction.open

    play(test)


def test_more_than_pipes_hold_goes_through() -> None:
    content = os.urandom(CHUNK * 20 + 1)

    async def test(pipes: Pipes) -> None:
        def write() -> None:
            rest = memoryview(content)
            while rest:
                rest = rest[os.write(pipes.writer, rest) :]
            pipes.end_writer()

        thread = threading.Thread(target=write)
        thread.start()
        assert await pipes.whole() == content
        thread.join()

    play(test)


def test_whoever_does_not_read_is_not_written_to() -> None:
    """No more is taken than a chunk: the writer waits, and the core holds nothing for it."""

    async def test(pipes: Pipes) -> None:
        os.set_blocking(pipes.writer, False)
        written = 0
        full = False
        while not full:
            for _ in range(100):
                await asyncio.sleep(0)
            try:
                written += os.write(pipes.writer, b"x" * 4096)
            except BlockingIOError:
                full = True
        assert written <= 3 * CHUNK
        assert pipes.direction.open
        os.set_blocking(pipes.reader, True)
        pipes.end_writer()
        assert len(await pipes.whole()) == written

    play(test)


def test_where_nobody_reads_nobody_writes() -> None:
    async def test(pipes: Pipes) -> None:
        pipes.end_reader()
        await pipes.ended.wait()
        with pytest.raises(BrokenPipeError):
            os.write(pipes.writer, b"x")

    play(test)


def test_where_nobody_reads_any_more_what_is_held_is_dropped() -> None:
    async def test(pipes: Pipes) -> None:
        os.set_blocking(pipes.writer, False)
        while not pipes.direction._rest:
            with contextlib.suppress(BlockingIOError):
                os.write(pipes.writer, b"x" * 4096)
            await asyncio.sleep(0)
        pipes.end_reader()
        await pipes.ended.wait()

    play(test)


@pytest.mark.parametrize(("size", "exceeds"), [(0, False), (99, False), (100, False), (101, True), (5000, True)])
def test_no_more_goes_through_than_may(size: int, exceeds: bool) -> None:
    async def test(pipes: Pipes) -> None:
        os.write(pipes.writer, b"x" * size)
        pipes.end_writer()
        assert len(await pipes.whole()) == (0 if exceeds else size)
        assert pipes.direction.exceeded is exceeds

    play(test, most=100)


def test_what_is_left_is_taken_and_then_it_ends() -> None:
    """Somebody has the other end of the source still, and says nothing."""

    async def test(pipes: Pipes) -> None:
        os.write(pipes.writer, b"last words")
        pipes.direction.finish()
        assert await pipes.whole() == b"last words"
        await pipes.ended.wait()

    play(test)


def test_what_goes_on_for_ever_is_not_taken_for_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that the service left behind has its output, and writes."""
    monkeypatch.setattr(stream, "LEFT_MAX", 4 * CHUNK)

    async def test(pipes: Pipes) -> None:
        def write() -> None:
            try:
                while True:
                    os.write(pipes.writer, b"x" * CHUNK)
            except BrokenPipeError:
                return

        thread = threading.Thread(target=write)
        thread.start()
        reading = asyncio.ensure_future(pipes.whole())
        pipes.direction.finish()
        assert len(await reading) <= 4 * CHUNK
        thread.join()

    play(test)
    assert LEFT_MAX == 1 << 20


def test_the_cages_can_make_nothing_block() -> None:
    """Each end is an open file of its own: what a cage does to the flags of its end, ours do not have."""

    async def test(pipes: Pipes) -> None:
        for descriptor in (pipes.writer, pipes.reader):
            os.set_blocking(descriptor, True)
        assert not os.get_blocking(pipes.direction._source)
        assert not os.get_blocking(pipes.direction._sink)

    play(test)
