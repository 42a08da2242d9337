# SPDX-License-Identifier: LGPL-2.1-or-later
"""cage-init against what its cage and its askers may do to it: PID 1 that ends takes the cage with it.

A spawner of this file's own, without caged: what caged would check first arrives here as it is.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import uuid as uuids
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from cage_runtime.model import LOG_BYTES
from cage_runtime.spawner import wire
from cage_runtime.spawner.spec import (
    AnyRequest,
    Birth,
    Limits,
    Logs,
    MakeStorage,
    Remove,
    Reply,
    Spawn,
    Standing,
    Stop,
    Terminal,
    decode_reply,
    encode,
)
from tests.privileged.runtime import CAGED_CONFIGURATION, PREFIX, SECONDS

pytestmark = pytest.mark.privileged


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
    def __init__(self, spawner: Spawner) -> None:
        self.spawner, self.uuid = spawner, uuids.uuid4().hex
        self._done(MakeStorage(id=0, uuid=self.uuid, ephemeral=True))
        self._done(Birth(
            id=0, uuid=self.uuid, name="tough", level="public", compartments=[], exec_home=False, limits=Limits(),
            processes=256, home_bytes=1 << 22, home_files=256,
        ))

    def _done(self, request: AnyRequest) -> None:
        reply = self.spawner.ask(request)
        assert reply.fault is None, reply.fault

    def spawn(self, *argv: str, terminal: Terminal | None = None, detached: bool = False) -> socket.socket:
        """The near end of the command's channel."""
        near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        near.settimeout(SECONDS)
        with far:
            request = Spawn(id=0, uuid=self.uuid, argv=list(argv), terminal=terminal, detached=detached)
            reply = self.spawner.ask(request, far.fileno())
            assert reply.fault is None, reply.fault
        return near

    def destroy(self) -> None:
        self._done(Stop(id=0, uuid=self.uuid, seconds=0))
        self._done(Remove(id=0, uuid=self.uuid))


def event(channel: socket.socket) -> dict[str, object]:
    received = wire.receive(channel)
    assert received is not None
    wire.close_all(received[1])
    told = json.loads(received[0])
    assert isinstance(told, dict)
    return told


@pytest.fixture(scope="module")
def spawner() -> Iterator[Spawner]:
    top = Path(tempfile.mkdtemp(prefix="init-"))
    try:
        spawner = Spawner(top)
        yield spawner
        spawner.stop()
    finally:
        shutil.rmtree(top)


@pytest.fixture
def cage(spawner: Spawner) -> Iterator[Cage]:
    cage = Cage(spawner)
    yield cage
    with cage.spawn("true") as channel:
        assert [event(channel)["event"], event(channel)] == ["started", {"event": "exit", "status": 0}], "it has ended"
    cage.destroy()


def test_a_client_that_leaves_as_its_command_ends(cage: Cage) -> None:
    for _ in range(200):
        with cage.spawn("true") as channel:
            assert event(channel)["event"] == "started"


def test_clients_that_leave_at_once(cage: Cage) -> None:
    for _ in range(100):
        cage.spawn("true", terminal=Terminal(term="dumb", rows=1, columns=1)).close()


@pytest.mark.parametrize("noise", [
    b"{", b"[]", b'{"signal": 99999999999999999999}', b'{"signal": -1}', b'{"signal": "9"}',
    b'{"rows": 0, "columns": -7}', b'{"rows": 9999999999, "columns": 1}', b"\xff" * 100, b"[" * 4000,
    b'{"signal": 0}', b"x" * 100_000,
])
def test_noise_on_a_channel_ends_that_session_at_most(cage: Cage, noise: bytes) -> None:
    with cage.spawn("cat", terminal=Terminal(term="dumb", rows=1, columns=1)) as channel:
        assert event(channel)["event"] == "started"
        channel.send(noise)


@pytest.mark.parametrize("content", ["\\000", "\\377", '"', "\\033", "\\\\"])
def test_whatever_a_cage_prints_its_log_can_be_had(cage: Cage, content: str) -> None:
    script = f"yes \"$(printf '{content}')\" | head -c 200000; echo; printf 'the end'; exec sleep 1000"
    with cage.spawn("sh", "-c", script, detached=True) as channel:
        assert event(channel)["event"] == "started"
    log = b""
    while not log.endswith(b"the end"):
        log = cage.spawner.ask(Logs(id=0, uuid=cage.uuid)).log
    assert len(log) == LOG_BYTES


def test_a_name_of_any_length_is_told_in_bounds(cage: Cage) -> None:
    with cage.spawn("/" + "x" * 60_000) as channel:
        told = event(channel)
    assert (told["event"], told["status"]) == ("refused", 126)
    assert len(str(told["sentence"])) < 400


def test_too_many_commands_are_refused_and_the_rest_go_on(cage: Cage) -> None:
    channels = [cage.spawn("sleep", "1000") for _ in range(256)]
    told = [event(channel) for channel in channels]
    assert {entry["event"] for entry in told} <= {"started", "refused"}
    assert told[0]["event"] == "started"
    with cage.spawn("sleep", "1000") as one_more:
        assert event(one_more)["event"] == "refused"
    for channel, entry in zip(channels, told, strict=True):
        if entry["event"] == "started":
            channel.send(json.dumps({"signal": signal.SIGKILL.value}).encode())
            assert event(channel) == {"event": "exit", "status": 137}
        channel.close()


def test_a_request_without_its_channel_is_a_fault(cage: Cage) -> None:
    reply = cage.spawner.ask(Spawn(id=0, uuid=cage.uuid, argv=["true"]))
    assert reply.fault is not None
    assert "without its channel" in reply.fault.sentence


@pytest.mark.parametrize("message", [b"{}", b"\0", b'{"op":"reboot","id":1}', b"x" * 100_000])
def test_the_spawner_hangs_up_on_noise_and_serves_the_next(spawner: Spawner, message: bytes) -> None:
    spawner.connection.send(message)
    assert spawner.connection.recv(1) == b""
    spawner.connection.close()
    spawner.connection = spawner.connect()
    assert spawner.ask(Standing(id=0)).standings is not None


def test_nobody_else_is_served(spawner: Spawner) -> None:
    path = spawner.connection.getpeername()
    script = f"import socket; s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET); s.connect({path!r})"
    ended = subprocess.run(["/usr/bin/python3", "-c", script], user=65534, group=65534, extra_groups=[],
                           capture_output=True, text=True, check=False, timeout=SECONDS)
    assert "PermissionError" in ended.stderr
    assert os.path.exists(path)
