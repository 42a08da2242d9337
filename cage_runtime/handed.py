# SPDX-License-Identifier: LGPL-2.1-or-later
"""Descriptors that a stranger handed over, closed without waiting for the stranger.

Law of this room: nobody outside makes us wait by what it hands over.  Whoever closes a socket last may have to wait for
as long as the socket says (SO_LINGER of socket(7)), whether it blocks or not; a process that ends does not.
"""

from __future__ import annotations

import logging
import os
import socket
import stat
import struct
from collections.abc import Iterable

LOG = logging.getLogger(__name__)


def close(descriptors: Iterable[int]) -> None:
    """Close them all.  Where a socket is among them, the last to have it is a process that ends."""
    sockets = []
    for descriptor in descriptors:
        if stat.S_ISSOCK(os.fstat(descriptor).st_mode):
            sockets.append(descriptor)
        else:
            os.close(descriptor)
    if sockets:
        _close_by_an_end(sockets)


def _close_by_an_end(sockets: list[int]) -> None:
    near, far = os.pipe2(os.O_CLOEXEC)
    try:
        pid = os.fork()
    except OSError as error:
        LOG.warning("a socket that was handed over is closed here: %s", error.strerror)
        pid = _without_an_end(sockets)
    if pid == 0:
        try:
            os.close(far)
            os.read(near, 1)  # until they are closed there
        finally:
            os._exit(0)
    for descriptor in sockets:
        os.close(descriptor)
    os.close(far)
    os.close(near)
    if pid > 0:
        os.waitpid(pid, 0)


def _without_an_end(sockets: list[int]) -> int:
    """The next best: they do not wait, unless whoever has one too says so again meanwhile."""
    for descriptor in sockets:
        with socket.socket(fileno=os.dup(descriptor)) as other:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 0, 0))
    return -1
