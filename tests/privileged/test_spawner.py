# SPDX-License-Identifier: LGPL-2.1-or-later
"""cage-spawner against whoever is connected to it: its answers, their order, and who is heard at all."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator

import msgspec
import pytest

from cage_runtime.model import SPAWNER_MESSAGE_MAX
from cage_runtime.spawner import wire
from cage_runtime.spawner.spec import Describe, Ended, Logs, Remove, Reply, Spawn, Standing, Stop, decode_reply, encode
from tests.privileged.runtime import SECONDS
from tests.privileged.without_caged import Cage, Spawner, event, living

pytestmark = pytest.mark.privileged


@pytest.fixture
def cage(spawner: Spawner) -> Iterator[Cage]:
    with living(spawner) as made:
        yield made


def test_a_request_without_its_channel_is_a_fault(cage: Cage) -> None:
    reply = cage.spawner.ask(Spawn(id=0, uuid=cage.uuid, argv=["true"]))
    assert reply.fault is not None
    assert "without its channel" in reply.fault.sentence


def test_an_answer_goes_to_whoever_asked_and_an_end_to_everybody(spawner: Spawner) -> None:
    """A caged that is killed while a cage stops: the next one numbers its requests from 1 again."""
    cage = Cage(spawner)
    with cage.spawn("sh", "-c", "trap '' TERM; echo; while :; do sleep 1; done") as channel:
        assert event(channel)["event"] == "started"
        spawner.connection.send(encode(Stop(id=1, uuid=cage.uuid, seconds=0.5)))
        spawner.connection.close()
        spawner.connection = spawner.connect()
        received = wire.receive(spawner.connection)
    assert received is not None
    assert decode_reply(received[0]) == Ended(uuid=cage.uuid)
    assert spawner.ask(Remove(id=0, uuid=cage.uuid)).fault is None


def test_answers_wait_for_a_caged_that_does_not_read(spawner: Spawner) -> None:
    for number in range(900):
        spawner.connection.send(encode(Describe(id=10_000 + number)))
    answered = [decode_reply(received[0]) for _ in range(900) if (received := wire.receive(spawner.connection))]
    assert [reply.id for reply in answered if isinstance(reply, Reply)] == list(range(10_000, 10_900))


def test_a_message_longer_than_can_be_passed_on_ends_nobody(spawner: Spawner, cage: Cage) -> None:
    """The spawner's own number may have more digits than that of whoever asked."""
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with near, far:
        request = Spawn(id=1, uuid=cage.uuid, argv=["true", ""])
        filling = SPAWNER_MESSAGE_MAX - len(encode(request))
        parts, rest = divmod(filling, 60_000)
        argv = ["true", *["x" * (60_000 - 3)] * parts, "x" * rest]
        for _ in range(20):  # until its numbers have two digits
            spawner.ask(Logs(id=0, uuid=cage.uuid))
        wire.send(spawner.connection, encode(msgspec.structs.replace(request, argv=argv)), [far.fileno()])
        received = wire.receive(spawner.connection)
    assert received is not None
    reply = decode_reply(received[0])
    assert isinstance(reply, Reply)
    assert reply.fault is not None
    assert reply.fault.sentence == "the request is longer than a cage takes"


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
