# SPDX-License-Identifier: LGPL-2.1-or-later
"""systemd-journald in its native protocol (systemd.io/JOURNAL_NATIVE_PROTOCOL), for those who have fields to tell it.

Nothing here fails: what a journal does not take is for whoever tells it to count, or to wait for.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Mapping
from enum import IntEnum

SOCKET = "/run/systemd/journal/socket"


class Priority(IntEnum):
    """syslog(3)."""

    ERROR = 3
    WARNING = 4
    NOTICE = 5
    INFO = 6
    DEBUG = 7


def encode(fields: Mapping[str, str]) -> bytes:
    """One datagram.  Each value goes with its length before it, so that whatever is in it, it is one value."""
    parts = []
    for name, value in fields.items():
        encoded = value.encode("utf-8", "backslashreplace")
        parts += [name.encode("ascii"), b"\n", len(encoded).to_bytes(8, "little"), encoded, b"\n"]
    return b"".join(parts)


class Journald:
    """The journal of this host, if it has one."""

    def __init__(self, path: str = SOCKET) -> None:
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)

    def send(self, fields: Mapping[str, str]) -> bool | None:
        """Whether the journal took it; None where there is none, which misses nothing."""
        try:
            # By its name each time: a journald that is started again is another one with the same name.
            self._socket.sendto(encode(fields), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL, self._path)
        except FileNotFoundError:
            return None
        except OSError:
            return False
        return True

    async def room(self, seconds: float) -> None:
        """Returns when a journal that took nothing takes something again, at the latest after `seconds`."""
        loop, room = asyncio.get_running_loop(), asyncio.Event()
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as looking:
            looking.setblocking(False)
            # Only of one that is connected does the kernel say whether the other end has room (unix(7)).
            with contextlib.suppress(OSError, TimeoutError):
                looking.connect(self._path)
                loop.add_writer(looking, room.set)
                try:
                    async with asyncio.timeout(seconds):
                        await room.wait()
                finally:
                    loop.remove_writer(looking)

    def close(self) -> None:
        self._socket.close()
