# SPDX-License-Identifier: LGPL-2.1-or-later
"""The security contexts of cages as the spawner uses them, or why this host has none.

Law of this room: a cage that cannot be labelled is not born.  What a cage is refused the kernel counts; here it is
looked at once in a while, however much of it there is, so that a cage that tries on and on costs nobody anything.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from cage_runtime.errors import RuntimeFailure
from cage_runtime.spawner.loop import Loop
from cage_runtime.spawner.lsm.contexts import ANSWERS, CORE, Context, Contexts
from cage_runtime.spawner.lsm.operations import Operation

LOOK_SECONDS = 1.0
"""After a denial, until all that have come by then are told of together."""

Denied = Callable[[int, Mapping[str, int]], None]
"""Told of a context all that it was refused since it was made, each time that this has become more."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Label:
    """The context of one cage that is being born; on a host without contexts nothing is done."""

    contexts: Contexts | None
    xid: int

    def enter(self, pidfd: int) -> None:
        """The process, which has not run yet, and all that comes of it are in the context; OSError otherwise."""
        if self.contexts is not None:
            self.contexts.enter(pidfd, self.xid)

    def admit(self, listener: int) -> None:
        """The context and the core alone may connect to the listening socket."""
        if self.contexts is not None:
            self.contexts.tag_socket(listener, self.xid)

    def own(self, descriptor: int) -> None:
        """No other context may touch what is on the file system of the descriptor, which is the cage's alone."""
        if self.contexts is not None:
            self.contexts.tag_superblock(descriptor, self.xid)


class Security:
    def __init__(self, loop: Loop, denied: Denied, contexts: Contexts | None, why: str) -> None:
        """`why` there are no contexts, in a sentence; empty where there are."""
        self._loop, self._denied, self._contexts, self.why = loop, denied, contexts, why
        self._told: dict[int, dict[str, int]] = {}
        self._looks = False
        """It will look by itself, and does not listen meanwhile."""
        if contexts is not None:
            loop.watch(contexts.events(), self._happened)

    @classmethod
    def open(cls, loop: Loop, denied: Denied) -> Security:
        """With what is loaded and enforced, or the reason why nothing is."""
        try:
            contexts = Contexts.open()
        except (RuntimeFailure, OSError) as error:
            return cls(loop, denied, None, str(error))
        return cls(loop, denied, contexts, "")

    @classmethod
    def absent(cls, loop: Loop, denied: Denied) -> Security:
        """As on a host without contexts, for the attack suite."""
        return cls(loop, denied, None, "the tests leave it out")

    @property
    def none(self) -> Label:
        """No context."""
        return Label(contexts=None, xid=CORE)

    @property
    def hooks(self) -> int:
        """Places in the kernel at which contexts are checked."""
        return len(self._contexts.hooks()) if self._contexts is not None else 0

    # --- the life of a context -------------------------------------------------------------------------------
    def new(self, *, exec_home: bool, private: bool) -> Label:
        """A context for a cage; the number is never used again before the host starts anew."""
        if self._contexts is None:
            return self.none
        xid = self._contexts.new(Context(execute_writable=exec_home, private=private))
        return Label(contexts=self._contexts, xid=xid)

    @property
    def answers(self) -> Label:
        """For the process that answers the cages' system calls; it admits nobody and owns nothing."""
        return Label(contexts=self._contexts, xid=ANSWERS)

    def of(self, xid: int) -> Label:
        """The context that a cage has already."""
        return Label(contexts=self._contexts if xid != CORE else None, xid=xid)

    def forget(self, xid: int) -> None:
        """The cage is gone; nothing happens where that is known.  What it was refused at last is told first."""
        if self._contexts is None or xid == CORE:
            return
        self._tell(xid, self._contexts.denied(xid))
        self._told.pop(xid, None)
        self._contexts.forget(xid)

    def why_not(self, xid: int) -> str:
        """Why a running cage with that number is in no context that is enforced; empty where it is in one."""
        if not self.why and xid == CORE:
            return "the cage was started before there were security contexts; stop it and start it again"
        return self.why

    # --- what is refused -------------------------------------------------------------------------------------
    def denials(self, xid: int) -> dict[str, int]:
        """What the kernel has refused to the cage since its birth, by operation."""
        if self._contexts is None or xid == CORE:
            return {}
        return _counted(self._contexts.denied(xid))

    def tell_all(self) -> None:
        """Somebody new listens: tell all there is once more."""
        self._told.clear()
        if self._contexts is not None and not self._looks:
            self._look_later()

    def _happened(self) -> None:
        if not self._looks:
            self._look_later()

    def _look_later(self) -> None:
        if self._contexts is not None:
            # Until then it is not even noticed how much there is.
            self._loop.forget(self._contexts.events())
            self._looks = True
            self._loop.after(LOOK_SECONDS, self._look)

    def _look(self) -> None:
        if self._contexts is None:
            return
        self._looks = False
        self._loop.watch(self._contexts.events(), self._happened)
        self._contexts.read_events()  # they only say that the counters have changed
        for xid, counts in self._contexts.denials().items():
            self._tell(xid, counts)

    def _tell(self, xid: int, counts: Mapping[Operation, int]) -> None:
        now = _counted(counts)
        if now != self._told.get(xid, {}):
            self._told[xid] = now
            self._denied(xid, now)


def _counted(counts: Mapping[Operation, int]) -> dict[str, int]:
    return {str(operation): number for operation, number in counts.items() if number}
