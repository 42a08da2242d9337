# SPDX-License-Identifier: LGPL-2.1-or-later
"""A of the catalogue: who else is there, and what of them can be read (3, 4, 19)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from .kernel import LIBC, NAMESPACES, Answer, judged, opened, read, status, tried

PIDS = range(1, 20000)
FILES = ("environ", "maps", "mem", "status", "fd/0", "auxv", "stack", "syscall")
LINKS = ("cwd", "root", "exe", "ns/mnt", "ns/user")


def alone() -> Iterator[Answer]:
    foreign = not_ours()
    readable = [f"{pid}/{name}" for pid in foreign for name in FILES
                if tried(read, f"/proc/{pid}/{name}", 1) == "allowed"]
    readable += [f"{pid}/{name}" for pid in foreign for name in LINKS
                 if tried(os.readlink, f"/proc/{pid}/{name}") == "allowed"]
    yield judged(3, "files of processes of others", ", ".join(readable[:6]) or "none")
    yield judged(4, "/proc/1/root", tried(os.listdir, "/proc/1/root"))
    yield judged(4, "/proc/1/cwd", tried(os.readlink, "/proc/1/cwd"))
    yield judged(3, "/proc/1/mem", tried(opened, "/proc/1/mem", os.O_RDWR))
    yield judged(3, "/proc/1/environ", tried(read, "/proc/1/environ"))
    yield judged(2, "/proc/1/fd", tried(os.listdir, "/proc/1/fd"))
    yield judged(1, "/proc/1/exe for writing", tried(opened, "/proc/1/exe", os.O_WRONLY),
                 ("EACCES", "ENOENT", "EPERM", "ETXTBSY", "EROFS"))
    higher = [name for name in os.listdir("/proc/self/fd") if int(name) > 2 and
              tried(os.fstat, int(name)) == "allowed" and not _is_own(name)]
    yield judged(2, "inherited descriptors", ", ".join(higher) or "none")


def _is_own(name: str) -> bool:
    """Of the interpreter: the bundle itself."""
    return os.readlink(f"/proc/self/fd/{name}").endswith(".pyz")


def not_ours() -> list[int]:
    """PIDs that are there and that we may not signal, and 1."""
    there = [pid for pid in PIDS if pid != os.getpid() and tried(os.kill, pid, 0) == "EPERM"]
    return sorted({1, *there})


def identity() -> dict[str, Any]:
    environment = dict(entry.split("=", 1) for entry in read("/proc/self/environ").decode().split("\0") if entry)
    return {
        "namespaces": {kind: os.readlink(f"/proc/self/ns/{kind}") for kind in NAMESPACES},
        "uid_map": read("/proc/self/uid_map").decode().split(), "groups": os.getgroups(), "ids": os.getresuid(),
        "environment": environment, "no_new_privs": status("NoNewPrivs"), "seccomp": status("Seccomp"),
        "securebits": LIBC.prctl(27, 0, 0, 0, 0), "hostname": os.uname().nodename,
        "not ours but there": len([pid for pid in not_ours() if pid != 1]),
        "visible": sorted(int(entry) for entry in os.listdir("/proc") if entry.isdigit()),
    }
