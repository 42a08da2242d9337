# SPDX-License-Identifier: LGPL-2.1-or-later
"""cage-spawner without a caged: what caged would check first arrives at it, and at a cage-init, as it is."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import tempfile
import uuid as uuids
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import msgspec

from cage_runtime.spawner import wire
from cage_runtime.spawner.spec import (
    AnyRequest,
    Birth,
    Limits,
    MakeStorage,
    Remove,
    Reply,
    Spawn,
    Stop,
    Terminal,
    decode_reply,
    encode,
)
from tests.privileged.runtime import CAGED_CONFIGURATION, PREFIX, SECONDS, arguments_of, processes


class Spawner:
    """cage-spawner, and the one connection to it."""

    def __init__(self, top: Path) -> None:
        self._top = top
        config = top / "caged.conf"
        config.write_text(CAGED_CONFIGURATION.format(top=top, prefix=PREFIX, cgroup=f"cage-runtime-{top.name}"))
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready:
            ready.bind(str(top / "ready"))
            ready.settimeout(SECONDS)
            self._process = subprocess.Popen([PREFIX / "bin/cage-spawner", "--config", config],
                                             env={"NOTIFY_SOCKET": str(top / "ready")})
            assert ready.recv(64) == b"READY=1"
        self._number = 0
        self.connection = self.connect()

    def connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        connection.settimeout(SECONDS)
        connection.connect(str(self._top / "run/spawner.sock"))
        return connection

    def ask(self, request: AnyRequest, *descriptors: int) -> Reply:
        self._number += 1
        wire.send(self.connection, encode(msgspec.structs.replace(request, id=self._number)), descriptors)
        while True:
            received = wire.receive(self.connection)
            assert received is not None, "the spawner hung up"
            reply = decode_reply(received[0])
            if isinstance(reply, Reply) and reply.id == self._number:
                return reply

    def stop(self) -> None:
        self.connection.close()
        self._process.terminate()
        assert self._process.wait(SECONDS) == 0


class Cage:
    """One of the spawner's, with a home in memory; `disposable` as Birth has it."""

    def __init__(self, spawner: Spawner, disposable: float = 0.0) -> None:
        self.spawner, self.uuid = spawner, uuids.uuid4().hex
        self._done(MakeStorage(id=0, uuid=self.uuid, ephemeral=True))
        self._done(Birth(
            id=0, uuid=self.uuid, name="tough", level="public", compartments=[], exec_home=False, limits=Limits(),
            processes=256, home_bytes=1 << 22, home_files=256, disposable=disposable,
        ))

    def _done(self, request: AnyRequest) -> None:
        reply = self.spawner.ask(request)
        assert reply.fault is None, reply.fault

    def spawn(self, *argv: str, terminal: Terminal | None = None, detached: bool = False,
              delivery: int | None = None, user: Literal["user", "root"] = "user") -> socket.socket:
        """The near end of the command's channel; with `delivery`, as a delivery half with that as standard input."""
        near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        near.settimeout(SECONDS)
        with far:
            own_input = delivery is not None
            request = Spawn(id=0, uuid=self.uuid, argv=list(argv), terminal=terminal, detached=detached, user=user,
                            own_input=own_input, profile="delivery" if own_input else "session")
            reply = self.spawner.ask(request, far.fileno(), *([] if delivery is None else [delivery]))
            assert reply.fault is None, reply.fault
        return near

    def init(self) -> int:
        return min(pid for pid in processes() if is_of(pid, self.uuid))

    def pid_of(self, *argv: str) -> int:
        """On the host, of a command that runs in the cage."""
        return next(pid for pid in processes() if arguments_of(pid) == list(argv) and is_of(pid, self.uuid))

    def destroy(self) -> None:
        self._done(Stop(id=0, uuid=self.uuid, seconds=0))
        self._done(Remove(id=0, uuid=self.uuid))


def is_of(pid: int, uuid: str) -> bool:
    """Is the process, of the host's pids, in the cgroup of that cage?"""
    try:
        return uuid in Path(f"/proc/{pid}/cgroup").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def event(channel: socket.socket) -> dict[str, object]:
    """What is said next on a command's channel, whose descriptors are not wanted."""
    received = wire.receive(channel)
    assert received is not None
    wire.close_all(received[1])
    told = json.loads(received[0])
    assert isinstance(told, dict)
    return told


@contextmanager
def spawner_alone() -> Iterator[Spawner]:
    """It has to end well."""
    top = Path(tempfile.mkdtemp(prefix="alone-"))
    try:
        spawner = Spawner(top)
        yield spawner
        spawner.stop()
    finally:
        shutil.rmtree(top)


@contextmanager
def living(spawner: Spawner) -> Iterator[Cage]:
    """A cage that has to run at the end, whatever was done to it."""
    cage = Cage(spawner)
    yield cage
    with cage.spawn("true") as channel:
        assert [event(channel)["event"], event(channel)] == ["started", {"event": "exit", "status": 0}], "it has ended"
    cage.destroy()
