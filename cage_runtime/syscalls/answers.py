# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a cage is told: of itself, and nothing of the host but how much memory a cage without a limit could have."""

from __future__ import annotations

import os
import struct
import time
from dataclasses import dataclass

_SYSINFO = struct.Struct("=q3Q6QHH4x2QI4x")
"""struct sysinfo (sysinfo(2)) where a long has 64 bits."""
_FILE_BYTES_MAX = 64
PROCESSES_MAX = 0xFFFF


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """Of one cage: its cgroup's directory, when it was born by CLOCK_BOOTTIME, and the host's memory in bytes."""

    cgroup: int
    born: float
    memory: int

    def number(self, name: str) -> int | None:
        """What the cgroup's file `name` says; None where there is no such file, or no limit."""
        try:
            file = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self.cgroup)
        except OSError:  # this host has no such controller, or the cgroup has just gone
            return None
        try:
            content = os.read(file, _FILE_BYTES_MAX).strip()
        except OSError:
            return None
        finally:
            os.close(file)
        return int(content) if content.isdigit() else None


def sysinfo(facts: Facts) -> bytes:
    """A struct sysinfo: the cage's memory and swap as its limits have them, its processes, its age, and no load."""
    limit, used = facts.number("memory.max"), facts.number("memory.current") or 0
    total = facts.memory if limit is None else min(limit, facts.memory)
    swap, swapped = facts.number("memory.swap.max") or 0, facts.number("memory.swap.current") or 0
    age = max(0, int(time.clock_gettime(time.CLOCK_BOOTTIME) - facts.born))
    processes = min(facts.number("pids.current") or 1, PROCESSES_MAX)
    return _SYSINFO.pack(age, 0, 0, 0, total, max(0, total - used), 0, 0, swap, max(0, swap - swapped), processes, 0,
                         0, 0, 1)
