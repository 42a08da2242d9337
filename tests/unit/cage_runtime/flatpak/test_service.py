# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the programs of an operation leave behind is ended with it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

TOP = Path(__file__).parents[4]

LEAVING = """
import os, subprocess
from cage_runtime.flatpak import service

service._adopt_orphans()
# Three generations, each in a session of its own, all of them orphans by the time that the first one has ended.
inner = "setsid sleep 1000 & exec sleep 1000"
subprocess.run(["/bin/sh", "-c", f"setsid sh -c '{inner}' & echo $! "], check=True)
while len(service._children()) == 0:
    os.sched_yield()
service._end_orphans()
print(service._children())
"""


def test_orphans_and_their_children_are_ended_and_reaped() -> None:
    command = [sys.executable, "-c", LEAVING]
    ran = subprocess.run(command, cwd=TOP, capture_output=True, text=True, timeout=30, check=True)
    assert ran.stdout.splitlines()[-1] == "[]"
