# SPDX-License-Identifier: LGPL-2.1-or-later
"""Nobody is answered before the disk has what was recorded, and whoever waits for it waits with all others."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cage_runtime.audit.chain import Chain
from cage_runtime.audit.event import Kind
from cage_runtime.daemon.settling import Settling
from cage_runtime.errors import PolicyRefused, RuntimeFailure

SECONDS = 10


class Disk:
    """Stands for fdatasync(2): each waits until it is let go, or fails."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun, self.go, self.fails = threading.Semaphore(0), threading.Semaphore(0), False
        self.count = 0
        monkeypatch.setattr(os, "fdatasync", self._sync)

    def _sync(self, _descriptor: int) -> None:
        self.count += 1
        self.begun.release()
        assert self.go.acquire(timeout=SECONDS)
        if self.fails:
            raise OSError(errno.EIO, os.strerror(errno.EIO))


@pytest.fixture
def chain(tmp_path: Path) -> Iterator[Chain]:
    with Chain.open(tmp_path / "audit") as chain:
        yield chain


@pytest.fixture
def disk(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> Disk:
    assert chain.count == 0
    return Disk(monkeypatch)


def play(test: Callable[[], Any]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(SECONDS):
            await test()

    asyncio.run(bounded())


def record(chain: Chain, number: int) -> int:
    chain.append(Kind.DECISION, {"number": str(number)})
    return number


async def begun(disk: Disk) -> None:
    assert await asyncio.to_thread(disk.begun.acquire, timeout=SECONDS)


def test_whoever_comes_while_the_disk_works_waits_for_the_next_and_all_for_the_same(chain: Chain, disk: Disk) -> None:
    async def test() -> None:
        settling = Settling(chain)
        first = asyncio.ensure_future(settling.after(lambda: record(chain, 0)))
        await begun(disk)
        others = [asyncio.ensure_future(settling.after(lambda n=n: record(chain, n))) for n in range(1, 50)]
        await asyncio.sleep(0)
        assert chain.count == 50, "others are served meanwhile"
        assert not first.done()
        disk.go.release()
        assert await first == 0
        await begun(disk)
        assert not any(other.done() for other in others)
        disk.go.release()
        assert await asyncio.gather(*others) == list(range(1, 50))
        assert disk.count == 2

    play(test)
    assert chain.verify() is None


def test_a_refusal_is_on_the_disk_too(chain: Chain, disk: Disk) -> None:
    def refuse() -> None:
        record(chain, 1)
        raise PolicyRefused("no")

    async def test() -> None:
        refused = asyncio.ensure_future(Settling(chain).after(refuse))
        await begun(disk)
        assert not refused.done()
        disk.go.release()
        with pytest.raises(PolicyRefused):
            await refused

    play(test)


def test_what_records_nothing_waits_for_nothing(chain: Chain, disk: Disk) -> None:
    async def test() -> None:
        settling = Settling(chain)
        first = asyncio.ensure_future(settling.after(lambda: record(chain, 0)))
        await begun(disk)
        assert await settling.after(lambda: 7) == 7
        disk.go.release()
        await first

    play(test)


def test_what_the_disk_does_not_take_fails_all_who_wait_and_leaves_nothing(chain: Chain, disk: Disk) -> None:
    async def test() -> None:
        settling = Settling(chain)
        disk.go.release()
        await settling.after(lambda: record(chain, 0))
        disk.begun.acquire()
        disk.fails = True
        first = asyncio.ensure_future(settling.after(lambda: record(chain, 1)))
        await begun(disk)
        second = asyncio.ensure_future(settling.after(lambda: record(chain, 2)))
        await asyncio.sleep(0)
        disk.go.release()
        with pytest.raises(RuntimeFailure, match="Input/output error"):
            await first
        disk.fails = False
        disk.go.release()
        with pytest.raises(RuntimeFailure):
            await second
        disk.go.release()
        assert await settling.after(lambda: record(chain, 3)) == 3

    play(test)
    assert (chain.count, chain.verify()) == (2, None)


def test_who_gives_up_disturbs_nobody(chain: Chain, disk: Disk) -> None:
    async def test() -> None:
        settling = Settling(chain)
        gone = asyncio.ensure_future(settling.after(lambda: record(chain, 0)))
        await begun(disk)
        gone.cancel()
        other = asyncio.ensure_future(settling.after(lambda: record(chain, 1)))
        disk.go.release()
        disk.go.release()
        assert await other == 1

    play(test)


def test_outside_of_it_a_record_is_on_the_disk_at_once(chain: Chain, disk: Disk) -> None:
    disk.go.release()
    record(chain, 0)
    assert disk.count == 1
