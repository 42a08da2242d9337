# SPDX-License-Identifier: LGPL-2.1-or-later
"""One direction of a session: bytes from a descriptor to another, without ever blocking the other directions.

Law of this room: descriptors 0, 1 and 2 are shared with others, so they are neither closed nor made non-blocking;
every other one is ours, and is both.
"""

from __future__ import annotations

import errno
import os
import select
import stat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

READ_BYTES = 64 * 1024
SAFE_BYTES = select.PIPE_BUF
"""What a pipe or socket that polls as writable takes without blocking."""
DRAIN_BYTES = 1024 * 1024
"""At most this much can have been in a pipe (fs.pipe-max-size) when the command exited; a background program that
goes on writing does not hold us for longer."""
_STANDARD = 2
_GONE = select.POLLERR | select.POLLHUP | select.POLLNVAL


class Pump:
    def __init__(self, source: int, sink: int) -> None:
        self._source, self._sink = source, sink
        self._buffer = memoryview(b"")
        self._source_open = self._sink_open = True
        self.failure = ""
        """Why output was lost, a sentence; the reader going away is no failure."""
        for descriptor in (source, sink):
            if descriptor > _STANDARD:
                os.set_blocking(descriptor, False)
        ours_or_file = sink > _STANDARD or stat.S_ISREG(os.fstat(sink).st_mode)
        self._write_bytes = READ_BYTES if ours_or_file else SAFE_BYTES

    def wants(self) -> list[tuple[int, int]]:
        """What to poll for."""
        if not self._sink_open:
            return []
        if self._buffer:
            return [(self._sink, select.POLLOUT)]
        wanted = [(self._source, select.POLLIN)] if self._source_open else []
        # A command that has closed its input is seen by POLLERR, so that we stop to take what it will not read.
        return [*wanted, (self._sink, 0)] if self._sink > _STANDARD else wanted

    def move(self, ready: Mapping[int, int]) -> None:
        """Reads or writes once, as far as `ready`, the answer to what `wants` asked, lets it."""
        if not self._sink_open:
            return
        if self._buffer:
            if self._sink in ready:
                self._write()
        elif ready.get(self._sink, 0) & _GONE and self._sink > _STANDARD:
            self.close()
        elif self._source_open and self._source in ready:
            self._read()

    def drain(self) -> None:
        """Moves what is there already and closes; for output, after the command has exited."""
        moved = 0
        while self._sink_open and self._sink <= _STANDARD:
            if self._buffer:
                select_one(self._sink, select.POLLOUT)
                moved += self._write()
            elif not self._source_open or moved >= DRAIN_BYTES or not self._read():
                break
        self.close()

    def _read(self) -> bool:
        """Whether there was something."""
        try:
            self._buffer = memoryview(os.read(self._source, READ_BYTES))
        except BlockingIOError:
            return False
        except OSError:
            # EIO is a terminal's end; a standard input that cannot be read (a directory, say) has ended too.
            self._buffer = memoryview(b"")
        if not self._buffer:
            self.close()
        return bool(self._buffer)

    def _write(self) -> int:
        try:
            written = os.write(self._sink, self._buffer[: self._write_bytes])
        except BlockingIOError:
            return 0
        except OSError as error:
            if self._sink <= _STANDARD and error.errno not in (errno.EPIPE, errno.EIO):
                self.failure = f"output of the command was lost: {error.strerror}"
            self._buffer = memoryview(b"")
            self.close()
            return 0
        self._buffer = self._buffer[written:]
        return written

    def close(self) -> None:
        """Closes what is ours of the two ends: the other side sees an end of file or a broken pipe."""
        if self._source_open and self._source > _STANDARD:
            os.close(self._source)
        if self._sink_open and self._sink > _STANDARD:
            os.close(self._sink)
        self._source_open = self._sink_open = False


def wait(pumps: Iterable[Pump], *others: int) -> dict[int, int]:
    """Until a pump can move or one of `others` can be read: what `move` wants to know, by descriptor."""
    wanted = dict.fromkeys(others, select.POLLIN)
    for pump in pumps:
        for descriptor, events in pump.wants():
            wanted[descriptor] = wanted.get(descriptor, 0) | events
    poll = select.poll()
    for descriptor, events in wanted.items():
        poll.register(descriptor, events)
    return dict(poll.poll())


def select_one(descriptor: int, events: int) -> None:
    """Waits for one event."""
    poll = select.poll()
    poll.register(descriptor, events)
    poll.poll()
