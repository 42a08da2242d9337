# SPDX-License-Identifier: LGPL-2.1-or-later
"""The spawner's end of cage-scopes: started with the spawner, and with the next request when it has ended.

Nothing here waits: what comes of a request is told when it comes, and other cages are served meanwhile.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable

from cage_runtime.errors import CageError, HostUnsupported, RuntimeFailure
from cage_runtime.scopes.spec import Asked, Close, Leaving, Open, Register, Unregister, decode_told, encode
from cage_runtime.spawner import helper, wire
from cage_runtime.spawner.loop import Loop

LOG = logging.getLogger(__name__)

OPEN_SECONDS = 30.0
"""What systemd has to make a scope; it takes some milliseconds, unless it is just reloading its units."""

Told = Callable[[int | CageError], None]
"""The pid of the seed that keeps the new scope, or why there is none."""


class Scopes:
    def __init__(self, loop: Loop, command: tuple[str, ...], leaving: Callable[[str], None]) -> None:
        """`command` starts cage-scopes; `leaving` is told of a unit that systemd is about to stop."""
        self._loop, self._command, self._leaving = loop, command, leaving
        self._connection: socket.socket | None = None
        self._pid = 0
        self._next = 0
        self._waiting: dict[int, Told] = {}

    def open(self, name: str, runtime: str, told: Told) -> int:
        """Have the scope of a cage made; its number, for `close`, is known before `told` is called."""
        self._next += 1
        number = self._next
        self._waiting[number] = told
        self._loop.after(0.0, lambda: self._ask_for(Open(number=number, name=name, runtime=runtime)))
        return number

    def _ask_for(self, request: Open) -> None:
        try:
            self._send(request)
        except OSError as error:
            self._tell(request.number, RuntimeFailure(f"cage-scopes cannot be asked for a scope: {error.strerror}"))
            return
        self._loop.after(OPEN_SECONDS, lambda: self._give_up(request.number))

    def _give_up(self, number: int) -> None:
        if number in self._waiting:
            self.close(number)
            self._tell(number, HostUnsupported(f"systemd has made no scope within {OPEN_SECONDS:.0f} seconds; "
                                               "see its journal"))

    def close(self, number: int) -> None:
        """End the seed of a scope: the cage's own processes keep it, or nothing does."""
        self._send_if_it_runs(Close(number=number))

    def register(self, name: str, uuid: str, leader: int) -> None:
        """Tell systemd-machined of a cage, if there is one."""
        self._send_if_it_runs(Register(name=name, uuid=uuid, leader=leader))

    def unregister(self, name: str, uuid: str) -> None:
        """Have systemd-machined forget a cage that has ended; what is asked for one of its name later comes after."""
        self._send_if_it_runs(Unregister(name=name, uuid=uuid))

    def _send_if_it_runs(self, request: Asked) -> None:
        """A cage-scopes that has ended has taken its seeds along, and what it was to tell is no loss."""
        if self._connection is None:
            return
        try:
            wire.send(self._connection, encode(request))
        except OSError as error:
            self._lost(str(error.strerror))

    def _send(self, request: Asked) -> None:
        wire.send(self._connection or self.start(), encode(request))

    def start(self) -> socket.socket:
        connection, self._pid = helper.start(self._command)
        self._connection = connection
        self._loop.watch(connection.fileno(), self._hear)
        return connection

    def _hear(self) -> None:
        if self._connection is None:
            return
        told = helper.hear(self._connection, decode_told, self._lost)
        if told is None:
            return
        if isinstance(told, Leaving):
            self._leaving(told.unit)
        elif told.number not in self._waiting:
            self.close(told.number)  # whoever asked has given up
        else:
            self._tell(told.number, HostUnsupported(told.fault) if told.fault else told.seed)

    def _tell(self, number: int, outcome: int | CageError) -> None:
        if told := self._waiting.pop(number, None):
            told(outcome)

    def _lost(self, why: str) -> None:
        """What was asked of it fails; the next request starts another."""
        LOG.warning("cage-scopes: %s", why)
        self.end()
        waiting, self._waiting = self._waiting, {}
        for told in waiting.values():
            told(RuntimeFailure(f"cage-scopes, which asks systemd for the cage's scope: {why}"))

    def end(self) -> None:
        """End cage-scopes, which has nothing to lose; its seeds end with it."""
        if self._connection is None:
            return
        self._loop.forget(self._connection.fileno())
        helper.end(self._connection, self._pid)
        self._connection = None
