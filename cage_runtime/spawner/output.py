# SPDX-License-Identifier: LGPL-2.1-or-later
"""What those that nobody waits for print in a cage: cage-init keeps the end of it."""

from __future__ import annotations

import os

from cage_runtime.model import LOG_BYTES, USER_UID
from cage_runtime.spawner.loop import Loop


class Output:
    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._kept = bytearray()
        self._read, self.write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        os.fchown(self.write_end, USER_UID, USER_UID)
        os.set_blocking(self.write_end, True)

    def collect(self) -> None:
        """From now on, whenever there is some."""
        self._loop.watch(self._read, self._readable)

    def kept(self) -> bytes:
        """The last LOG_BYTES at the most."""
        return bytes(self._kept)

    def append(self, output: bytes) -> None:
        self._kept += output
        del self._kept[: max(0, len(self._kept) - LOG_BYTES)]

    def _readable(self) -> None:
        try:
            self.append(os.read(self._read, 65536))
        except BlockingIOError:
            return
