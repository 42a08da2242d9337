# SPDX-License-Identifier: LGPL-2.1-or-later
"""What core halves have alike: their start and confinement, and one interface on every gateway.

Law of this room: whoever asks is the gateway that a call came through, which each handler is told first.  What no
honest cage half says is recorded, and closes the channel of that cage to this mediator for a while: it disturbs nobody
else.  No cage has more of a core half's attention than its share: what it says beyond that is heard later.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

from cage_runtime import folders, log, manifest
from cage_runtime.bus import Answer, Bus, Call, Service
from cage_runtime.config import RuntimeConfig, load_runtime
from cage_runtime.confine import confine
from cage_runtime.errors import CageError, ProtocolError, RuntimeFailure, TooOften, UsageError
from cage_runtime.model import CALLS_PER_CAGE
from cage_runtime.notify import notify
from cage_runtime.text import escape
from mediators import wire
from mediators.gateways import Gateways
from mediators.pace import Pace
from mediators.places import Places
from mediators.wire import Caged, Gateway

LOG = logging.getLogger(__name__)

Handler = Callable[[Gateway, Call], Awaitable[Answer]]
"""Answers a call that came through the gateway."""
Handlers = Callable[[Caged], Mapping[str, Handler]]
"""The handler of each method of the interface, made once that there is caged to ask."""


class CoreHalf:
    """Serves the interface of the mediator `name` on every gateway."""

    def __init__(self, name: str, service: str, handlers: Mapping[str, Handler], bus: Bus, caged: Caged, *,
                 at_once: int = CALLS_PER_CAGE, left: Callable[[str], None] = lambda _uuid: None) -> None:
        """`service` is what policy calls it in the record; `at_once` calls of one cage at most are answered at the
        same time; `left` is told the uuid of an instance whose gateway has gone."""
        self._name, self._service, self._handlers = name, service, handlers
        self._caged, self._most = caged, at_once
        self._interface = wire.interface(name)
        self._places = Places()
        self._gateways = Gateways(bus, caged, name=wire.bus_name(name), serve=self._serve, left=left)

    async def run(self) -> None:
        """Raises RuntimeFailure when the system bus has ended."""
        await self._gateways.run()

    async def _serve(self, gateway: Gateway, bus: Bus) -> None:
        pace = Pace(asyncio.get_running_loop().time)
        bus.hear_by(pace.heard)
        bus.malformed = functools.partial(self._malformed, gateway, bus, pace)
        handlers = {member: functools.partial(self._answer, gateway, handler, pace)
                    for member, handler in self._handlers.items()}
        bus.serve(wire.path(self._name), Service(interface=self._interface, handlers=handlers))
        await bus.follow_callers()

    async def _answer(self, gateway: Gateway, handler: Handler, pace: Pace, call: Call) -> Answer:
        try:
            with self._places.take(gateway.uuid, self._most, lambda: RuntimeFailure(
                    f"{self._most} requests of this cage are under way; wait until one has ended")):
                return await handler(gateway, call)
        except (TooOften, RuntimeFailure):
            pace.refused()
            raise

    async def _malformed(self, source: Gateway, bus: Bus, pace: Pace, error: UsageError) -> None:
        pace.refused()
        try:
            await self._caged.record_malformed(source, self._service, error.sentence)
        except CageError as failure:
            LOG.error("not recorded: %s: %s", escape(error.sentence), escape(failure.sentence))
        if isinstance(error, ProtocolError):
            LOG.warning("the channel of %s is closed: %s", escape(source.name), escape(error.sentence))
            self._gateways.shut_out(source, bus)


def run(name: str, arguments: list[str], *, service: str, handlers: Handlers, at_once: int = CALLS_PER_CAGE,
        left: Callable[[str], None] = lambda _uuid: None) -> int:
    """`cage-mediator NAME [--config FILE]`; ends when the system bus does, with the status of that error."""
    log.set_up("%(name)s: %(message)s")
    try:
        config = configured(arguments)
        if not begin(name, config):
            return 0
        asyncio.run(serve_until_bus_ends(name, service, handlers, at_once=at_once, left=left))
    except CageError as error:
        LOG.critical("%s", error.sentence)
        return error.exit_status
    return 0


def configured(arguments: list[str]) -> RuntimeConfig:
    """The configuration that the command line of a core half names, or the system's."""
    if arguments and (len(arguments) != 2 or arguments[0] != "--config"):
        raise UsageError("the core half takes --config FILE and nothing else")
    return load_runtime(Path(arguments[1]) if arguments else None)


def begin(name: str, config: RuntimeConfig) -> bool:
    """Confine the core half of `name`, before the first thread, to the folder that its manifest names; what cages hand
    over is open already.  False, and nothing is done, where somebody has disabled the mediator."""
    mediator = next((each for each in manifest.load(config.paths) if each.name == name), None)
    if mediator is None:
        LOG.info("the mediator %s is disabled", name)
        notify("READY=1")  # or whoever started it would take its end for a fault
        return False
    own = [mediator.folder] if mediator.folder else []
    if own:
        folders.check_present(folders.of_state(config, *own))
    os.umask(0o077)
    confine(config, "core", writable=[Path(config.paths.state, folder) for folder in own])
    return True


async def serve_until_bus_ends(name: str, service: str, handlers: Handlers, *, at_once: int = CALLS_PER_CAGE,
                               left: Callable[[str], None] = lambda _uuid: None,
                               transforms: frozenset[str] = frozenset(),
                               verifiers: frozenset[str] = frozenset()) -> None:
    """Serve every gateway; raises RuntimeFailure when the system bus has ended."""
    bus = await Bus.connect()
    caged = Caged(bus, transforms=transforms, verifiers=verifiers)
    try:
        await CoreHalf(name, service, handlers(caged), bus, caged, at_once=at_once, left=left).run()
    finally:
        bus.disconnect()
