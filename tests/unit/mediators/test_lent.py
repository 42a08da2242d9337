# SPDX-License-Identifier: LGPL-2.1-or-later
"""What cages are handed to read is taken back, whoever keeps a descriptor of it, and bounded for each of them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from cage_runtime.errors import RuntimeFailure
from mediators.lent import Lent


def memory(content: bytes) -> int:
    descriptor = os.memfd_create("x", os.MFD_CLOEXEC)
    os.write(descriptor, content)
    return descriptor


def unnamed(folder: Path, content: bytes) -> int:
    descriptor = os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    os.write(descriptor, content)
    return descriptor


@pytest.fixture
def mine() -> Iterator[list[int]]:
    """Descriptors that a cage keeps."""
    kept: list[int] = []
    yield kept
    for descriptor in kept:
        os.close(descriptor)


def size(descriptor: int) -> tuple[int, int]:
    """Bytes of the file, and those that somebody pays for."""
    status = os.fstat(descriptor)
    return status.st_size, status.st_blocks


@pytest.mark.parametrize("kind", ["memory", "disk"])
def test_it_can_be_read_for_a_while_and_never_written(tmp_path: Path, mine: list[int], kind: str) -> None:
    async def test() -> None:
        lent = Lent(10_000, seconds=0.2)
        mine.append(lent.lend("a", memory(b"x" * 5000) if kind == "memory" else unnamed(tmp_path, b"x" * 5000)))
        assert os.pread(mine[0], 10_000, 0) == b"x" * 5000
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.pwrite(mine[0], b"y", 0)
        with pytest.raises(OSError, match="Invalid argument"):
            os.ftruncate(mine[0], 1 << 20)
        assert os.fstat(mine[0]).st_mode & 0o777 == 0o444
        await asyncio.sleep(0.5)

    asyncio.run(test())
    assert size(mine[0]) == (0, 0)


def test_it_is_taken_back_with_the_cage_that_has_it(mine: list[int]) -> None:
    async def test() -> None:
        lent = Lent(10_000)
        mine.extend([lent.lend("a", memory(b"x" * 5000)), lent.lend("a", memory(b"y")), lent.lend("b", memory(b"z"))])
        before = set(os.listdir("/proc/self/fd"))
        lent.left("a")
        assert [size(descriptor)[0] for descriptor in mine] == [0, 0, 1]
        assert len(before - set(os.listdir("/proc/self/fd"))) == 2, "ours are closed"
        lent.left("a")
        lent.left("nobody")

    asyncio.run(test())


def test_a_cage_holds_no_more_than_it_may_and_keeps_nobody_else_from_it(mine: list[int]) -> None:
    async def test() -> None:
        lent = Lent(10_000, seconds=0.3)
        lent.check("a", 1 << 30)  # one thing alone, however much it is
        mine.append(lent.lend("a", memory(b"x" * 6000)))
        lent.check("a", 4000)
        with pytest.raises(RuntimeFailure) as refused:
            lent.check("a", 4001)
        assert refused.value.sentence == (
            "this cage has been handed 6000 bytes within 0 s, and 10000 are the most; try again in a while")
        lent.check("b", 4001)
        await asyncio.sleep(0.6)
        lent.check("a", 4001)

    asyncio.run(test())


def test_what_cannot_be_handed_over_is_not_kept() -> None:
    async def test() -> None:
        lent = Lent(10)
        pipe = os.pipe()
        before = len(os.listdir("/proc/self/fd"))
        with pytest.raises(OSError, match="Bad file descriptor"):
            lent.lend("a", 10_000)
        os.close(pipe[1])
        os.close(pipe[0])
        assert len(os.listdir("/proc/self/fd")) == before - 2

    asyncio.run(test())
