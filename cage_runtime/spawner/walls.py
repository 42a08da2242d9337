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


_FLAGS = {
    Namespace.USER: syscall.CLONE_NEWUSER, Namespace.PID: syscall.CLONE_NEWPID, Namespace.IPC: syscall.CLONE_NEWIPC,
    Namespace.UTS: syscall.CLONE_NEWUTS, Namespace.NET: syscall.CLONE_NEWNET, Namespace.CGROUP: syscall.CLONE_NEWCGROUP,
    Namespace.TIME: syscall.CLONE_NEWTIME,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Walls:
    namespaces: frozenset[Namespace] = frozenset(Namespace)
    seccomp: bool = True
    landlock: bool = True
    capabilities: bool = True
    """That cage-init keeps a few, and what it starts none."""
    lsm: bool = True
    """That a cage is in a security context of its own, where the host has them.

    Not without the user namespace: a context gives no right over the host's, and so none to make a cage there.
    """

    def __post_init__(self) -> None:
        if self.lsm and Namespace.USER not in self.namespaces:
            raise ValueError("a cage with a security context has a user namespace of its own")

    def flags(self, *kinds: Namespace) -> int:
        """Of those of `kinds` that a cage has of its own, for clone3(2) and unshare(2)."""
        return sum(_FLAGS[kind] for kind in kinds if kind in self.namespaces)


ALL = Walls()
