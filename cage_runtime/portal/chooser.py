# SPDX-License-Identifier: LGPL-2.1-or-later
"""The dialog in which a person chooses files of the cage: zenity, on the display that the cage has.

It shows what the cage's user may see anyway, so it needs no word of the core's.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from cage_runtime.errors import RuntimeFailure

ZENITY = "/usr/bin/zenity"
OUTPUT_MAX = 64 * 1024


async def ask(untrusted_title: str, home: Path, *, multiple: bool) -> list[Path]:
    """The files that a person has chosen; RuntimeFailure where nobody can be asked, CancelledError where they would
    not."""
    if not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")) or not os.access(ZENITY, os.X_OK):
        raise RuntimeFailure("nobody can be asked to choose a file: the cage has no display, or zenity is missing")
    command = [ZENITY, "--file-selection", f"--title={untrusted_title[:200]}", "--separator=\n",
               *(["--multiple"] if multiple else [])]
    process = await asyncio.create_subprocess_exec(*command, cwd=home, stdout=asyncio.subprocess.PIPE)
    try:
        output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    if process.returncode:
        raise asyncio.CancelledError
    return [Path(line) for line in output.decode().split("\n") if line]
