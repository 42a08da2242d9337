# SPDX-License-Identifier: LGPL-2.1-or-later
"""Bytes between two cages: read by the core from a pipe of the one and written to a pipe of the other.

Law of this room: no pipe has ends in two cages, so that neither can do more to the other than send bytes.  They are
copied, never spliced: pages of a pipe may still be the sender's.  Nothing blocks, what is held is one chunk, and
whoever does not read holds up nobody but who writes to him.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

CHUNK = 64 * 1024
"""Bytes that are read at once, and so the most that a direction holds: what a pipe takes (pipe(7))."""
LEFT_MAX = 1024 * 1024
"""Bytes that a pipe may still hold when whoever wrote to it has ended: as large as its user can make it (proc(5),
pipe-max-size)."""


class Direction:
    """One direction of a call, from the pipe `source` to the pipe `sink`, both of which it closes at its end.

    An end of file at the source becomes one at the sink.  Where nobody reads the sink any more, nobody reads the
    source.
    """

    def __init__(self, source: int, sink: int, *, most: int, ended: Callable[[], None]) -> None:
        """`most` bytes go through at most; `ended` is called once, when both descriptors are closed."""
        self._loop = asyncio.get_running_loop()
        self._source, self._sink, self._most, self._ended = source, sink, most, ended
        self._rest = memoryview(b"")
        self._left: int | None = None
        """How many bytes more are taken; None for as many as come."""
        self.open = True
        self.moved = 0
        """Bytes that have been read."""
        self.exceeded = False
        """There was more than may go through; nothing of the chunk in which it was went on."""
        self.touched = self._loop.time()
        """When something was last read or written."""
        for descriptor in (source, sink):
            os.set_blocking(descriptor, False)
        self._loop.add_reader(source, self._read)
        # The end of a pipe that is written to is never readable, but for the error that nobody reads the other.
        self._loop.add_reader(sink, self.close)

    def finish(self) -> None:
        """Take what is there already and then end, whoever has the other end of the source still."""
        self._left = LEFT_MAX
        self._read_on()

    def close(self) -> None:
        """End now, whatever is on its way."""
        if not self.open:
            return
        self.open = False
        self._loop.remove_reader(self._source)
        self._loop.remove_reader(self._sink)
        self._loop.remove_writer(self._sink)
        os.close(self._source)
        os.close(self._sink)
        self._rest = memoryview(b"")
        self._ended()

    def _read(self) -> None:
        """Once, and no more: others have their turn."""
        try:
            chunk = os.read(self._source, CHUNK)
        except BlockingIOError:
            if self._left is not None:
                self.close()
            return
        self.moved += len(chunk)
        self.exceeded = self.moved > self._most
        if self._left is not None:
            self._left -= len(chunk)
        if not chunk or self.exceeded or (self._left or 0) < 0:
            self.close()
            return
        self._rest = memoryview(chunk)
        if not self._wrote_all() and self.open:
            self._loop.remove_reader(self._source)
            self._loop.add_writer(self._sink, self._write)

    def _write(self) -> None:
        if self._wrote_all():
            self._loop.remove_writer(self._sink)
            self._loop.add_reader(self._source, self._read)

    def _wrote_all(self) -> bool:
        """Whether nothing is left to write, after what the sink takes now; not where that has ended."""
        self.touched = self._loop.time()
        try:
            written = os.write(self._sink, self._rest)
        except BlockingIOError:
            return False
        except BrokenPipeError:
            self.close()
            return False
        self._rest = self._rest[written:]
        if self._left is not None and not self._rest:
            self._loop.call_soon(self._read_on)
        return not self._rest

    def _read_on(self) -> None:
        if self.open and not self._rest:
            self._read()
