# SPDX-License-Identifier: LGPL-2.1-or-later
"""The two buses of a cage: the sockets are there from its birth, the daemons from the first connection on."""

from __future__ import annotations

import os
import socket
import time
from collections import deque
from dataclasses import dataclass, field

from cage_runtime.model import MEDIATOR_UID, USER_UID
from cage_runtime.spawner.child import Command, NotStarted, Streams
from cage_runtime.spawner.loop import Loop
from cage_runtime.spawner.output import Output
from cage_runtime.spawner.profile import ProfileName
from cage_runtime.spawner.starting import Starter

SYSTEM_BUS = "/run/dbus/system_bus_socket"
SESSION_BUS = f"/run/user/{USER_UID}/bus"
PROGRAM = ("/usr/bin/dbus-daemon", "--nofork", "--nopidfile", "--nosyslog", "--address=systemd:")
STARTS, STARTS_SECONDS = 5, 60.0
"""A bus that ends is started again on the next connection, this often in this time; then the cage goes without."""


@dataclass(kw_only=True, slots=True)
class _Bus:
    listener: socket.socket
    config: str
    uid: int
    profile: ProfileName
    starts: deque[float] = field(default_factory=deque)
    """When, of late."""
    pid: int = 0

    def command(self) -> Command:
        return Command(argv=(*PROGRAM, f"--config-file={self.config}"), uid=self.uid, cwd="/", profile=self.profile,
                       activation=self.listener.fileno())


class Buses:
    def __init__(self, loop: Loop, starter: Starter, output: Output) -> None:
        self._loop, self._starter, self._output = loop, starter, output
        self._stopped = False
        self.ever: set[int] = set()
        """The pids of their daemons, also of those that have ended: what they have started may go on."""
        self._buses = [
            _Bus(listener=_listen(SYSTEM_BUS, 0o666, 0), uid=MEDIATOR_UID, profile=ProfileName.MEDIATOR,
                 config="/opt/cage-runtime/cage-bus/bus.conf"),
            _Bus(listener=_listen(SESSION_BUS, 0o600, USER_UID), uid=USER_UID, profile=ProfileName.SESSION,
                 config="/opt/cage-runtime/session-bus/bus.conf"),
        ]

    def await_connections(self) -> None:
        for bus in self._buses:
            self._await_first(bus)

    def stop(self) -> None:
        """From now on none is started."""
        self._stopped = True

    def ended(self, pid: int) -> None:
        """A child has ended, which may be one of their daemons."""
        for bus in self._buses:
            if bus.pid == pid:
                bus.pid = 0
                if bus.listener.fileno() >= 0:
                    self._await_first(bus)

    def _await_first(self, bus: _Bus) -> None:
        """Start the bus when somebody connects to its socket."""
        self._loop.watch(bus.listener.fileno(), lambda: self._start(bus))

    def _start(self, bus: _Bus) -> None:
        self._loop.forget(bus.listener.fileno())
        now = time.monotonic()
        while bus.starts and bus.starts[0] < now - STARTS_SECONDS:
            bus.starts.popleft()
        if self._stopped or len(bus.starts) >= STARTS:
            bus.listener.close()
            return
        bus.starts.append(now)
        try:
            streams = Streams.to_log(self._output.write_end)
        except OSError as error:
            self._output.append(f"{PROGRAM[0]}: {error}\n".encode())
            self._await_first(bus)
            return
        try:
            bus.pid = self._starter.start(
                bus.command(), streams, lambda _, refusal: self._failed(bus, refusal) if refusal else None)
            self.ever.add(bus.pid)
        except NotStarted as error:
            self._failed(bus, error)
        finally:
            streams.close_inner()

    def _failed(self, bus: _Bus, refusal: NotStarted) -> None:
        self._output.append(f"{PROGRAM[0]}: {refusal.sentence}\n".encode())
        bus.listener.close()


def _listen(path: str, mode: int, owner: int) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(path)
    os.chmod(path, mode)
    os.chown(path, owner, owner)
    listener.listen(64)
    listener.setblocking(False)
    return listener
