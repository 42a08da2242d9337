# SPDX-License-Identifier: LGPL-2.1-or-later
"""How an attack asks the kernel and what it says of the answer; numbers are those of x86-64.

Law of this room: the standard library only, and nothing older than Python 3.11: the package is copied into sandboxes.
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import signal
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.syscall.restype = ctypes.c_long
LIBC.mmap.restype = ctypes.c_void_p
SECONDS = 10.0
"""No single attempt takes longer."""
NAMESPACES = ("user", "mnt", "pid", "ipc", "uts", "net", "cgroup", "time")
REFUSED = frozenset({"EPERM", "EACCES", "ENOSYS", "EROFS", "ENOENT", "SIGSYS", "EAFNOSUPPORT", "ECONNREFUSED",
                     "ENETUNREACH", "none"})
"""What a sandbox answers to what it does not let through; anything else has reached what it was after."""
HELD, THROUGH, CONTROL, NOT_HERE = "held", "through", "control", "does not apply"


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What became of one attempt of an attack of the catalogue."""

    attack: int
    attempt: str
    outcome: str
    """HELD, THROUGH, NOT_HERE, or CONTROL: it has to succeed, so that a refusal beside it says something."""
    reason: str
    """An errno's name, the signal that ended it, "allowed", or what was seen."""


def judged(attack: int, attempt: str, reason: str, refused: Iterable[str] = REFUSED) -> Answer:
    """Held where the reason is one of the refusals."""
    outcome = HELD if reason in set(refused) else THROUGH
    return Answer(attack=attack, attempt=attempt, outcome=outcome, reason=reason)


def control(attack: int, attempt: str, reason: str) -> Answer:
    return Answer(attack=attack, attempt=attempt, outcome=CONTROL, reason=reason)


def not_here(attack: int, attempt: str, why: str) -> Answer:
    return Answer(attack=attack, attempt=attempt, outcome=NOT_HERE, reason=why)


def name_of(number: int | None) -> str:
    return errno.errorcode.get(number or 0, f"errno {number}")


def answer(result: int) -> str:
    """What a call of libc's that returned `result` says."""
    return "allowed" if result >= 0 else name_of(ctypes.get_errno())


def tried(call: Callable[..., Any], *arguments: Any) -> str:
    try:
        call(*arguments)
    except OSError as error:
        return name_of(error.errno)
    return "allowed"


def checked(result: int | None, what: str) -> int:
    """OSError where a call of libc's has failed."""
    if result is None or result in (-1, ctypes.c_void_p(-1).value):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)
    return result


def syscall(number: int, *arguments: Any) -> int:
    given = [ctypes.c_long(value) if isinstance(value, int) else value for value in arguments]
    return int(LIBC.syscall(ctypes.c_long(number), *given))


def answered(number: int, *arguments: Any) -> str:
    """What a system call says."""
    return answer(syscall(number, *arguments))


def apart(call: Callable[..., str], *arguments: Any) -> str:
    """What `call` says in a child process, or the signal that ended it; "no answer" is not waited for longer."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(read)
            os.write(write, call(*arguments).encode())
        finally:
            os._exit(0)
    os.close(write)
    try:
        if not select.select([read], [], [], SECONDS)[0]:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return "no answer"
        said = os.read(read, 65536).decode()
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    finally:
        os.close(read)
    return signal.Signals(-status).name if status < 0 else said


def status(name: str, pid: int | str = "self") -> str:
    """A field of /proc/PID/status (proc(5))."""
    with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as file:
        return next(line.split(None, 1)[1].strip() for line in file if line.startswith(f"{name}:"))


def read(path: str, size: int = 65536) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        return os.read(descriptor, size)
    finally:
        os.close(descriptor)


def opened(path: str, flags: int) -> None:
    """Open it and close it again; made where the flags say so."""
    os.close(os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC, 0o600))


def write(path: str, content: str) -> None:
    with open(path, "w", encoding="ascii") as file:
        file.write(content)


def text(path: str) -> str:
    return read(path).decode(errors="replace")
