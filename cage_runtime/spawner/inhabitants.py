# SPDX-License-Identifier: LGPL-2.1-or-later
"""Who is in a cage beside its PID 1: how they are counted and signalled, and whether a signal came from them."""

from __future__ import annotations

import os
import signal
import struct

SIGINFO_BYTES = 128
"""Of one struct signalfd_siginfo (signalfd(2))."""
SI_USER = 0


def from_outside(siginfo: bytes) -> bool:
    """Whether a struct signalfd_siginfo is of a signal by kill(2) from outside of our pid namespace.

    The kernel gives such a sender the pid 0, which a process inside can only write for itself where it says that it
    queues the signal (rt_sigqueueinfo(2)): then the code is another one.
    """
    _number, _errno, code, pid = struct.unpack_from("=IiiI", siginfo)
    return bool(code == SI_USER and pid == 0)


def signal_all(number: signal.Signals) -> None:
    """Signal everything in the cage but this process."""
    if os.getpid() != 1:  # not in a pid namespace of its own (walls.py): all are the host's
        return
    try:
        os.kill(-1, number)
    except ProcessLookupError:
        return


def children() -> set[int]:
    """The processes whose parent we are, or have become (proc(5), /proc/PID/task/TID/children); what has ended and is
    not reaped yet is among them."""
    with open(f"/proc/self/task/{os.getpid()}/children", encoding="ascii") as file:
        return {int(pid) for pid in file.read().split()}


def is_alone() -> bool:
    """Whether nothing is left in the cage but this process, which reaps whatever ends in it (kill(2), pid -1)."""
    if os.getpid() != 1:  # as above; the cage's cgroup has the rest
        return True
    try:
        os.kill(-1, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def signal_group(pid: int, number: int) -> None:
    """Signal a command and what it runs in its process group; a number that is no signal's is nobody's."""
    if 0 < number < signal.NSIG:
        try:
            os.killpg(pid, number)
        except (ProcessLookupError, PermissionError):
            return
