# SPDX-License-Identifier: LGPL-2.1-or-later
"""Cages of the installed cage-spawner, asked as caged asks it; for a guest whose kernel enforces security contexts."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import uuid as uuids
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from cage_runtime.spawner import wire
from cage_runtime.spawner.spec import (
    AnyRequest,
    Birth,
    Condemn,
    Denied,
    Describe,
    Enforced,
    Enforcement,
    Event,
    Host,
    Limits,
    MakeStorage,
    Remove,
    Reply,
    Spawn,
    Stop,
    decode_reply,
    encode,
)

PROGRAM = "/usr/lib/cage-runtime/bin/cage-spawner"
CONFIGURATION = """[paths]
state = "{top}/state"
run = "{top}/run"
cgroup = "cages"
"""
SECONDS = 300
"""After which something hangs: the guest is emulated."""


class Spawner:
    def __init__(self, top: Path) -> None:
        self.top = top
        (top / "caged.conf").write_text(CONFIGURATION.format(top=top))
        self._number = 0
        self.events: list[Event] = []
        self.start()

    def start(self) -> None:
        ready = self.top / "ready"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
            told.bind(str(ready))
            told.settimeout(SECONDS)
            self._process = subprocess.Popen([PROGRAM, "--config", self.top / "caged.conf"],
                                             env={"NOTIFY_SOCKET": str(ready)})
            assert told.recv(64) == b"READY=1"
        ready.unlink()
        self._connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._connection.settimeout(SECONDS)
        self._connection.connect(str(self.top / "run/spawner.sock"))

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        self._connection.close()
        self._process.send_signal(how)
        self._process.wait(SECONDS)

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, request: AnyRequest, *descriptors: int) -> Reply:
        self._number += 1
        wire.send(self._connection, encode(msgspec.structs.replace(request, id=self._number)), descriptors)
        while True:
            message = self._received()
            if isinstance(message, Reply) and message.id == self._number:
                return message

    def done(self, request: AnyRequest, *descriptors: int) -> Reply:
        reply = self.ask(request, *descriptors)
        assert reply.fault is None, reply.fault
        return reply

    def denied(self, uuid: str) -> Denied:
        """The next word of what was denied to the cage, which comes by itself."""
        while True:
            for event in self.events:
                if isinstance(event, Denied) and event.uuid == uuid:
                    self.events.remove(event)
                    return event
            self._received()

    def _received(self) -> Reply | Event:
        received = wire.receive(self._connection)
        assert received is not None, "the spawner hung up"
        message = decode_reply(received[0])
        if not isinstance(message, Reply):
            self.events.append(message)
        return message

    def host(self) -> Host:
        host = self.done(Describe(id=0)).host
        assert host is not None
        return host


class Cage:
    def __init__(self, spawner: Spawner, name: str, *, ephemeral: bool = True, private: bool = False) -> None:
        self.spawner, self.name, self.uuid = spawner, name, uuids.uuid4().hex
        spawner.done(MakeStorage(id=0, uuid=self.uuid, ephemeral=ephemeral, private=private))
        self.bear()

    def bear(self) -> None:
        self.spawner.done(Birth(
            id=0, uuid=self.uuid, name=self.name, level="public", compartments=[], exec_home=False, limits=Limits(),
            processes=256, home_bytes=1 << 22, home_files=256, require=["lsm"]))  # type: ignore[list-item]

    def enforced(self) -> Enforcement:
        enforcement = self.spawner.done(Enforced(id=0, uuid=self.uuid)).enforcement
        assert enforcement is not None
        return enforcement

    @property
    def xid(self) -> int:
        return self.enforced().xid

    @property
    def processes(self) -> list[int]:
        """By their numbers on the host, its first one first."""
        return sorted(map(int, Path("/sys/fs/cgroup/cages", self.uuid, "cgroup.procs").read_text().split()))

    @property
    def init(self) -> int:
        return self.processes[0]

    @contextlib.contextmanager
    def running(self, *argv: str, user: str = "user") -> Iterator[tuple[int, int, int, socket.socket]]:
        """The command: its standard input, output and error, and its channel."""
        near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        near.settimeout(SECONDS)
        request = Spawn(id=0, uuid=self.uuid, argv=list(argv), user=user)  # type: ignore[arg-type]
        with near:
            with far:
                self.spawner.done(request, far.fileno())
            message, descriptors = told(near)
            assert message == {"event": "started"}, message
            try:
                yield descriptors[0], descriptors[1], descriptors[2], near
            finally:
                wire.close_all(descriptors)

    def run(self, *argv: str, user: str = "user") -> tuple[int, str]:
        """Its status, and what it printed, errors last."""
        with self.running(*argv, user=user) as (_input, output, errors, near):
            printed = b"".join(iter(lambda: os.read(output, 65536), b""))
            printed += b"".join(iter(lambda: os.read(errors, 65536), b""))
            message, _ = told(near)
        return int(message["status"]), printed.decode(errors="replace")

    def stop(self) -> None:
        self.spawner.done(Stop(id=0, uuid=self.uuid, seconds=0))

    def destroy(self) -> None:
        self.spawner.done(Condemn(id=0, uuid=self.uuid))
        self.stop()
        self.spawner.done(Remove(id=0, uuid=self.uuid))


def told(channel: socket.socket) -> tuple[dict[str, Any], list[int]]:
    received = wire.receive(channel)
    assert received is not None
    return json.loads(received[0]), received[1]
