# SPDX-License-Identifier: LGPL-2.1-or-later
"""C of the catalogue in company: what two sandboxes, or one and the host, could meet on (35 to 37, 42, 43).

One holds, prints "holding", and on the next line of its input says what it noticed; the other one looks.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import sys
from collections.abc import Callable, Iterator
from typing import Any

from .kernel import (
    HELD,
    LIBC,
    NAMESPACES,
    THROUGH,
    Answer,
    answer,
    checked,
    judged,
    name_of,
    syscall,
    tried,
)

SHARED = ("/usr/bin/env", "/etc/passwd", "/opt/cage-runtime/bin/incage", "/usr/bin", "/etc")
"""What sandboxes have in common, if anything."""
PORT, KEY, ABSTRACT, QUEUE = 4711, 0x0CA6E, "\0cage-probe", b"cage-probe"


def shared() -> list[str]:
    return [path for path in SHARED if os.path.exists(path)]


def held_files() -> Iterator[str]:
    yield from shared()
    yield from (f"/proc/self/ns/{kind}" for kind in NAMESPACES)


def hold() -> dict[str, Any]:
    """Until a line comes; what it noticed of others."""
    locks = [os.open(path, os.O_RDONLY) for path in held_files()]
    for descriptor in locks:
        tried(fcntl.flock, descriptor, fcntl.LOCK_EX)
    records = [os.open(path, os.O_RDONLY) for path in held_files()]
    for descriptor in records:
        tried(fcntl.fcntl, descriptor, fcntl.F_SETLK, _record(fcntl.F_RDLCK))
    leases = [tried(fcntl.fcntl, descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK) for descriptor in locks]
    inotify = LIBC.inotify_init1(os.O_NONBLOCK)
    for path in shared():
        for watched in (path, os.path.dirname(path)):
            checked(LIBC.inotify_add_watch(inotify, watched.encode(), 0xFFF), "inotify_add_watch")
    sockets = _sockets()
    _touch("/dev/shm/cage-probe")
    _touch("/tmp/cage-probe")
    queue = syscall(240, QUEUE, os.O_CREAT | os.O_RDWR, 0o666, 0)
    made = [LIBC.shmget(KEY, 4096, 0o1666), LIBC.msgget(KEY, 0o1666), LIBC.semget(KEY, 1, 0o1666)]
    sys.stdout.write("holding\n")
    sys.stdout.flush()
    sys.stdin.readline()
    LIBC.shmctl(made[0], 0, 0), LIBC.msgctl(made[1], 0, 0), LIBC.semctl(made[2], 0, 0)
    syscall(241, QUEUE)
    for path in ("/dev/shm/cage-probe", "/tmp/cage-probe"):
        tried(os.unlink, path)
    try:
        events = len(os.read(inotify, 65536))
    except BlockingIOError:
        events = 0
    for opened in sockets:
        opened.close()
    return {"made": all(number >= 0 for number in (*made, queue)), "bytes of events": events, "leases": sorted(leases)}


def _record(kind: int) -> bytes:
    """struct flock (fcntl(2)): of the first byte."""
    return struct.pack("hhqqixxxx", kind, os.SEEK_SET, 0, 1, 0)


def _touch(path: str) -> None:
    with open(path, "w", encoding="ascii") as file:
        file.write("x")


def _sockets() -> list[socket.socket]:
    abstract, datagram, listener = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM), (
        socket.socket())
    abstract.bind(ABSTRACT)
    abstract.listen()
    datagram.bind(ABSTRACT + "-datagram")
    listener.bind(("127.0.0.1", PORT))
    listener.listen()
    return [abstract, datagram, listener]


def meet(given: dict[str, Any]) -> Iterator[Answer]:
    """Look for what another one holds; `given` has the host's own services by name."""
    unseen = ("unlocked",)
    for path in held_files():
        attack = 35 if path.startswith("/proc") else 36
        descriptor = os.open(path, os.O_RDONLY)
        seen = tried(fcntl.flock, descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield judged(attack, f"flock {path}", {"allowed": "unlocked", "EAGAIN": "locked"}.get(seen, seen), unseen)
        yield judged(attack, f"F_GETLK {path}", _locked(descriptor), unseen)
        if not os.path.isdir(path) and not path.startswith("/proc"):
            os.read(descriptor, 1)
        os.close(descriptor)
    yield from _met_sockets(given)
    found: dict[str, Callable[[], int]] = {
        "shared memory": lambda: LIBC.shmget(KEY, 4096, 0), "messages": lambda: LIBC.msgget(KEY, 0),
        "semaphores": lambda: LIBC.semget(KEY, 1, 0), "a message queue": lambda: syscall(240, QUEUE, 0, 0, 0),
    }
    for name, look in found.items():
        yield judged(42, name, answer(look()), ("ENOENT",))
    for path in ("/dev/shm/cage-probe", "/tmp/cage-probe"):
        yield judged(42, path, tried(os.stat, path), ("ENOENT",))


def _locked(descriptor: int) -> str:
    try:
        said = fcntl.fcntl(descriptor, fcntl.F_GETLK, _record(fcntl.F_WRLCK))
    except OSError as error:
        return name_of(error.errno)
    return "unlocked" if struct.unpack_from("h", said)[0] == fcntl.F_UNLCK else "locked"


def _met_sockets(given: dict[str, Any]) -> Iterator[Answer]:
    def stream(family: int, address: Any) -> Callable[[], None]:
        def connect() -> None:
            with socket.socket(family) as own:
                own.connect(address)
        return connect

    def datagram() -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as own:
            own.sendto(b"x", ABSTRACT + "-datagram")

    # A Landlock scope says EPERM where a namespace has nothing to say ECONNREFUSED of.
    refused = ("ECONNREFUSED", "ENETUNREACH", "EPERM", "ENOENT")
    yield judged(42, "an abstract socket", tried(stream(socket.AF_UNIX, ABSTRACT)), refused)
    yield judged(42, "an abstract datagram socket", tried(datagram), refused)
    yield judged(43, "the other's loopback", tried(stream(socket.AF_INET, ("127.0.0.1", PORT))), refused)
    if "port" in given:
        yield judged(43, "the host's loopback", tried(stream(socket.AF_INET, ("127.0.0.1", given["port"]))), refused)
        yield judged(42, "an abstract socket of the host", tried(stream(socket.AF_UNIX, given["abstract"])), refused)
        for path in given.get("sockets", ()):
            yield judged(43, path, tried(stream(socket.AF_UNIX, path)), refused)


def noticed(said: dict[str, Any]) -> Answer:
    """Of what `hold` returned: whether it saw anybody use what it watched."""
    events = said["bytes of events"]
    return Answer(attack=37, attempt="inotify on shared files", outcome=THROUGH if events else HELD,
                  reason=f"{events} bytes of events" if events else "none")
