# SPDX-License-Identifier: LGPL-2.1-or-later
"""The event loop of the spawner and of cage-init: timers, and epoll, as cgroup.events is polled for priority events."""

from __future__ import annotations

import heapq
import itertools
import select
import time
from collections.abc import Callable

Handler = Callable[[], None]
READ = select.EPOLLIN
WRITE = select.EPOLLOUT
PRIORITY = select.EPOLLPRI


class Loop:
    def __init__(self) -> None:
        self._epoll = select.epoll(flags=select.EPOLL_CLOEXEC)
        self._handlers: dict[int, Handler] = {}
        self._timers: list[tuple[float, int, Handler]] = []
        self._numbers = itertools.count()
        self.running = True

    def watch(self, descriptor: int, handler: Handler, events: int = READ) -> None:
        self._epoll.register(descriptor, events)
        self._handlers[descriptor] = handler

    def change(self, descriptor: int, events: int) -> None:
        """Watch it for other events from now on."""
        self._epoll.modify(descriptor, events)

    def forget(self, descriptor: int) -> None:
        """Stop watching; call it before the descriptor is closed."""
        self._epoll.unregister(descriptor)
        del self._handlers[descriptor]

    def after(self, seconds: float, handler: Handler) -> None:
        heapq.heappush(self._timers, (time.monotonic() + seconds, next(self._numbers), handler))

    def run(self) -> None:
        while self.running:
            self.turn()

    def turn(self) -> None:
        """Wait for what comes first, and handle all that has come."""
        wait = max(0.0, self._timers[0][0] - time.monotonic()) if self._timers else None
        ready = [(descriptor, self._handlers.get(descriptor)) for descriptor, _ in self._epoll.poll(wait)]
        for descriptor, handler in ready:
            # A handler before this one may have stopped watching it, and another may have its number by now.
            if handler is not None and self._handlers.get(descriptor) is handler:
                handler()
        while self._timers and self._timers[0][0] <= time.monotonic():
            heapq.heappop(self._timers)[2]()
