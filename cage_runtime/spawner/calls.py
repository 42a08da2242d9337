# SPDX-License-Identifier: LGPL-2.1-or-later
"""The spawner's end of cage-syscalls: started with the first cage, and with the next call when it has ended.

A cage's calls wait at their listener, of which the spawner and cage-init have a descriptor each: cage-syscalls gets it
with the first call.  While that cannot run the spawner refuses them, and where no spawner comes back cage-init does,
both with ENOSYS: C libraries make nonsense of that, so it is for the worst case.  No death of ours holds a cage up for
good, and none opens anything.
"""

from __future__ import annotations

import errno
import logging
import os
import select
import socket
from dataclasses import dataclass, field
from pathlib import Path

from cage_runtime.spawner import helper, wire
from cage_runtime.spawner.loop import Loop
from cage_runtime.spawner.security import Label
from cage_runtime.syscalls import notification
from cage_runtime.syscalls.spec import COUNT_MAX, Call, Forget, Mediate, decode_told, encode

LOG = logging.getLogger(__name__)

RETRY_SECONDS = 10.0
"""For so long calls are refused when cage-syscalls has ended without an answer, or could not be started."""
LINGER_SECONDS = 60.0
"""For this long it goes on when the last cage that it answered has ended."""


@dataclass(kw_only=True, slots=True)
class _Cage:
    uuid: str
    listener: int
    born: float
    cgroup: Path
    watched: bool = False
    handed_over: bool = False
    before: dict[Call, int] = field(default_factory=dict)
    """What earlier ones of cage-syscalls had answered."""
    counts: dict[Call, int] = field(default_factory=dict)
    """What the one that runs has."""

    def total(self) -> dict[Call, int]:
        names = sorted(self.before.keys() | self.counts.keys())
        return {name: min(self.before.get(name, 0) + self.counts.get(name, 0), COUNT_MAX) for name in names}


class Calls:
    def __init__(self, loop: Loop, command: tuple[str, ...], label: Label) -> None:
        """`command` starts cage-syscalls, which gets the `label`; without one all calls are refused."""
        self._loop, self._command, self._label = loop, command, label
        self._cages: dict[str, _Cage] = {}
        self._connection: socket.socket | None = None
        self._pid = 0
        self._refuses = self._answered = False
        """Calls are refused for now; the cage-syscalls that runs has answered some."""

    def start(self) -> bool:
        """Have cage-syscalls ready for the first call; whether it is, or is about to be."""
        if not self._command:
            return False
        if self._connection is None:
            try:
                self._connection, self._pid = helper.start(self._command)
            except OSError as error:
                LOG.error("cage-syscalls cannot be started, and calls of cages are refused: %s", error)
                return False
            self._answered = False
            self._loop.watch(self._connection.fileno(), self._hear)
            return self._is_labelled()
        return True

    def _is_labelled(self) -> bool:
        """Whether it may write its answers into private cages too; it is ended otherwise."""
        try:
            pidfd = os.pidfd_open(self._pid)
            try:
                self._label.enter(pidfd)
            finally:
                os.close(pidfd)
        except OSError as error:
            LOG.error("cage-syscalls cannot be labelled, and calls of cages are refused: %s", error)
            self.end()
            return False
        return True

    def add(self, uuid: str, listener: int, born: float, cgroup: Path) -> None:
        """See to the calls that wait at `listener`, which is ours now; PeerError where the cage has one already."""
        if uuid in self._cages or not notification.is_listener(listener):
            os.close(listener)
            raise wire.PeerError("what a cage-init hands over is no listener, or another one")
        self._cages[uuid] = cage = _Cage(uuid=uuid, listener=listener, born=born, cgroup=cgroup)
        self._watch(cage)
        if not self._refuses and not self.start():
            self._refuse()

    def forget(self, uuid: str) -> None:
        """The cage has ended."""
        cage = self._cages.pop(uuid, None)
        if cage is None:
            return
        self._unwatch(cage)
        os.close(cage.listener)
        if cage.handed_over:
            self._send(encode(Forget(uuid=uuid)), ())
            self._loop.after(LINGER_SECONDS, self._end_unless_needed)

    def counts(self, uuid: str) -> dict[str, int]:
        """How many calls of the cage have been answered, by their names."""
        cage = self._cages.get(uuid)
        return {str(name): number for name, number in cage.total().items()} if cage is not None else {}

    def _watch(self, cage: _Cage) -> None:
        cage.watched = True
        self._loop.watch(cage.listener, lambda: self._called(cage))

    def _unwatch(self, cage: _Cage) -> None:
        if cage.watched:
            cage.watched = False
            self._loop.forget(cage.listener)

    def _called(self, cage: _Cage) -> None:
        """The first call of a cage waits, or nobody is left who could call."""
        poll = select.poll()
        poll.register(cage.listener, select.POLLIN)
        if not any(events & select.POLLIN for _, events in poll.poll(0)):
            self._unwatch(cage)
        elif self._refuses or not self._hand_over(cage):
            called = notification.receive(cage.listener)
            if called is not None:
                notification.respond(cage.listener, called, errno.ENOSYS)

    def _hand_over(self, cage: _Cage) -> bool:
        try:
            cgroup = os.open(cage.cgroup, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:  # it is being removed, or this process has no descriptor left
            LOG.warning("the calls of the cage %s are refused: %s", cage.uuid, error)
            return False
        try:
            if not self.start():
                self._refuse()
                return False
            message = encode(Mediate(uuid=cage.uuid, born=cage.born))
            cage.handed_over = self._send(message, (cage.listener, cgroup))
        finally:
            os.close(cgroup)
        if cage.handed_over:
            self._unwatch(cage)
        return cage.handed_over

    def _send(self, message: bytes, descriptors: tuple[int, ...]) -> bool:
        if self._connection is None:
            return False
        try:
            wire.send(self._connection, message, descriptors)
        except OSError as error:
            self._lost(str(error.strerror))
            return False
        return True

    def _hear(self) -> None:
        if self._connection is None:
            return
        counted = helper.hear(self._connection, decode_told, self._lost)
        if counted is None:
            return
        self._answered = True
        if counted.uuid in self._cages:
            self._cages[counted.uuid].counts = counted.calls

    def _lost(self, why: str) -> None:
        """One that has answered is started again with the next call, one that never did some time later."""
        LOG.warning("cage-syscalls: %s", why)
        if not self._answered:
            self._refuse()
        self.end()

    def _refuse(self) -> None:
        self._refuses = True
        self._loop.after(RETRY_SECONDS, self._try_again)

    def _try_again(self) -> None:
        self._refuses = False

    def _end_unless_needed(self) -> None:
        if not any(cage.handed_over for cage in self._cages.values()):
            self.end()

    def end(self) -> None:
        """End cage-syscalls; what is asked of it waits for the next one."""
        if self._connection is None:
            return
        self._loop.forget(self._connection.fileno())
        helper.end(self._connection, self._pid)
        self._connection = None
        for cage in self._cages.values():
            if cage.handed_over:
                cage.handed_over = False
                self._watch(cage)
            cage.before, cage.counts = cage.total(), {}
