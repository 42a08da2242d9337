# SPDX-License-Identifier: LGPL-2.1-or-later
"""A of the catalogue, raced: a cage that watches every process come to be while the host enters it (1 to 4).

It looks at every new process as often as it can, in a row, until the process is gone or long since another program.
What it says at the end also says how many it saw at all, so that it cannot pass by seeing nothing.
"""

from __future__ import annotations

import os
import select
import sys
from collections import Counter
from typing import Any

FILES = ("environ", "maps", "mem", "auxv", "stack", "syscall", "io", "smaps", "pagemap", "personality", "task")
OURS = frozenset({"PATH", "LANG", "SHELL", "HOME", "USER", "LOGNAME", "XDG_RUNTIME_DIR", "DBUS_SESSION_BUS_ADDRESS",
                  "XDG_DATA_DIRS", "TERM", "PWD", "OLDPWD", "SHLVL", "_", "LC_CTYPE"})
LOOKS = 400
"""At one process; more than fit in its first moments."""


def poll() -> dict[str, Any]:
    """Until the end of standard input: what was seen of processes that came meanwhile."""
    mounts = own_mounts()
    root = os.stat("/")
    before = set(pids())
    looked: Counter[int] = Counter()
    found: dict[str, Any] = {"read": Counter(), "outside": set(), "written": set(), "environment": set(), "new": set(),
                             "foreign": set(), "roots": set()}
    sys.stdout.write("watching\n")
    sys.stdout.flush()
    high = max(before)
    while not select.select([sys.stdin], [], [], 0)[0]:
        for pid in [*pids(), *range(high + 1, high + 9)]:
            if pid in before or pid == os.getpid() or looked[pid] > LOOKS:
                continue
            if not _is_there(pid, found):
                continue
            looked[pid] += 1
            high = max(high, pid)
            look(pid, mounts, root, found)
    return {name: dict(value) if isinstance(value, Counter) else sorted(value) for name, value in found.items()}


def pids() -> list[int]:
    return [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]


def _is_there(pid: int, found: dict[str, Any]) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        found["foreign"].add(pid)
    else:
        found["new"].add(pid)
    return True


def own_mounts() -> set[int]:
    with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as file:
        return {int(line.split()[0]) for line in file}


def look(pid: int, mounts: set[int], root: os.stat_result, found: dict[str, Any]) -> None:
    """Everything of one process, once; that it is gone by then, or is not ours to see, is what most looks say."""
    for name in FILES:
        try:
            descriptor = os.open(f"/proc/{pid}/{name}", os.O_RDONLY)
        except OSError:
            continue
        try:
            content = os.read(descriptor, 65536) if name in ("environ",) else b""
        except OSError:
            continue
        finally:
            os.close(descriptor)
        found["read"][name] += 1
        names = {entry.partition(b"=")[0].decode(errors="replace") for entry in content.split(b"\0") if entry}
        found["environment"] |= names - OURS
    for link in ("cwd", "root", "exe"):
        _resolve(f"/proc/{pid}/{link}", mounts, found)
    try:
        entries = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        entries = [str(number) for number in range(12)]
    for entry in entries:
        _resolve(f"/proc/{pid}/fd/{entry}", mounts, found)
    try:
        there = os.stat(f"/proc/{pid}/root/")
        found["roots"] |= set() if (there.st_dev, there.st_ino) == (root.st_dev, root.st_ino) else {f"{pid}: another"}
    except OSError:
        pass
    _write(f"/proc/{pid}/exe", found)


def _resolve(path: str, mounts: set[int], found: dict[str, Any]) -> None:
    """Open what a link leads to and see whether its mount is one of the cage's (proc(5), fdinfo's mnt_id)."""
    try:
        descriptor = os.open(path, os.O_PATH)
    except OSError:
        return
    try:
        # Of what was opened, because the number may be another file's by now.
        target = os.readlink(f"/proc/self/fd/{descriptor}")
        found["read"][path.split("/")[3]] += 1
        with open(f"/proc/self/fdinfo/{descriptor}", encoding="ascii") as file:
            mount = next(int(line.split()[1]) for line in file if line.startswith("mnt_id"))
        # Pipes, sockets and what epoll(7) and its kin have are of mounts that nobody sees.
        if mount not in mounts and target.startswith("/"):
            found["outside"].add(f"{path.split('/')[3]} {target}")
    finally:
        os.close(descriptor)


def _write(path: str, found: dict[str, Any]) -> None:
    """1: over the program that somebody of the host's runs (CVE-2019-5736)."""
    try:
        target = os.readlink(path)
        os.close(os.open(path, os.O_WRONLY))
    except OSError as error:
        if error.errno not in (2, 3, 13):
            found["written"].add(f"refused: {error.strerror}")
        return
    found["written"].add(f"written: {target}")
