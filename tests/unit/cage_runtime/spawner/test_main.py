# SPDX-License-Identifier: LGPL-2.1-or-later
"""A spawner that is told to end: what it has taken it answers, and what it has not, whoever asks knows of."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from cage_runtime.spawner import wire
from cage_runtime.spawner.loop import Loop
from cage_runtime.spawner.main import Peer
from cage_runtime.spawner.spec import Describe, Ended, Reply, Spawn, decode_reply, decode_request, encode

UUID = "a" * 32


class Spawner:
    """One end of a connection as the spawner has it, with its loop, and `caged`, the other end."""

    def __init__(self) -> None:
        ours, self.caged = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.caged.settimeout(0)
        self.loop, self.taken, self.finished = Loop(), [], 0
        self.peer = Peer(ours, self.loop)
        self.loop.watch(ours.fileno(), self._attend)

    def _attend(self) -> None:
        self.peer.flush()
        received = None if self.peer.closed else self.peer.receive()
        if received is not None:
            request = decode_request(received[0])
            self.peer.owe(request)
            self.taken.append(request.id)

    def finish(self) -> None:
        self.peer.finish(self._count)

    def _count(self) -> None:
        self.finished += 1

    def turn(self, times: int = 1) -> None:
        for _ in range(times):
            self.loop.after(0, lambda: None)
            self.loop.turn()

    def heard(self) -> Reply | Ended | None:
        """What caged reads; None at the end of the connection."""
        received = wire.receive(self.caged)
        return None if received is None else decode_reply(received[0])


@pytest.fixture
def spawner() -> Iterator[Spawner]:
    spawner = Spawner()
    yield spawner
    spawner.peer.close()
    spawner.caged.close()


def spawn(number: int) -> bytes:
    return encode(Spawn(id=number, uuid=UUID, argv=["true"]))


def test_what_has_come_is_taken_and_answered_and_nothing_comes_any_more(spawner: Spawner) -> None:
    for number in (1, 2):
        wire.send(spawner.caged, spawn(number))
    spawner.finish()
    with pytest.raises(BrokenPipeError):
        wire.send(spawner.caged, spawn(3))
    spawner.turn(4)
    assert spawner.taken == [1, 2]
    for number in (2, 1):
        assert not spawner.peer.closed
        spawner.peer.send(Reply(id=number))
        assert spawner.heard() == Reply(id=number)
    assert (spawner.peer.closed, spawner.finished) == (True, 1)
    assert spawner.heard() is None


def test_what_may_be_asked_again_is_not_waited_for(spawner: Spawner) -> None:
    wire.send(spawner.caged, encode(Describe(id=1)))
    spawner.finish()
    spawner.turn(3)
    assert spawner.taken == [1]
    assert (spawner.peer.closed, spawner.finished) == (True, 1)


def test_an_event_is_no_answer(spawner: Spawner) -> None:
    wire.send(spawner.caged, spawn(1))
    spawner.finish()
    spawner.turn(3)
    spawner.peer.send(Ended(uuid=UUID))
    assert not spawner.peer.closed
    spawner.peer.send(Reply(id=1))
    assert [spawner.heard(), spawner.heard(), spawner.heard()] == [Ended(uuid=UUID), Reply(id=1), None]


def test_a_caged_that_ends_meanwhile_is_not_waited_for(spawner: Spawner) -> None:
    wire.send(spawner.caged, spawn(1))
    spawner.turn()
    spawner.finish()
    spawner.caged.close()
    spawner.turn(3)
    assert (spawner.peer.closed, spawner.finished) == (True, 1)


def test_one_that_has_gone_already_is_finished_with(spawner: Spawner) -> None:
    spawner.caged.close()
    spawner.turn(2)
    assert spawner.peer.closed
    spawner.finish()
    assert spawner.finished == 1
