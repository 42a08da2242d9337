# SPDX-License-Identifier: LGPL-2.1-or-later
"""A cage as the spawner makes it, born in a context: what it needs is not refused, and what the context is for is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.kernels.lsm.party import TOP

# As Flatpak calls it: a cage's filter refuses the namespaces that it does not ask for.
BWRAP = ["bwrap", "--unshare-user", "--unshare-pid", "--unshare-ipc", "--unshare-net", "--die-with-parent",
         "--ro-bind", "/usr", "/usr", "--symlink", "usr/lib", "/lib", "--symlink", "usr/lib64", "/lib64", "--symlink",
         "usr/bin", "/bin", "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp", "--dir", "/run", "--chdir", "/"]


class Cage:
    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def run(self, *words: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(words) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, "the nursery has ended"
        came: dict[str, Any] = json.loads(line)
        print(came)  # noqa: T201
        return came


@pytest.fixture(scope="module")
def cage(contexts: object) -> Iterator[Cage]:
    del contexts
    path = f"{TOP}:/usr/lib/cage-runtime/lib:/usr/lib/python3/dist-packages"
    with subprocess.Popen([sys.executable, "-B", "-m", "tests.kernels.lsm.nursery"], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, text=True, cwd=TOP,
                          env={**os.environ, "PYTHONPATH": path}) as process:
        yield Cage(process)
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(60) == 0


def test_it_is_born_with_nothing_refused(cage: Cage) -> None:
    came = cage.run("true")
    assert (came["status"], came["said"], came["born"], came["denied"]) == (0, "", {}, {})


@pytest.mark.parametrize("words", [
    ["sh", "-c", "id && ls -la / /proc/self/fd /dev /etc && cat /proc/self/status /proc/meminfo && echo x > ~/x"],
    ["python3", "-c", "import socket, ssl, sqlite3, multiprocessing; socket.socketpair(); open('/proc/stat').read(9)"],
    [*BWRAP, "true"],
    [*BWRAP, "sh", "-c", "ls /proc >/dev/null && cat /proc/self/cmdline /proc/1/status && echo x > /tmp/x"],
    ["dbus-run-session", "--", "dbus-send", "--session", "--print-reply", "--dest=org.freedesktop.DBus", "/",
     "org.freedesktop.DBus.ListNames"],
], ids=["shell", "python", "bubblewrap", "bubblewrap-shell", "bus"])
def test_what_runs_in_it_runs(cage: Cage, words: list[str]) -> None:
    came = cage.run(*words)
    assert (came["status"], came["denied"]) == (0, {})


def test_the_masks_of_proc_hold_in_a_nested_one(cage: Cage) -> None:
    came = cage.run(*BWRAP, "cat", "/proc/interrupts")
    assert came["status"] != 0
    assert "Operation not permitted" in came["said"]
    assert came["denied"] == {"proc": 1}


def test_a_program_that_it_wrote_is_not_executed(cage: Cage) -> None:
    came = cage.run(*BWRAP, "sh", "-c", "cp /bin/true /tmp/mine; /tmp/mine")
    assert came["status"] == 126
    assert came["denied"] == {"execute": 1}
