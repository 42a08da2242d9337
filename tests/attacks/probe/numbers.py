# SPDX-License-Identifier: LGPL-2.1-or-later
"""B of the catalogue, all of it: every number by every way into the kernel, and what is answered (golden/*.txt)."""

from __future__ import annotations

import ctypes
import mmap
import os
import resource
import select
import signal
from collections.abc import Callable

from .kernel import LIBC, SECONDS, checked, name_of

LAST = 500
X32 = 0x40000000
WAYS = {"x86_64": range(LAST + 1), "x32": range(X32, X32 + 548), "i386": range(LAST + 1)}
"""The numbers of each way in; x32 ends at 547 (arch/x86/entry/syscalls/syscall_64.tbl)."""
NOT_CALLED = frozenset({15, 34, 56, 57, 58, 59, 60, 231, 322})
"""Of x86-64, what cannot answer: rt_sigreturn, pause, the makers and enders of processes, and execve.  That they are
allowed shows in every program that runs; `calls` tries what they are not allowed with certain arguments."""
ALLOWED = "allowed"
_MINUS_ONE = ctypes.c_long(-1)
_INT_80 = bytes((0x53, 0x89, 0xF8, 0x31, 0xDB, 0xF7, 0xD3, 0x89, 0xD9, 0x89, 0xDA, 0xCD, 0x80, 0x48, 0x98, 0x5B, 0xC3))
"""push rbx; mov eax, edi; xor ebx, ebx; not ebx; mov ecx, ebx; mov edx, ebx; int 0x80; cdqe; pop rbx; ret."""


def machine_code() -> Callable[[int], int]:
    """`int 0x80` with a number and -1 for all arguments; from memory without a file, which nothing forbids a cage."""
    memory = checked(LIBC.mmap(None, ctypes.c_size_t(mmap.PAGESIZE), 7, 0x22, -1, ctypes.c_long(0)), "mmap")
    ctypes.memmove(memory, _INT_80, len(_INT_80))
    return ctypes.CFUNCTYPE(ctypes.c_long, ctypes.c_int)(memory)


def sweep(way: str, seconds: float = SECONDS) -> dict[int, str]:
    """EPERM, ENOSYS, the signal that ended the caller, or ALLOWED where the kernel itself had its say."""
    numbers = [number for number in WAYS[way] if way != "x86_64" or number not in NOT_CALLED]
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    call = machine_code() if way == "i386" else _plain
    return {number: _asked(call, number, seconds) for number in numbers}


def _plain(number: int) -> int:
    # -1 is no address, no descriptor, no process and no flag that there is.
    result = LIBC.syscall(ctypes.c_long(number), *[_MINUS_ONE] * 6)
    return -ctypes.get_errno() if result == -1 else 0


def _asked(call: Callable[[int], int], number: int, seconds: float) -> str:
    """In a child; one that is still in the call after so long waits, which is no refusal."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setsid()
            result = call(number)
            os.write(write, name_of(-result).encode() if result < 0 else ALLOWED.encode())
        finally:
            os._exit(0)
    os.close(write)
    ready, _, _ = select.select([read], [], [], seconds)
    said = os.read(read, 64).decode() if ready else ""
    if not ready:
        os.kill(pid, signal.SIGKILL)
    os.close(read)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if ready and status < 0:
        return signal.Signals(-status).name
    return said if said in ("EPERM", "ENOSYS") else ALLOWED


