# SPDX-License-Identifier: LGPL-2.1-or-later
"""The supervisor of `caged --standalone`: its children can say that they are ready as often as they are started."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import pwd
import socket
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from cage_runtime.config import Paths, RuntimeConfig
from cage_runtime.daemon import standalone
from cage_runtime.daemon.standalone import Child, Readiness, Supervisor
from cage_runtime.errors import HostUnsupported

QUEUE = int(Path("/proc/sys/net/unix/max_dgram_qlen").read_text())
CHILD = Child(program="caged", user=pwd.getpwuid(os.getuid()).pw_name)


def test_however_often_a_child_is_started_it_never_waits_to_say_so(tmp_path: Path) -> None:
    async def say_often() -> None:
        with Readiness(tmp_path, CHILD) as readiness, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as child:
            child.setblocking(False)
            child.connect(readiness.address)
            for _ in range(QUEUE + 2):
                child.send(b"READY=1")
                await asyncio.sleep(0)
                await asyncio.sleep(0)

    asyncio.run(say_often())


def test_nobody_but_the_child_can_say_it(tmp_path: Path) -> None:
    async def address() -> None:
        with Readiness(tmp_path, CHILD) as readiness:
            status = os.stat(readiness.address)
            assert (stat.S_IMODE(status.st_mode), status.st_uid) == (0o600, os.getuid())
        assert list(tmp_path.iterdir()) == []

    asyncio.run(address())


@pytest.mark.parametrize(("said", "late"), [
    ((b"READY=1", b"MAINPID=1\nREADY=1"), []), ((b"READY=1", b"STATUS=loading"), ["second"]), ((), ["first", "second"]),
])
def test_each_child_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: tuple[bytes, ...], late: list[str]
) -> None:
    monkeypatch.setattr(standalone, "READY_SECONDS", 0.1)

    async def wait() -> list[str]:
        with contextlib.ExitStack() as held:
            names = ("first", "second")
            readiness = {
                name: held.enter_context(Readiness(tmp_path, replace(CHILD, program=name))) for name in names}
            for ready, words in zip(readiness.values(), said, strict=False):
                with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as child:
                    child.connect(ready.address)
                    child.send(words)
            return await standalone._wait({name: ready.said for name, ready in readiness.items()}, asyncio.Event())

    assert asyncio.run(wait()) == late


def test_told_to_end_it_waits_for_nobody() -> None:
    async def told() -> list[str]:
        ending = asyncio.Event()
        ending.set()
        return await standalone._wait({"first": asyncio.Event()}, ending)

    assert asyncio.run(told()) == []


@pytest.mark.parametrize("file", ["standalone.lock", "spawner.lock"])
def test_there_is_one_core(tmp_path: Path, file: str) -> None:
    """Also while the spawner of the other is just being started again, and where there is no other supervisor."""
    with (tmp_path / file).open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(HostUnsupported, match="a core runs already"), standalone._alone(tmp_path):
            pass
    (tmp_path / file).unlink()
    with standalone._alone(tmp_path):
        assert stat.S_IMODE((tmp_path / "standalone.lock").stat().st_mode) == 0o600


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
        await Supervisor(RuntimeConfig(paths=Paths()), None).keep(Child(program="cage-spawner"), "")

    with pytest.raises(Enough):
        asyncio.run(keep())
