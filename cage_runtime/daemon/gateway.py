# SPDX-License-Identifier: LGPL-2.1-or-later
"""Gateways: for each running cage a bus on the core's side, over which its mediators reach their core halves.

The socket is there as long as the cage runs; its dbus-daemon is started by the first connection (nothing is started
before it is needed), by the spawner, and goes on when caged ends.  A caged that comes back takes over the buses that
run, and makes the sockets of the others anew.  Which gateway a request comes through is who asks (law 2).
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cage_runtime import generate
from cage_runtime.config import Users
from cage_runtime.errors import CageError
from cage_runtime.manifest import Mediator

LOG = logging.getLogger(__name__)
STARTS, START_SECONDS = 5, 60.0
"""A gateway's bus that ends is started again on the next connection, this often in this time."""


@dataclass(kw_only=True, slots=True)
class _Gateway:
    name: str
    listener: socket.socket | None
    """None where the bus was started for an earlier caged, and alone has it."""
    runs: bool = False
    """There is a bus, as far as the spawner has said."""
    starting: asyncio.Task[None] | None = None
    admitting: asyncio.Task[object] | None = None
    starts: deque[float] = field(default_factory=deque)


class Gateways:
    def __init__(self, directory: Path, start: Callable[[str, int], Awaitable[object]],
                 up: Callable[[str, str, str], None], down: Callable[[str], None], *,
                 admit: Callable[[str, int], Coroutine[None, None, object]]) -> None:
        """`start` has the spawner start the bus of a cage on a listening socket, unless it runs; `admit` has it see to
        it that no other cage connects."""
        self._directory, self._start, self._up, self._down, self._admit = directory, start, up, down, admit
        self._gateways: dict[str, _Gateway] = {}

    def _path(self, uuid: str) -> str:
        return str(self._directory / uuid / "bus")

    def address(self, uuid: str) -> str:
        return f"unix:path={self._path(uuid)}"

    def standing(self) -> list[tuple[str, str, str]]:
        """(name, uuid, address) of every gateway whose bus runs."""
        return [(g.name, uuid, self.address(uuid)) for uuid, g in self._gateways.items() if g.runs]

    def settle(self, name: str, uuid: str, *, runs: bool) -> None:
        """Have the gateway of the running cage in line with whether the spawner says that its bus `runs`; OSError where
        there is to be a socket and can be none."""
        gateway = self._gateways.get(uuid)
        if gateway is None and runs:
            self._gateways[uuid] = _Gateway(name=name, listener=None, runs=True)
            self._up(name, uuid, self.address(uuid))
        elif gateway is None:
            self.open(name, uuid)
        elif gateway.runs and not runs:
            self.ended(uuid)

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
        admitting = asyncio.get_running_loop().create_task(self._admit(uuid, listener.fileno()))
        admitting.add_done_callback(lambda task: _log(name, task))
        self._gateways[uuid] = _Gateway(name=name, listener=listener, admitting=admitting)
        self._await_first(uuid, listener)

    async def admitted(self, uuid: str) -> None:
        """Returns when the cage can connect to its gateway; CageError where it will not be able to."""
        gateway = self._gateways.get(uuid)
        if gateway is not None and gateway.admitting is not None:
            await asyncio.shield(gateway.admitting)

    def close(self, uuid: str) -> None:
        """Forget the cage's gateway, whose bus ends with the cage; nothing happens where it has none."""
        gateway = self._gateways.pop(uuid, None)
        if gateway is None:
            return
        for task in (gateway.starting, gateway.admitting):
            if task is not None:
                task.cancel()
        if gateway.listener is not None and gateway.listener.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(gateway.listener)
            gateway.listener.close()
        if gateway.runs:
            self._down(uuid)

    def ended(self, uuid: str) -> None:
        """The spawner says that the bus has ended: the next connection starts another."""
        gateway = self._gateways.get(uuid)
        if gateway is None or not gateway.runs:
            return
        LOG.warning("the gateway bus of %s ended", gateway.name)
        gateway.runs = False
        self._down(uuid)
        if gateway.listener is not None:
            self._await_first(uuid, gateway.listener)
            return
        try:
            self.open(gateway.name, uuid)
        except OSError as error:  # the cage has ended meanwhile, and the news of that are on their way
            LOG.warning("%s has no gateway: %s", gateway.name, error)

    def _await_first(self, uuid: str, listener: socket.socket) -> None:
        asyncio.get_running_loop().add_reader(listener, self._begin, uuid, listener)

    def _begin(self, uuid: str, listener: socket.socket) -> None:
        """Somebody connects."""
        gateway, loop = self._gateways[uuid], asyncio.get_running_loop()
        loop.remove_reader(listener)
        while gateway.starts and gateway.starts[0] < loop.time() - START_SECONDS:
            gateway.starts.popleft()
        if len(gateway.starts) >= STARTS:
            LOG.error("the gateway bus of %s ends again and again; the cage goes without mediators until it is started "
                      "anew", gateway.name)
            listener.close()
            return
        gateway.starts.append(loop.time())
        gateway.starting = loop.create_task(self._started(uuid, gateway, listener))

    async def _started(self, uuid: str, gateway: _Gateway, listener: socket.socket) -> None:
        try:
            await self._start(uuid, listener.fileno())
        except CageError as error:
            LOG.error("the gateway bus of %s: %s", gateway.name, error.sentence)
            self._await_first(uuid, listener)
            return
        gateway.runs = True
        self._up(gateway.name, uuid, self.address(uuid))


def _log(name: str, task: asyncio.Task[object]) -> None:
    if not task.cancelled() and isinstance(error := task.exception(), CageError):
        LOG.error("%s may not reach its gateway: %s", name, error.sentence)


def write_configuration(template: Path, rendered: Path, mediators: Sequence[Mediator], users: Users) -> None:
    """What every gateway's bus reads at its start; whole at every moment, because one may just be starting."""
    fresh = rendered.with_suffix(".new")
    text = generate.gateway_bus(template.read_text(encoding="utf-8"), mediators, users.mediator)
    fresh.write_text(text, encoding="utf-8")
    fresh.rename(rendered)
