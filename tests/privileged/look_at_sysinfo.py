# SPDX-License-Identifier: LGPL-2.1-or-later
"""Run inside a cage: asks sysinfo(2) in the way that the first argument says, and prints what came of it, as JSON."""

from __future__ import annotations

import ctypes
import errno
import json
import mmap
import os
import signal
import struct
import sys
import threading
import time
from typing import Any

LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.syscall.restype = ctypes.c_long
LIBC.mmap.restype = ctypes.c_void_p
LIBC.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
SYSINFO, SECCOMP = {"x86_64": (99, 317), "aarch64": (179, 277)}[os.uname().machine]
NAMES = ("uptime", "load1", "load5", "load15", "totalram", "freeram", "sharedram", "bufferram", "totalswap", "freeswap",
         "procs")
PAGE = mmap.PAGESIZE
R, W, X, PRIVATE, ANONYMOUS = 1, 2, 4, 2, 0x20


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def at(address: int) -> int:
    """The error of sysinfo(address), 0 where it succeeds."""
    return ctypes.get_errno() if LIBC.syscall(SYSINFO, ctypes.c_ulong(address)) < 0 else 0


def answer() -> dict[str, Any]:
    buffer = ctypes.create_string_buffer(b"\xff" * 128, 128)
    error = at(ctypes.addressof(buffer))
    values = dict(zip(NAMES, struct.unpack_from("=q3Q6QH", buffer), strict=True))
    return {**values, "error": error, "unit": struct.unpack_from("=I", buffer, 104)[0], "behind": buffer[112:].hex(),
            "boottime": time.clock_gettime(time.CLOCK_BOOTTIME), "monotonic": time.monotonic()}


def elsewhere() -> dict[str, int]:
    """The error by who asks: another thread, a process that is not dumpable, one without a parent."""
    found: dict[str, int] = {}
    thread = threading.Thread(target=lambda: found.update(thread=answer()["error"]))
    thread.start()
    thread.join()
    LIBC.prctl(4, 0)  # PR_SET_DUMPABLE
    found["not dumpable"] = answer()["error"]
    return found


def mapped(protection: int, length: int = PAGE) -> int:
    address = LIBC.mmap(None, length, protection, PRIVATE | ANONYMOUS, -1, 0)
    assert address not in (None, ctypes.c_void_p(-1).value)
    return int(address)


def pointers() -> dict[str, Any]:
    """The error by what the pointer points to, and whether anything was written where nothing may be."""
    read_only, nothing = mapped(R), mapped(0)
    code = LIBC.mmap(None, PAGE, R | X, PRIVATE, os.open("/usr/bin/env", os.O_RDONLY), 0)
    before = ctypes.string_at(code, 256)
    pair = mapped(R | W, 2 * PAGE)
    LIBC.mprotect(ctypes.c_void_p(pair + PAGE), PAGE, R)
    two = mapped(R | W, 2 * PAGE)
    LIBC.mprotect(ctypes.c_void_p(two + PAGE), PAGE, R | W)
    places = {
        "null": 0, "one": 1, "read-only": read_only, "executable": code, "not mapped": nothing,
        "kernel": 0xFFFFFFFF81000000, "non-canonical": 1 << 62, "last": (1 << 64) - 8, "vvar": 0x7FFFFFFFF000,
        "into read-only": pair + PAGE - 8,
        "over two": two + PAGE - 56,
    }
    found: dict[str, Any] = {name: errno.errorcode.get(at(place), "done") for name, place in places.items()}
    found["changed"] = (ctypes.string_at(code, 256) != before) or any(ctypes.string_at(read_only, 112)) or any(
        ctypes.string_at(pair + PAGE - 8, 112))
    return found


class Program(ctypes.Structure):
    _fields_ = [("len", ctypes.c_ushort), ("filter", ctypes.c_char_p)]


def listener() -> dict[str, str]:
    """What a program is told that wants to answer calls itself."""
    allow = struct.pack("=HBBI", 6, 0, 0, 0x7FFF0000)
    found = {}
    for name, flags in (("without", 0), ("with a listener", 8)):
        status = LIBC.syscall(SECCOMP, 1, flags, ctypes.byref(Program(1, allow)))
        found[name] = errno.errorcode[ctypes.get_errno()] if status < 0 else "done"
    return found


def flood() -> None:
    """As many calls as can be made by eight processes; ends when it is killed."""
    for _ in range(7):
        if os.fork() == 0:
            break
    say("ready")
    while True:
        answer()


def latency() -> dict[str, float]:
    times = []
    for _ in range(300):
        begin = time.perf_counter()
        assert answer()["error"] == 0
        times.append(time.perf_counter() - begin)
    times.sort()
    return {"median": times[150], "p99": times[297], "most": times[-1]}


def alarmed() -> dict[str, list[str]]:
    """Errors of calls while handled signals come: where they are to be restarted, and others than EINTR if not."""
    signal.signal(signal.SIGALRM, lambda *_: None)
    found = {}
    for name, interrupts, usual in (("restarted", False, {0}), ("interrupted", True, {0, errno.EINTR})):
        signal.siginterrupt(signal.SIGALRM, interrupts)
        signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
        found[name] = sorted({errno.errorcode[error] for error in {answer()["error"] for _ in range(300)} - usual})
        signal.setitimer(signal.ITIMER_REAL, 0)
    return found


def always() -> None:
    """Each answer that differs from the one before, by its error, until the input ends."""
    last = None
    os.set_blocking(0, False)
    while True:
        error = answer()["error"]
        if error != last:
            say(str(error))
            last = error
        try:
            if os.read(0, 1) == b"":
                return
        except BlockingIOError:
            continue


if __name__ == "__main__":
    said = {"answer": answer, "elsewhere": elsewhere, "pointers": pointers, "listener": listener, "flood": flood,
            "latency": latency, "alarmed": alarmed, "always": always}[sys.argv[1]]()
    if said is not None:
        say(json.dumps(said))
