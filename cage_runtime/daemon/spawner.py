# SPDX-License-Identifier: LGPL-2.1-or-later
"""caged's side of the spawner's socket: requests that wait for their reply, and a connection that comes back.

A spawner that ends is started again by whoever watches over it.  One that was told to end takes no request any more
and answers those that it has; what it did not take is asked of the next one.  What one that was killed was asked for is
asked again where that comes to the same, and fails with SpawnerEnded where it does not.  What is asked of a new one
waits until `reconnected` has looked what stands.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec

from cage_runtime.errors import BUS_ERROR_PREFIX, CageError, SpawnerUnavailable, from_bus
from cage_runtime.model import REPEATS_MAX, SPAWNER_RETURN_SECONDS
from cage_runtime.spawner import wire
from cage_runtime.spawner.spec import REPEATABLE, AnyReply, AnyRequest, Event, Reply, decode_reply, encode

LOG = logging.getLogger(__name__)
RETRY_SECONDS = 0.05
"""Between attempts to reach a spawner that is being started again."""


class SpawnerEnded(SpawnerUnavailable):
    """It ended while it was at the request: what it has done is not known."""


class _NotTaken(SpawnerUnavailable):
    """It takes no request any more, and so not this one."""


class SpawnerClient:
    def __init__(self, path: Path, happened: Callable[[Event], None],
                 reconnected: Callable[[], Awaitable[None]]) -> None:
        self._path = str(path)
        self._happened, self._reconnected = happened, reconnected
        self._socket: socket.socket | None = None
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Reply]] = {}
        self._up = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None
        self._looking: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Connect, and stay connected from now on; SpawnerUnavailable where no spawner listens in time."""
        self._keeper = asyncio.get_running_loop().create_task(self._keep())
        await self._wait_up()

    @property
    def is_up(self) -> bool:
        return self._up.is_set()

    async def _wait_up(self) -> None:
        try:
            async with asyncio.timeout(SPAWNER_RETURN_SECONDS):
                await self._up.wait()
        except TimeoutError as error:
            raise SpawnerUnavailable(f"no cage-spawner listens on {self._path}; start it") from error

    async def _keep(self) -> None:
        first = True
        while True:
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
            try:
                connection.connect(self._path)
            except OSError:
                connection.close()
                await asyncio.sleep(RETRY_SECONDS)
                continue
            connection.setblocking(False)
            self._socket = connection
            lost = asyncio.get_running_loop().create_future()
            asyncio.get_running_loop().add_reader(connection, self._receive, connection, lost)
            if first:
                self._up.set()
            else:
                # Beside the wait: a spawner that ends while we look is to be reached again, and then looked at.
                self._looking = asyncio.get_running_loop().create_task(self._look(connection))
            first = False
            await lost
            if self._looking is not None:
                self._looking.cancel()
            LOG.warning("the spawner went away")

    async def _look(self, connection: socket.socket) -> None:
        try:
            await self._reconnected()
        except (CageError, OSError) as error:
            LOG.error("what stands could not be looked at: %s", error)
        finally:
            if self._socket is connection:
                self._up.set()

    def _receive(self, connection: socket.socket, lost: asyncio.Future[None]) -> None:
        try:
            received = wire.receive(connection)
            if received is not None:
                message, descriptors = received
                wire.close_all(descriptors)
                self._take(decode_reply(message))
                return
        except BlockingIOError:
            return
        except (OSError, wire.PeerError, msgspec.DecodeError) as error:
            LOG.error("the spawner: %s", error)
        asyncio.get_running_loop().remove_reader(connection)
        connection.close()
        self._socket = None
        self._up.clear()
        waiting, self._waiting = self._waiting, {}
        for future in waiting.values():
            if not future.done():
                future.set_exception(SpawnerEnded("the spawner ended while it was at it; try again"))
        if not lost.done():
            lost.set_result(None)

    def _take(self, message: AnyReply) -> None:
        if not isinstance(message, Reply):
            self._happened(message)
            return
        future = self._waiting.pop(message.id, None)
        if future is not None and not future.done():
            future.set_result(message)

    def number(self) -> int:
        """A fresh id for a request."""
        return next(self._numbers)

    async def ask(self, request: AnyRequest, descriptors: tuple[int, ...] = ()) -> Reply:
        """The reply; what the spawner could not do is raised as the error that it names.

        SpawnerEnded where it ended while it was at something that may not be done twice.
        """
        for _ in range(REPEATS_MAX):
            try:
                return await self._ask(request, descriptors)
            except (_NotTaken, SpawnerEnded) as error:
                may_repeat = isinstance(error, _NotTaken) or isinstance(request, REPEATABLE)
                if self._looks() or not may_repeat:
                    raise
                LOG.info("%s is asked again: %s", type(request).__name__, error.sentence)
                request = msgspec.structs.replace(request, id=self.number())
        return await self._ask(request, descriptors)

    def _looks(self) -> bool:
        """Whether it is the look at a new spawner that asks: it ends with that spawner, and the next has its own."""
        return asyncio.current_task() is self._looking

    async def _ask(self, request: AnyRequest, descriptors: tuple[int, ...]) -> Reply:
        if not self._looks():
            await self._wait_up()
        if self._socket is None:
            raise _NotTaken("the spawner has just ended; try again")
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._waiting[request.id] = future
        try:
            wire.send(self._socket, encode(request), descriptors)
        except ConnectionError as error:
            del self._waiting[request.id]
            self._up.clear()  # it has been told to end, and answers what it has taken; then it hangs up
            raise _NotTaken("the spawner is ending; try again") from error
        except OSError as error:
            del self._waiting[request.id]
            raise SpawnerUnavailable(f"the spawner does not take requests: {error.strerror}") from error
        reply = await future
        if reply.fault is not None:
            raise from_bus(BUS_ERROR_PREFIX + reply.fault.kind, reply.fault.sentence)
        return reply
