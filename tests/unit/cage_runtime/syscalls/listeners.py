# SPDX-License-Identifier: LGPL-2.1-or-later
"""Processes whose sysinfo(2) waits for an answer of the test's."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys
from collections.abc import Callable

sys.path.append("/usr/lib/python3/dist-packages")

from cage_runtime.spawner import otherwise, syscall
from cage_runtime.spawner.filters import Filter

LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.syscall.restype = ctypes.c_long
SYSINFO = syscall.NUMBERS["sysinfo"]
FILTER = Filter(programs=(), unknown=(), mediated=otherwise.notifying([SYSINFO]))


def sysinfo(address: int) -> int:
    """The error of sysinfo(address); 0 where it succeeds."""
    return ctypes.get_errno() if LIBC.syscall(SYSINFO, ctypes.c_ulong(address)) < 0 else 0


def into_buffer() -> int:
    return sysinfo(ctypes.addressof(ctypes.create_string_buffer(128)))


class Caller:
    """A child that makes mediated calls; its exit status is what `body` returns."""

    def __init__(self, body: Callable[[], int] = into_buffer) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours, theirs:
            self.pid = os.fork()
            if self.pid == 0:
                status = 255
                try:
                    LIBC.prctl(38, 1, 0, 0, 0)
                    listener = FILTER.listen()
                    assert listener is not None
                    socket.send_fds(theirs, [b"!"], [listener])
                    os.close(listener)
                    status = body()
                finally:
                    os._exit(status)
            theirs.close()
            _, (self.listener,), _, _ = socket.recv_fds(ours, 1, 1)
        self._status: int | None = None

    def __enter__(self) -> Caller:
        return self

    def __exit__(self, *_: object) -> None:
        if self._status is None:
            self.kill()
        if self.listener >= 0:
            os.close(self.listener)

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        self.status()

    def status(self) -> int:
        """Waits for its end."""
        if self._status is None:
            self._status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self._status

    def given(self) -> int:
        """The listener, for whoever closes it."""
        listener, self.listener = self.listener, -1
        return listener
