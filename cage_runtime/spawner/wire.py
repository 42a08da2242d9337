# SPDX-License-Identifier: LGPL-2.1-or-later
"""Messages with descriptors over SOCK_SEQPACKET sockets: caged and spawner, spawner and cage-init, and channels."""

from __future__ import annotations

import array
import errno
import os
import socket
from collections.abc import Sequence

from cage_runtime.model import SPAWNER_MESSAGE_MAX

DESCRIPTORS_MAX = 64
_ROOM = socket.CMSG_SPACE(DESCRIPTORS_MAX * array.array("i").itemsize)


class PeerError(Exception):
    """The peer broke the protocol; its connection is closed and nothing it said is done."""


def send(connection: socket.socket, message: bytes, descriptors: Sequence[int] = ()) -> None:
    """Send one message; BlockingIOError where the peer does not read, ConnectionError where it is gone, EMSGSIZE where
    the message is longer than the peer would take.
    """
    if len(message) > SPAWNER_MESSAGE_MAX:
        raise OSError(errno.EMSGSIZE, os.strerror(errno.EMSGSIZE))
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
    connection.sendmsg([message], ancillary, socket.MSG_NOSIGNAL)


def receive(connection: socket.socket) -> tuple[bytes, list[int]] | None:
    """One message and its descriptors, close-on-exec and the caller's to close; None at the end of the connection.

    PeerError where the message or its descriptors were cut off; BlockingIOError where there is none.
    """
    message, ancillary, flags, _ = connection.recvmsg(SPAWNER_MESSAGE_MAX, _ROOM, socket.MSG_CMSG_CLOEXEC)
    descriptors = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors.frombytes(data[: len(data) - len(data) % descriptors.itemsize])
    received = list(descriptors)
    if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
        close_all(received)
        raise PeerError("a message was longer than it may be")
    return (message, received) if message else None


def listens(end: socket.socket, kind: socket.SocketKind) -> bool:
    """Whether connections are accepted by it: a listening socket of this host, of that kind."""
    listening = bool(end.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
    return listening and (end.family, end.type) == (socket.AF_UNIX, kind)


def close_all(descriptors: Sequence[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
