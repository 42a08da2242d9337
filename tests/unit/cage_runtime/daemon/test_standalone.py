# SPDX-License-Identifier: LGPL-2.1-or-later
"""The supervisor of `caged --standalone`: its children can say that they are ready as often as they are started."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest

from cage_runtime.config import Paths, RuntimeConfig
from cage_runtime.daemon.standalone import Child, Readiness, Supervisor

QUEUE = int(Path("/proc/sys/net/unix/max_dgram_qlen").read_text())


def test_however_often_children_are_started_none_waits_to_say_so(tmp_path: Path) -> None:
    async def say_often() -> None:
        with Readiness(tmp_path) as readiness, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as child:
            child.setblocking(False)
            child.connect(readiness.address)
            for _ in range(QUEUE + 2):
                child.send(b"READY=1")
                await asyncio.sleep(0)
                await asyncio.sleep(0)

    asyncio.run(say_often())


def test_it_waits_for_as_many_as_there_are(tmp_path: Path) -> None:
    async def two_of_three() -> bool:
        with Readiness(tmp_path) as readiness, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as child:
            child.connect(readiness.address)
            for said in (b"STATUS=loading", b"READY=1", b"MAINPID=1\nREADY=1"):
                child.send(said)
            await readiness.wait(2, asyncio.Event())
            third = asyncio.ensure_future(readiness.wait(1, asyncio.Event()))
            _, waiting = await asyncio.wait({third}, timeout=0)
            third.cancel()
            return bool(waiting)

    assert asyncio.run(two_of_three())


def test_told_to_end_it_waits_for_nobody(tmp_path: Path) -> None:
    async def told() -> None:
        with Readiness(tmp_path) as readiness:
            ending = asyncio.Event()
            ending.set()
            await readiness.wait(1, ending)

    asyncio.run(told())


def test_a_child_that_the_host_has_no_room_for_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    tries = 0

    class Enough(BaseException):
        """Ends the loop that has no end."""

    async def no_room(*_command: str, **_options: object) -> None:
        nonlocal tries
        tries += 1
        if tries == 3:
            raise Enough
        raise BlockingIOError(11, "Resource temporarily unavailable")

    async def keep() -> None:
        monkeypatch.setattr(asyncio, "create_subprocess_exec", no_room)
        await Supervisor(RuntimeConfig(paths=Paths()), None, "").keep(Child(program="cage-spawner"))

    with pytest.raises(Enough):
        asyncio.run(keep())
