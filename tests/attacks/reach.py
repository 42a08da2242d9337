# SPDX-License-Identifier: LGPL-2.1-or-later
"""What one wall or another is known by, from inside; a cage gets this file as a word of its command line.

`calls` prints what system calls answer, but for those that are named; `hold` takes what another cage could reach,
prints where that is, and waits for the end of its input; `meet PID` tries to reach it.  All of it is harmless also
where nothing refuses it.
Numbers are those of x86-64.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import os
import socket
import sys
from collections.abc import Callable

LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.syscall.restype = ctypes.c_long
CALLS = {
    "sethostname": (170, b"other", 5), "mount": (165, b"x", b"/mnt", b"tmpfs", 0, 0),
    "remount /usr": (165, 0, b"/usr", 0, 0x1020, 0), "umount /usr": (166, b"/usr", 2),
    "a device": (133, b"/tmp/device", 0o020666, 0x103), "chroot": (161, b"/tmp"), "keyctl": (250, 0, -3, 0),
    "io_uring_setup": (425, 1, 0), "bpf": (321, 0, 0, 0), "userfaultfd": (323, 1),
    "a raw socket": (41, 2, 3, 1), "a packet socket": (41, 17, 3, 0), "a vsock": (41, 40, 1, 0),
    "a higher priority": (141, 0, 0, -20),
}
PORT, KEY, ABSTRACT = 4712, 0x0CA6F, "\0cage-reach"
CLOCKS = "/proc/self/ns/time"


def answer(result: int) -> str:
    return "allowed" if result >= 0 else errno.errorcode.get(ctypes.get_errno(), "?")


def tried(call: Callable[[], object]) -> str:
    try:
        call()
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error))
    return "allowed"


def apart(arguments: tuple[object, ...]) -> str:
    """What the call says in a process of its own, which it may change."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        given = [ctypes.c_long(value) if isinstance(value, int) else value for value in arguments]
        os.write(write, answer(LIBC.syscall(*given)).encode())
        os._exit(0)
    os.waitpid(pid, 0)
    os.close(write)
    said = os.read(read, 64).decode()
    os.close(read)
    return said


def hold() -> None:
    abstract, inner = socket.socket(socket.AF_UNIX), socket.socket()
    abstract.bind(ABSTRACT)
    abstract.listen()
    inner.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    inner.bind(("127.0.0.1", PORT))
    inner.listen()
    clocks = os.open(CLOCKS, os.O_RDONLY)
    fcntl.flock(clocks, fcntl.LOCK_EX)
    shared = LIBC.shmget(KEY, 4096, 0o1600)  # IPC_CREAT
    sys.stdout.write(json.dumps({"pid": os.getpid()}) + "\n")
    sys.stdout.flush()
    sys.stdin.read()
    LIBC.shmctl(shared, 0, 0)  # IPC_RMID


def meet(pid: int) -> dict[str, str]:
    abstract, inner = socket.socket(socket.AF_UNIX), socket.socket()
    clocks = os.open(CLOCKS, os.O_RDONLY)
    found = {
        "abstract socket": tried(lambda: abstract.connect(ABSTRACT)),
        "loopback": tried(lambda: inner.connect(("127.0.0.1", PORT))),
        "shared memory": answer(LIBC.shmget(KEY, 4096, 0o600)),
        "clocks": tried(lambda: fcntl.flock(clocks, fcntl.LOCK_EX | fcntl.LOCK_NB)),
    }
    if pid:
        found |= {
            "signal": tried(lambda: os.kill(pid, 0)),
            "environment": tried(lambda: os.close(os.open(f"/proc/{pid}/environ", os.O_RDONLY))),
            "root": tried(lambda: os.listdir(f"/proc/{pid}/root/home/user")),
            "priority": tried(lambda: os.setpriority(os.PRIO_PROCESS, pid, 19)),
        }
    return found


def main() -> None:
    match sys.argv[1:]:
        case ["calls", *left_out]:
            made = {name: arguments for name, arguments in CALLS.items() if name not in left_out}
            sys.stdout.write(json.dumps({name: apart(arguments) for name, arguments in made.items()}))
        case ["hold"]:
            hold()
        case ["meet", pid]:
            sys.stdout.write(json.dumps(meet(int(pid))))


main()
