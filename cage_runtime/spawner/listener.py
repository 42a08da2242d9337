# SPDX-License-Identifier: LGPL-2.1-or-later
"""The listener of a cage's mediated calls as cage-init keeps it: for the spawner, for the next one, and for the time
when there is none.
"""

from __future__ import annotations

import errno
import socket

from cage_runtime.spawner import wire
from cage_runtime.spawner.loop import Loop
from cage_runtime.spawner.spec import Listening, encode
from cage_runtime.syscalls import notification

SPAWNER_SECONDS = 5.0
"""A spawner that is started again has come back by then; until then the calls that it would have answered wait."""


class Listener:
    def __init__(self, loop: Loop, descriptor: int, born: float) -> None:
        self._loop, self._descriptor, self._born = loop, descriptor, born
        self._connected = self._refuses = False

    def hand_over(self, connection: socket.socket) -> None:
        """To the spawner, which is connected now; OSError where it does not take it."""
        self._connected = True
        if self._refuses:
            self._refuses = False
            self._loop.forget(self._descriptor)
        wire.send(connection, encode(Listening(born=self._born)), [self._descriptor])

    def left(self) -> None:
        """The spawner has ended."""
        self._connected = False
        self._loop.after(SPAWNER_SECONDS, self._refuse)

    def _refuse(self) -> None:
        """Where no spawner has come back: no program of the cage waits for good, and none is told of the host."""
        if not self._connected and not self._refuses:
            self._refuses = True
            self._loop.watch(self._descriptor, self._called)

    def _called(self) -> None:
        called = notification.receive(self._descriptor)
        if called is not None:
            notification.respond(self._descriptor, called, errno.ENOSYS)
