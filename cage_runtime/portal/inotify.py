# SPDX-License-Identifier: LGPL-2.1-or-later
"""Waiting until a file is written: inotify(7), which the standard library does not have."""

from __future__ import annotations

import asyncio
import ctypes
import os
import struct
from pathlib import Path

IN_CLOSE_WRITE, IN_MOVED_TO = 0x8, 0x80
_IN_NONBLOCK, _IN_CLOEXEC = os.O_NONBLOCK, os.O_CLOEXEC
_HEADER = struct.Struct("iIII")
_BYTES = 4096 * 4


class Watch:
    """What is written and closed in a folder, or moved into it, from now on; to be used in a `with`."""

    def __init__(self, folder: Path) -> None:
        """OSError where the kernel refuses."""
        libc = ctypes.CDLL(None, use_errno=True)
        self._descriptor = _checked(libc.inotify_init1(_IN_NONBLOCK | _IN_CLOEXEC), folder)
        try:
            _checked(libc.inotify_add_watch(self._descriptor, os.fsencode(folder), IN_CLOSE_WRITE | IN_MOVED_TO),
                     folder)
        except OSError:
            os.close(self._descriptor)
            raise

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    async def written(self, name: str) -> None:
        """Returns when the file `name` of the folder has been written and closed, or put there by a rename."""
        loop = asyncio.get_running_loop()
        wanted = os.fsencode(name)
        while True:
            ready: asyncio.Future[None] = loop.create_future()
            loop.add_reader(self._descriptor, _set, ready)
            try:
                await ready
            finally:
                loop.remove_reader(self._descriptor)
            if wanted in _names(os.read(self._descriptor, _BYTES)):
                return


def _names(events: bytes) -> list[bytes]:
    names, offset = [], 0
    while offset < len(events):
        _watch, _mask, _cookie, length = _HEADER.unpack_from(events, offset)
        offset += _HEADER.size + length
        names.append(events[offset - length : offset].rstrip(b"\0"))
    return names


def _checked(result: int, folder: Path) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(folder))
    return result


def _set(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)
