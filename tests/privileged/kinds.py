# SPDX-License-Identifier: LGPL-2.1-or-later
"""Descriptors of every kind that somebody might hand to a mediator instead of a file.

Its text is run in cages too, by their own interpreter, so that it imports nothing but the standard library.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import tempfile
from collections.abc import Callable

Made = tuple[int, list[object]]
"""The descriptor, and what has to stay there for it to be what it is."""


def _fifo(_folder: str) -> Made:
    path = os.path.join(_folder, "fifo")
    os.mkfifo(path)
    return os.open(path, os.O_RDWR), []


def _pipe(_folder: str) -> Made:
    near, far = os.pipe()
    return near, [os.fdopen(far, "wb")]


def _pair(_folder: str) -> Made:
    near, far = socket.socketpair()
    return near.detach(), [far]


def _written(folder: str) -> Made:
    path = os.path.join(folder, "writable")
    return os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), []


def _sparse(_folder: str) -> Made:
    descriptor = os.memfd_create("sparse")
    os.ftruncate(descriptor, 1 << 40)
    return descriptor, []


def _epoll(_folder: str) -> Made:
    epoll = select.epoll()
    return os.dup(epoll.fileno()), [epoll]


def _lingering(_folder: str) -> Made:
    """Whoever closes it last waits a minute, for a peer that takes nothing (socket(7), SO_LINGER)."""
    listener = socket.create_server(("127.0.0.1", 0))
    connected = socket.create_connection(listener.getsockname())
    connected.setblocking(False)
    try:
        while connected.send(bytes(1 << 16)):
            pass
    except BlockingIOError:
        pass
    connected.setblocking(True)
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 60))
    return connected.detach(), [listener]


KINDS: dict[str, Callable[[str], Made]] = {
    "a directory": lambda folder: (os.open(folder, os.O_RDONLY), []),
    "a path": lambda folder: (os.open(folder, os.O_PATH), []),
    "a file's path": lambda _: (os.open("/etc/passwd", os.O_PATH), []),
    "a FIFO": _fifo,
    "a pipe": _pipe,
    "a socket": lambda _: (socket.socket(socket.AF_UNIX).detach(), []),
    "a pair of sockets": _pair,
    "a socket that lingers": _lingering,
    "an epoll": _epoll,
    "an eventfd": lambda _: (os.eventfd(1), []),
    "a process": lambda _: (os.pidfd_open(os.getpid()), []),
    "memory of its own": lambda _: (os.open("/proc/self/mem", os.O_RDONLY), []),
    "a device": lambda _: (os.open("/dev/zero", os.O_RDONLY), []),
    "what cannot be read": _written,
    "nothing in it": lambda _: (os.memfd_create("nothing"), []),
    "holes alone": _sparse,
}


def of(kind: str) -> Made:
    """One of KINDS, or "a file", which is none of them and can be sent."""
    if kind == "a file":
        return os.open("/etc/passwd", os.O_RDONLY), []
    return KINDS[kind](tempfile.mkdtemp())
