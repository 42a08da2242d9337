# SPDX-License-Identifier: LGPL-2.1-or-later
"""Descriptors that cross: over a channel that the core has made, so that there is one at all."""

from __future__ import annotations

import array
import os
import signal
import socket
from collections.abc import Iterator

import pytest

from cage_runtime.spawner.lsm.contexts import Contexts
from cage_runtime.spawner.lsm.operations import Operation
from tests.kernels.lsm.conftest import WIDE, Counted
from tests.kernels.lsm.party import Party, started

KINDS = ("memory", "file", "directory", "socket", "pipe", "eventfd", "pidfd", "namespace")


@pytest.fixture(scope="module")
def channel() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


@pytest.fixture(scope="module")
def a(contexts: Contexts, channel: tuple[socket.socket, socket.socket]) -> Iterator[Party]:
    with started(contexts, contexts.new(WIDE), [channel[0].fileno()]) as party:
        yield party


@pytest.fixture(scope="module")
def b(contexts: Contexts, channel: tuple[socket.socket, socket.socket]) -> Iterator[Party]:
    with started(contexts, contexts.new(WIDE), [channel[1].fileno()]) as party:
        yield party


@pytest.mark.parametrize("kind", KINDS)
def test_what_another_context_has_opened_does_not_arrive(
        contexts: Contexts, a: Party, b: Party, channel: tuple[socket.socket, socket.socket], kind: str) -> None:
    b.does("give", channel[1].fileno(), kind)
    counted = Counted(contexts, a.xid)
    assert a.outcome("take", channel[0].fileno()) == "EPERM"
    assert counted.since() == {Operation.DESCRIPTOR: 1}


def test_what_is_opened_with_credentials_from_a_child_is_its_own_too(
        contexts: Contexts, a: Party, b: Party, channel: tuple[socket.socket, socket.socket]) -> None:
    b.does("exchange_credentials")
    b.does("give", channel[1].fileno(), "file")
    counted = Counted(contexts, a.xid)
    assert a.outcome("take", channel[0].fileno()) == "EPERM"
    assert counted.since() == {Operation.DESCRIPTOR: 1}


@pytest.mark.parametrize("kind", KINDS)
def test_the_core_takes_what_a_context_has_opened(
        b: Party, channel: tuple[socket.socket, socket.socket], kind: str) -> None:
    b.does("give", channel[1].fileno(), kind)
    _, ancillary, _, _ = channel[0].recvmsg(1, socket.CMSG_SPACE(4))
    os.close(array.array("i", ancillary[0][2][:4])[0])


def test_what_the_core_has_opened_arrives(
        a: Party, channel: tuple[socket.socket, socket.socket]) -> None:
    with open("/etc/hostname", "rb") as file:
        socket.send_fds(channel[1], [b"x"], [file.fileno()])
    assert a.does("take", channel[0].fileno()) > 0


def test_a_signal_by_a_file_reaches_its_own_context_alone(contexts: Contexts, a: Party, b: Party, host: Party) -> None:
    for victim in (b, host):
        counted = Counted(contexts, a.xid)
        a.does("signal_by_descriptor", victim.pid)
        assert counted.since() == {Operation.KILL: 1}
        victim.does("pid")  # SIGUSR1 would have ended it
    with started() as stranger, started() as victim:
        stranger.does("signal_by_descriptor", victim.pid)
        with pytest.raises((EOFError, ConnectionError)):
            victim.does("pid")


def test_a_file_of_the_cores_is_aimed_at_nobody(
        contexts: Contexts, a: Party, host: Party, channel: tuple[socket.socket, socket.socket]) -> None:
    counted = Counted(contexts, a.xid)
    assert a.outcome("own_descriptor", channel[0].fileno(), host.pid) == "EPERM"
    assert a.outcome("own_descriptor_by_ioctl", channel[0].fileno(), host.pid) == "EPERM"
    assert counted.since() == {Operation.KILL: 2}
    assert host.outcome("own_descriptor", 0, host.pid) == "done"


def test_datagrams_over_a_pair_that_the_core_has_made(contexts: Contexts) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, theirs, started(contexts, contexts.new(WIDE), [theirs.fileno()]) as party:
        assert party.does("send_over", theirs.fileno()) == 1
        assert ours.recv(8) == b"x"


def test_the_core_ends_what_it_has_labelled(contexts: Contexts) -> None:
    with started(contexts, contexts.new(WIDE)) as party:
        os.kill(party.pid, signal.SIGKILL)
        with pytest.raises((EOFError, ConnectionError)):
            party.does("pid")
