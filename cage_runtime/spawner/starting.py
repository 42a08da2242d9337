# SPDX-License-Identifier: LGPL-2.1-or-later
"""The commands of a cage between their fork and the program that they become, which somebody inside may keep from them.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass

from cage_runtime.spawner.child import HOME, Command, Forked, NotStarted, Streams, fork
from cage_runtime.spawner.loop import Loop
from cage_runtime.spawner.profile import Filters, profiles
from cage_runtime.spawner.walls import Walls

START_SECONDS = 10.0
"""A command takes some milliseconds to execute; one that something in the cage keeps from it this long is killed."""

Done = Callable[[int, NotStarted | None], None]
"""Told a pid, and None when the command has executed or what says why it will not."""


@dataclass(kw_only=True, slots=True)
class _Pending:
    """A command that has not executed yet, and who is told when it has or will not."""

    forked: Forked
    done: Done


class Starter:
    """Forks them, each with the rights of its profile; `processes` is the most that one may have."""

    def __init__(self, loop: Loop, filters: Filters, walls: Walls, processes: int) -> None:
        self._loop, self._processes = loop, processes
        self._profiles = profiles(filters, HOME, walls)
        self._pending: dict[int, _Pending] = {}

    def start(self, command: Command, streams: Streams, done: Done) -> int:
        """The pid; `done` comes later, by the loop.  NotStarted where it could not be forked: then it never comes."""
        forked = fork(command, streams, self._profiles[command.profile], self._processes)
        pending = self._pending[forked.pid] = _Pending(forked=forked, done=done)
        self._loop.watch(forked.trouble, lambda: self._executed(forked.pid))
        self._loop.after(START_SECONDS, lambda: self._give_up(pending))
        return forked.pid

    def ended(self, pid: int) -> None:
        """A child has ended: it has said all that it will, and that comes before its end."""
        if pid in self._pending:
            self._executed(pid)

    def _executed(self, pid: int) -> None:
        pending = self._pending.pop(pid)
        self._loop.forget(pending.forked.trouble)
        pending.done(pid, pending.forked.outcome())

    def _give_up(self, pending: _Pending) -> None:
        pid = pending.forked.pid
        if self._pending.get(pid) is not pending:
            return
        del self._pending[pid]
        self._loop.forget(pending.forked.trouble)
        os.close(pending.forked.trouble)
        os.kill(pid, signal.SIGKILL)
        pending.done(pid, NotStarted(125, "something in the cage keeps the command from starting"))
