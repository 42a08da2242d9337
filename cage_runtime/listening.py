# SPDX-License-Identifier: LGPL-2.1-or-later
"""How much of what a connection says is heard: some in each turn of the event loop, and with a pace, only so much in a
second.

Law of this room: whoever says much waits, and nobody else does.  The library reads a connection until there is nothing
more to read, which of one that is always full is never; here it comes back after MESSAGES_PER_TURN.  What is not read
waits in the socket and then in the bus daemon, which has bounds for it.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable
from typing import Any

from dbus_fast.aio import MessageBus

MESSAGES_PER_TURN = 8
READS_PER_MESSAGE = 2
"""The library reads the beginning of a message first, which says how long the rest is."""

Pace = Callable[[int], float]
"""Told how many messages have been heard in this turn; after how many seconds the next may be."""


class Connection(MessageBus):
    """The library's connection, which is heard by turns."""

    pace: Pace | None = None

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._turns = _Turns(self._loop, self)
        self._loop = self._turns  # type: ignore[assignment]

    def disconnect(self) -> None:
        """As the library, which sees the end when it reads: at once, whatever the pace."""
        super().disconnect()
        self._turns.listen()

    @staticmethod
    def _create_socket_for_transport(transport: str, options: dict[str, str]) -> tuple[socket.socket, Any, Any]:
        made, stream, address = MessageBus._create_socket_for_transport(transport, options)
        stream.close()
        bounded = _Socket(made.family, made.type, made.proto, fileno=made.detach())
        return bounded, bounded.makefile("rwb"), address


class _Socket(socket.socket):
    """Has nothing more to read once `reads` is used up."""

    reads = 0

    def recvmsg(self, *arguments: Any) -> Any:
        if not self.reads:
            raise BlockingIOError(errno.EAGAIN, "the turn has ended")
        self.reads -= 1
        return super().recvmsg(*arguments)


class _Turns:
    """The event loop, as the library has it of the connection, but for who reads what comes."""

    def __init__(self, loop: asyncio.AbstractEventLoop, connection: Connection) -> None:
        self._loop, self._connection = loop, connection
        self._descriptor = -1
        self._read: Callable[[], None] | None = None
        self._waiting: asyncio.TimerHandle | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)

    def add_reader(self, descriptor: int, read: Callable[[], None]) -> None:
        self._descriptor, self._read = descriptor, read
        self._loop.add_reader(descriptor, self._turn)

    def remove_reader(self, descriptor: int) -> bool:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None
        return self._loop.remove_reader(descriptor)

    def _turn(self) -> None:
        end, most = self._connection._sock, MESSAGES_PER_TURN * READS_PER_MESSAGE
        if self._read is None or not isinstance(end, _Socket):  # it has ended
            return
        end.reads = most
        self._read()
        heard = (most - end.reads) // READS_PER_MESSAGE
        # The library removes what it reads with when the connection has ended.
        if self._connection.pace is not None and self._connection.connected:
            wait = self._connection.pace(heard)
            if wait > 0:
                self._loop.remove_reader(self._descriptor)
                self._waiting = self._loop.call_later(wait, self.listen)

    def listen(self) -> None:
        """Where it is waiting, no longer."""
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None
            self._loop.add_reader(self._descriptor, self._turn)
