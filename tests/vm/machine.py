# SPDX-License-Identifier: LGPL-2.1-or-later
"""The machine under test, seen by root from inside: a stock Debian under systemd with the package installed.

Emulated, it is tens of times slower than the machine that emulates it: a test here does much at once, and waits for
events without bounds of its own but SECONDS, after which something hangs.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence

SECONDS = 300


def run(*command: str, given: str = "") -> subprocess.CompletedProcess[str]:
    """The command, ended, whatever its status."""
    return subprocess.run(command, input=given, capture_output=True, text=True, timeout=SECONDS, check=False)


def ok(*command: str, given: str = "") -> str:
    """What the command printed; AssertionError with its words where its status is not 0."""
    ended = run(*command, given=given)
    assert ended.returncode == 0, f"{' '.join(command)}: status {ended.returncode}\n{ended.stdout}{ended.stderr}"
    return ended.stdout


def as_person(name: str, *command: str, given: str = "") -> subprocess.CompletedProcess[str]:
    """The command as the user `name`, in a session of logind's (so that polkit sees an active, local person)."""
    return run("systemd-run", "--quiet", "--wait", "--pipe", "--collect", f"--uid={name}",
               "--property=PAMName=login", "--", *command, given=given)


def properties(unit: str, *names: str) -> dict[str, str]:
    """Of a unit, as systemctl show has them."""
    shown = ok("systemctl", "show", unit, *(f"--property={name}" for name in names))
    return dict(line.split("=", 1) for line in shown.splitlines())


def words(lines: str) -> Sequence[list[str]]:
    """Lines of a table as lists of words."""
    return [line.split() for line in lines.splitlines() if line.strip()]
