# SPDX-License-Identifier: LGPL-2.1-or-later
"""Answers calls, one of each cage in turn, and counts them."""

from __future__ import annotations

import errno
import logging
import os
import select
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from cage_runtime.spawner import syscall
from cage_runtime.syscalls import answers, notification
from cage_runtime.syscalls.answers import Facts
from cage_runtime.syscalls.memory import Memory
from cage_runtime.syscalls.notification import Notification
from cage_runtime.syscalls.spec import Call, Counted

LOG = logging.getLogger(__name__)

ANSWERS, ANSWERS_SECONDS = 200, 0.1
"""So many calls of one cage are answered in so long; more wait.  What a cage asks for is done in the core's time."""
TELL_SECONDS = 1.0
"""Between two reports of a cage's counts, so that no cage makes work by them."""

_CALLS: dict[int, tuple[Call, Callable[[Facts], bytes]]] = {
    syscall.NUMBERS["sysinfo"]: ("sysinfo", answers.sysinfo),
}
"""By number: its name, and what is written where its first argument points."""
_OTHER: tuple[Call, None] = ("other", None)


@dataclass(kw_only=True, slots=True)
class Mediated:
    """A cage whose calls are answered."""

    uuid: str
    listener: int
    facts: Facts
    counts: dict[Call, int] = field(default_factory=dict)
    told: dict[Call, int] = field(default_factory=dict)
    left: int = ANSWERS
    """Answers that it has until the next turn of the allowance."""

    def close(self) -> None:
        os.close(self.listener)
        os.close(self.facts.cgroup)


class Mediator:
    def __init__(self, proc: str, tell: Callable[[Counted], None]) -> None:
        """`proc` is where the host's processes are (proc(5))."""
        self._proc, self._tell = proc, tell
        self._cages: dict[int, Mediated] = {}
        """By listener."""
        self._epoll = select.epoll()
        self._waits: Callable[[], None] | None = None
        self._renewal = self._telling = float("inf")
        """When allowances are renewed, and when counts are told; at infinity nobody needs it."""

    def watch(self, descriptor: int, ready: Callable[[], None]) -> None:
        """Call `ready` when there is something to read from the one descriptor that is nobody's listener."""
        self._waits = ready
        self._epoll.register(descriptor, select.EPOLLIN)

    def add(self, uuid: str, listener: int, facts: Facts) -> None:
        """Answer the calls of a cage; both descriptors are ours now."""
        self.forget(uuid)
        self._cages[listener] = Mediated(uuid=uuid, listener=listener, facts=facts)
        self._epoll.register(listener, select.EPOLLIN)

    def forget(self, uuid: str) -> None:
        for cage in [cage for cage in self._cages.values() if cage.uuid == uuid]:
            self._drop(cage)

    def _drop(self, cage: Mediated) -> None:
        del self._cages[cage.listener]
        self._epoll.unregister(cage.listener)
        cage.close()

    def turn(self) -> None:
        """Wait for what comes first; answer one call of each cage that has one."""
        wait = max(0.0, min(self._renewal, self._telling) - time.monotonic())
        for descriptor, events in self._epoll.poll(None if wait == float("inf") else wait):
            cage = self._cages.get(descriptor)
            if cage is None:
                if self._waits is not None:
                    self._waits()
            elif events & select.EPOLLIN:
                self._attend(cage)
            else:  # EPOLLHUP: nobody is left who could call
                self._drop(cage)
        now = time.monotonic()
        if now >= self._renewal:
            self._renew()
        if now >= self._telling:
            self._telling = float("inf")
            for cage in self._cages.values():
                self._report(cage)

    def _attend(self, cage: Mediated) -> None:
        called = notification.receive(cage.listener)
        if called is None:
            return
        name, error = self._answer(cage, called)
        notification.respond(cage.listener, called, error)
        cage.counts[name] = cage.counts.get(name, 0) + 1
        if not cage.told:
            self._report(cage)
        self._telling = min(self._telling, time.monotonic() + TELL_SECONDS)
        cage.left -= 1
        self._renewal = min(self._renewal, time.monotonic() + ANSWERS_SECONDS)
        if cage.left == 0:
            self._epoll.modify(cage.listener, 0)

    def _answer(self, cage: Mediated, called: Notification) -> tuple[Call, int]:
        """The call's name and the error that it fails with, 0 where it does not."""
        name, made = _CALLS.get(called.number, _OTHER)
        if made is None:
            return name, errno.ENOSYS
        content = made(cage.facts)
        try:
            with Memory.of(self._proc, called.pid) as memory:
                if notification.is_valid(cage.listener, called):
                    memory.write(called.arguments[0], content)
        except OSError as error:
            # Whose memory we may not have is told that there is no such call, never what the kernel would say.
            return name, errno.EFAULT if error.errno == errno.EFAULT else errno.ENOSYS
        return name, 0

    def _renew(self) -> None:
        self._renewal = float("inf")
        for cage in self._cages.values():
            if cage.left == 0:
                self._epoll.modify(cage.listener, select.EPOLLIN)
            cage.left = ANSWERS

    def _report(self, cage: Mediated) -> None:
        if cage.counts != cage.told:
            cage.told = dict(cage.counts)
            self._tell(Counted(uuid=cage.uuid, calls=cage.told))
