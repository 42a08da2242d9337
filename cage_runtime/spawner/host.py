# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the kernel was told when it was started, for `doctor`."""

from __future__ import annotations

import os
import re
from pathlib import Path

COMMAND_LINE = Path("/proc/cmdline")
_MEMORY = "proc_mem.force_override="
_FIRST = (6, 12)
"""The first Linux with that parameter (Documentation/admin-guide/kernel-parameters.txt)."""


def proc_mem(command_line: Path = COMMAND_LINE) -> str:
    """Who may write through /proc/PID/mem to memory that is mapped without write permission: "always", "ptrace" (those
    that trace the process) or "never"; empty where the kernel does not ask.  The last word on the command line counts,
    and without one what the kernel was built with, which is "always" in Debian's."""
    if not _is_since(_FIRST):
        return ""
    said = [word.removeprefix(_MEMORY) for word in command_line.read_text(encoding="utf-8", errors="replace").split()
            if word.startswith(_MEMORY)]
    return said[-1] if said and said[-1] in ("ptrace", "never") else "always"


def _is_since(first: tuple[int, int]) -> bool:
    found = re.match(r"(\d+)\.(\d+)", os.uname().release)
    return found is not None and (int(found[1]), int(found[2])) >= first
