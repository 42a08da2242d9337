# SPDX-License-Identifier: LGPL-2.1-or-later
"""Gateways: for each running cage a bus on the core's side, over which its mediators reach their core halves.

The socket is there as long as the cage runs; its dbus-daemon is started by the first connection (nothing is started
before it is needed), runs as caged's own user and dies with caged, which makes the socket anew when it is back.
Which gateway a request comes through is who asks (law 2).
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

LOG = logging.getLogger(__name__)
STARTS, START_SECONDS = 5, 60.0
"""A gateway's bus that ends is started again on the next connection, this often in this time."""
SETPRIV, DBUS_DAEMON = "/usr/bin/setpriv", "/usr/bin/dbus-daemon"


@dataclass(kw_only=True, slots=True)
class _Gateway:
    name: str
    listener: socket.socket
    pid: int = 0
    pidfd: int = -1
    starts: deque[float] = field(default_factory=deque)


class Gateways:
    def __init__(self, directory: Path, template: Path, files_user: str, rendered: Path,
                 up: Callable[[str, str, str], None], down: Callable[[str], None]) -> None:
        self._directory, self._up, self._down = directory, up, down
        rendered.write_text(template.read_text(encoding="utf-8").replace("@FILES_USER@", files_user), encoding="utf-8")
        self._configuration = str(rendered)
        self._gateways: dict[str, _Gateway] = {}

    def _path(self, uuid: str) -> str:
        return str(self._directory / uuid / "bus")

    def address(self, uuid: str) -> str:
        return f"unix:path={self._path(uuid)}"

    def standing(self) -> list[tuple[str, str, str]]:
        """(name, uuid, address) of every gateway whose bus runs."""
        return [(g.name, uuid, self.address(uuid)) for uuid, g in self._gateways.items() if g.pid]

    def is_open(self, uuid: str) -> bool:
        return uuid in self._gateways

    def open(self, name: str, uuid: str) -> None:
        """Listen for the cage; its directory was made by the spawner and is caged's.  One of an earlier life ends."""
        self.close(uuid)
        path = self._path(uuid)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        Path(path).unlink(missing_ok=True)
        listener.bind(path)
        # Who gets this far is decided by the directories above: the cage's mediator inside, its group on the host.
        os.chmod(path, 0o666)  # noqa: S103
        listener.listen(16)
        listener.setblocking(False)
        self._gateways[uuid] = _Gateway(name=name, listener=listener)
        asyncio.get_running_loop().add_reader(listener, self._start, uuid)

    def close(self, uuid: str) -> None:
        """End the cage's gateway; nothing happens where it has none."""
        gateway = self._gateways.pop(uuid, None)
        if gateway is None:
            return
        if gateway.listener.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(gateway.listener)
            gateway.listener.close()
        if gateway.pid:
            asyncio.get_running_loop().remove_reader(gateway.pidfd)
            signal.pidfd_send_signal(gateway.pidfd, signal.SIGKILL)
            os.waitpid(gateway.pid, 0)
            os.close(gateway.pidfd)
            self._down(uuid)

    def _start(self, uuid: str) -> None:
        gateway = self._gateways[uuid]
        loop = asyncio.get_running_loop()
        loop.remove_reader(gateway.listener)
        while gateway.starts and gateway.starts[0] < loop.time() - START_SECONDS:
            gateway.starts.popleft()
        if len(gateway.starts) >= STARTS:
            LOG.error("the gateway bus of %s ends again and again; the cage goes without mediators until it is started "
                      "anew", gateway.name)
            gateway.listener.close()
            return
        gateway.starts.append(loop.time())
        gateway.pid = _fork_bus(gateway.listener.fileno(), self._configuration)
        gateway.pidfd = os.pidfd_open(gateway.pid)
        loop.add_reader(gateway.pidfd, self._ended, uuid)
        self._up(gateway.name, uuid, self.address(uuid))

    def _ended(self, uuid: str) -> None:
        """A gateway's bus that ends is started again by the next connection."""
        gateway = self._gateways[uuid]
        loop = asyncio.get_running_loop()
        loop.remove_reader(gateway.pidfd)
        os.waitpid(gateway.pid, 0)
        os.close(gateway.pidfd)
        gateway.pid, gateway.pidfd = 0, -1
        LOG.warning("the gateway bus of %s ended", gateway.name)
        self._down(uuid)
        loop.add_reader(gateway.listener, self._start, uuid)


def _fork_bus(listener: int, configuration: str) -> int:
    """Start a dbus-daemon on `listener` by systemd's protocol, which wants the daemon's own pid in its environment."""
    pid = os.fork()
    if pid:
        return pid
    try:
        os.dup2(listener, 3, inheritable=True)
        os.closerange(4, 65536)
        environment = {"LISTEN_FDS": "1", "LISTEN_PID": str(os.getpid()), "PATH": "/usr/bin:/bin"}
        # setpriv(1) has it die with us, and becomes it without a new pid.
        arguments = [SETPRIV, "--pdeathsig", "KILL", "--", DBUS_DAEMON,
                     "--nofork", "--nopidfile", "--nosyslog", "--address=systemd:",
                     f"--config-file={configuration}"]
        os.execve(SETPRIV, arguments, environment)  # noqa: S606
    finally:
        os._exit(127)
