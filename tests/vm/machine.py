# SPDX-License-Identifier: LGPL-2.1-or-later
"""The machine under test, seen by root from inside: a stock Debian under systemd with the package installed.

Emulated, it is tens of times slower than the machine that emulates it: a test here does much at once, and waits for
events without bounds of its own but SECONDS, after which something hangs.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

SECONDS = 300
MEDIATORS = ("call", "clipboard", "files", "keys", "log", "notify", "open")
"""Those that the package brings."""
UNITS_OF_MEDIATORS = tuple(f"cage-mediator@{name}.service" for name in MEDIATORS)
FILES_AND_ANOTHER = ("cage-mediator@files.service", "cage-mediator@log.service")
"""Of files the core half is its own program, of all others one that they share; here each takes seconds to start."""
CONSOLE = Path("/sys/class/tty/tty0/active")
"""Which virtual console is seen, on a machine that has any; logind knows whether this one has."""


def run(*command: str, given: str = "") -> subprocess.CompletedProcess[str]:
    """The command, ended, whatever its status."""
    return subprocess.run(command, input=given, capture_output=True, text=True, timeout=SECONDS, check=False)


def ok(*command: str, given: str = "") -> str:
    """What the command printed; AssertionError with its words where its status is not 0."""
    ended = run(*command, given=given)
    assert ended.returncode == 0, f"{' '.join(command)}: status {ended.returncode}\n{ended.stdout}{ended.stderr}"
    return ended.stdout


def as_person(name: str, *command: str, given: str = "") -> subprocess.CompletedProcess[str]:
    """The command as the user `name`, in a session of logind's on the machine's seat, so that polkit sees an active,
    local person (pam_systemd(8); where the machine has consoles, a session of the seat needs the one that is seen)."""
    return run(*in_session(name, *command), given=given)


def in_session(name: str, *command: str) -> list[str]:
    """What as_person runs."""
    environment = ["--setenv=XDG_SEAT=seat0"]
    if "CanTTY=yes" in ok("loginctl", "show-seat", "seat0"):
        environment.append(f"--setenv=XDG_VTNR={CONSOLE.read_text().strip().removeprefix('tty')}")
    return ["systemd-run", "--quiet", "--wait", "--pipe", "--collect", f"--uid={name}", *environment,
            "--property=PAMName=login", "--", *command]


def from_afar(name: str, *command: str, given: str = "") -> subprocess.CompletedProcess[str]:
    """The command as the user `name` without a session, which is what polkit takes one from afar for."""
    return run("setpriv", "--reuid", name, "--regid", name, "--init-groups", "--reset-env", "--", *command, given=given)


def properties(unit: str, *names: str) -> dict[str, str]:
    """Of a unit, as systemctl show has them."""
    shown = ok("systemctl", "show", unit, *(f"--property={name}" for name in names))
    return dict(line.split("=", 1) for line in shown.splitlines())


def main_pid(unit: str) -> int:
    """0 where it does not run."""
    return int(properties(unit, "MainPID")["MainPID"])


def until(condition: Callable[[], bool]) -> None:
    """Until what the core answers fits, each answer being an event of its own."""
    while not condition():
        pass


def words(lines: str) -> Sequence[list[str]]:
    """Lines of a table as lists of words."""
    return [line.split() for line in lines.splitlines() if line.strip()]
