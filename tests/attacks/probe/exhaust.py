# SPDX-License-Identifier: LGPL-2.1-or-later
"""44 of the catalogue: all that one sandbox can take of something that the machine has only so much of.

Each takes until it is refused or has as many as it may, says how many it has and why it ended, and holds them until a
line comes on its standard input.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

from .kernel import LIBC, checked, name_of, syscall

BOUND = 20000
PIECE = b"\0" * (1 << 20)


def take(what: str, most: int = BOUND) -> dict[str, Any]:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    held: list[Any] = []
    ended = "the bound"
    try:
        while len(held) < most:
            held.append(TAKERS[what](len(held)))
    except OSError as error:
        ended = name_of(error.errno)
    sys.stdout.write(f'{{"held": {len(held)}, "ended": "{ended}"}}\n')
    sys.stdout.flush()
    sys.stdin.readline()
    _give_back(what, held)
    return {"given back": what}


def turns(number: int) -> list[int]:
    """Nanoseconds of each of so many turns of what every program does: a file, a pipe, a process."""
    taken = []
    for _ in range(number):
        begun = time.monotonic_ns()
        path = _file(0)
        os.unlink(path)
        for descriptor in os.pipe():
            os.close(descriptor)
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        os.waitpid(pid, 0)
        taken.append(time.monotonic_ns() - begun)
    return taken


def _give_back(what: str, held: list[Any]) -> None:
    match what:
        case "processes":
            for pid in held:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
        case "files" | "home" | "shm" | "tmp":
            for path in held:
                os.unlink(path)
        case _:
            return


def _inotify(_: int) -> int:
    return checked(LIBC.inotify_init1(os.O_CLOEXEC), "inotify_init1")


def _pipe(_: int) -> tuple[int, int]:
    """One with as many pages as an unprivileged user may have in a pipe (pipe(7))."""
    read, write = os.pipe()
    checked(LIBC.fcntl(write, 1031, 1 << 20), "F_SETPIPE_SZ")
    return read, write


def _key(number: int) -> int:
    return checked(syscall(248, b"user", f"key-{number}".encode(), b"x", 1, -3), "add_key")


_QUEUED = signal.SIGRTMIN + 3


def _pending(_: int) -> int:
    """A queued signal that nobody takes (RLIMIT_SIGPENDING)."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {_QUEUED})
    information = (ctypes.c_int * 32)(_QUEUED, 0, -1)
    return checked(LIBC.syscall(ctypes.c_long(129), os.getpid(), int(_QUEUED), information), "rt_sigqueueinfo")


def _process(_: int) -> int:
    pid = os.fork()
    if pid == 0:
        signal.pause()
        os._exit(0)
    return pid


def _filled(directory: str) -> Callable[[int], str]:
    def fill(number: int) -> str:
        path = f"{directory}/piece-{number}"
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            left = 64
            while left:
                os.write(descriptor, PIECE)
                left -= 1
        except OSError:
            os.unlink(path)
            raise
        finally:
            os.close(descriptor)
        return path

    return fill


def _file(number: int) -> str:
    path = f"{os.environ.get('HOME', '/root')}/inode-{number}"
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))
    return path


def _queue(number: int) -> int:
    return checked(syscall(240, f"queue-{number}".encode(), os.O_CREAT | os.O_RDWR, 0o600, 0), "mq_open")


def _terminal(_: int) -> tuple[int, int]:
    return os.openpty()


TAKERS: dict[str, Callable[[int], Any]] = {
    "inotify": _inotify, "pipes": _pipe, "keys": _key, "signals": _pending, "processes": _process,
    "shm": _filled("/dev/shm"), "tmp": _filled("/tmp"), "home": _filled(os.environ.get("HOME", "/root")),
    "files": _file, "queues": _queue, "terminals": _terminal,
}
