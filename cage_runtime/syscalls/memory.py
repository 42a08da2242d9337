# SPDX-License-Identifier: LGPL-2.1-or-later
"""The memory of a process that waits for an answer, through the files of proc(5).

A write to /proc/PID/mem goes through where the process itself could not write, into what it may only execute.  So what
is mapped there is looked at first, and a mapping that the process cannot write is a fault, as it is in the kernel.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager

PROCMAP_QUERY = 0xC0686611
"""ioctl of /proc/PID/maps: the mapping of one address (Linux 6.11; include/uapi/linux/fs.h)."""
_QUERY = struct.Struct("=9Q4I2Q")
_WRITABLE = 2
_READ_BYTES = 1 << 16


class Memory:
    """Both files are bound to the process's memory when they are opened, whatever becomes of its pid."""

    def __init__(self, memory: int, maps: int) -> None:
        self._memory, self._maps = memory, maps

    @staticmethod
    @contextmanager
    def of(proc: str, pid: int) -> Iterator[Memory]:
        """OSError where there is no such process, or it is not for us."""
        memory = os.open(f"{proc}/{pid}/mem", os.O_RDWR | os.O_CLOEXEC)
        try:
            maps = os.open(f"{proc}/{pid}/maps", os.O_RDONLY | os.O_CLOEXEC)
            try:
                yield Memory(memory, maps)
            finally:
                os.close(maps)
        finally:
            os.close(memory)

    def write(self, address: int, content: bytes) -> None:
        """OSError with EFAULT unless all of it can be written by the process itself."""
        end = address + len(content)
        if end >= 1 << 63 or not self._is_writable(address, end):
            raise OSError(errno.EFAULT, os.strerror(errno.EFAULT))
        try:
            written = os.pwrite(self._memory, content, address)
        except OSError as error:  # EIO where it has been unmapped since
            raise OSError(errno.EFAULT, os.strerror(errno.EFAULT)) from error
        if written != len(content):
            raise OSError(errno.EFAULT, os.strerror(errno.EFAULT))

    def _is_writable(self, address: int, end: int) -> bool:
        while address < end:
            mapping = self._mapping(address)
            if mapping is None:
                return False
            address = mapping
        return True

    def _mapping(self, address: int) -> int | None:
        """Where the mapping at `address` ends; None where there is none, or it cannot be written."""
        query = bytearray(_QUERY.pack(_QUERY.size, 0, address, *[0] * 12))
        try:
            fcntl.ioctl(self._maps, PROCMAP_QUERY, query, True)
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno not in (errno.ENOTTY, errno.EINVAL):
                raise
            return self._mapping_by_list(address)
        _size, _flags, _address, start, end, flags = _QUERY.unpack(query)[:6]
        return end if start <= address < end and flags & _WRITABLE else None

    def _mapping_by_list(self, address: int) -> int | None:
        """As `_mapping`, before Linux 6.11; the list is in the order of addresses."""
        for line in self._lines():
            bounds, permissions, *_ = line.split(b" ", 2)
            start, end = (int(bound, 16) for bound in bounds.split(b"-"))
            if end > address:
                return end if start <= address and permissions[1:2] == b"w" else None
        return None

    def _lines(self) -> Iterator[bytes]:
        os.lseek(self._maps, 0, os.SEEK_SET)
        rest = b""
        while part := os.read(self._maps, _READ_BYTES):
            *lines, rest = (rest + part).split(b"\n")
            yield from lines
