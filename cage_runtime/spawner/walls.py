# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which walls a cage has: all of them, but where the attack suite takes some away to see what the others hold.

Law of this room: the spawner's `main` is called with such a value by the tests' own spawner alone.  No command line,
configuration, environment or message leads here, so nothing that is shipped can leave a wall out.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from cage_runtime.spawner import syscall


class Namespace(StrEnum):
    """What a cage has of its own; a kind that is left out is the spawner's.

    The mount namespace is not among them: a cage's root is one.
    """

    USER = "user"
    """Without it a cage's uids are the host's, and its home is in memory: what is stored belongs to mapped ids."""
    PID = "pid"
    IPC = "ipc"
    UTS = "uts"
    NET = "net"
    CGROUP = "cgroup"
    TIME = "time"


_CLONED = {
    Namespace.USER: syscall.CLONE_NEWUSER, Namespace.PID: syscall.CLONE_NEWPID, Namespace.IPC: syscall.CLONE_NEWIPC,
    Namespace.UTS: syscall.CLONE_NEWUTS, Namespace.NET: syscall.CLONE_NEWNET,
}
"""The others are entered afterwards: made by clone, a cgroup namespace would show the spawner's cgroup as its root, and
a time namespace the host's clocks for good."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Walls:
    namespaces: frozenset[Namespace] = frozenset(Namespace)
    seccomp: bool = True
    landlock: bool = True
    capabilities: bool = True
    """That cage-init keeps a few, and what it starts none."""
    lsm: bool = True
    """That a cage is in a security context of its own, where the host has them."""

    def clone_flags(self) -> int:
        """For clone3(2)."""
        return syscall.CLONE_NEWNS | sum(flag for kind, flag in _CLONED.items() if kind in self.namespaces)


ALL = Walls()
