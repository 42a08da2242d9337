# SPDX-License-Identifier: LGPL-2.1-or-later
"""A copy of a file and its SHA-256, in one pass: of a large one, the digest is computed beside the copy.

Law of this room: what is digested is what was written, not what is read a second time.  The delivery half starts once
a transfer, so what a large file alone needs is imported for a large file alone.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os

from cage_runtime.filenames import CHUNK

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

LARGE = 16 * CHUNK
"""Bytes of which the digest takes longer than to start a thread for it."""
BLOCK = 4096
"""Bytes of which those that are written past the page cache are a multiple, and their place in memory and on disk."""
AHEAD = 4
"""Chunks that may wait to be digested while the next are copied."""


def copy(source: int, target: int, size: int,
         written: Callable[[int], object] = lambda _offset: None, *, to_disk: bool = False) -> tuple[int, str]:
    """Copy `size` bytes of `source` by their offsets (never the shared position, never mapped) to the end of `target`;
    `written` is told how many there are so far, after each chunk.

    `to_disk`: they will be waited for until they are on the disk, so that those of a large file go there at once and
    past the page cache, of which a second copy of it would take as much again.

    Returns how many bytes there were and their SHA-256; where there are more, one more and no digest.
    """
    digest = _Beside() if size >= LARGE else _Here()
    writer = Writer(target, direct=to_disk and size >= LARGE)
    try:
        return _copied(source, writer, size, digest, written)
    finally:
        digest.end()
        writer.end()


def _copied(source: int, writer: Writer, size: int, digest: _Here | _Beside,
            written: Callable[[int], object]) -> tuple[int, str]:
    offset = 0
    while True:
        chunk = digest.chunk()
        count = os.preadv(source, [chunk[: min(CHUNK, size + 1 - offset)]], offset)
        offset += count
        if offset > size:
            return offset, ""
        if not count:
            return offset, digest.end()
        digest.update(chunk[:count])
        writer.write(chunk[:count])
        written(offset)


def write_all(descriptor: int, chunk: bytes | memoryview) -> None:
    rest = memoryview(chunk)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


class Writer:
    """Writes to the end of a file, past the page cache as long as that can be done (open(2), O_DIRECT)."""

    def __init__(self, descriptor: int, *, direct: bool) -> None:
        self._descriptor, self.direct = descriptor, direct
        if direct:
            try:
                self._set(os.O_DIRECT)
            except OSError as error:
                if error.errno != errno.EINVAL:  # a file system that has none of it
                    raise
                self.direct = False

    def write(self, chunk: memoryview) -> None:
        if len(chunk) % BLOCK:
            self.end()
        while chunk and self.direct:
            try:
                chunk = chunk[os.write(self._descriptor, chunk) :]
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                self.end()  # a disk of larger blocks, or what is left of a chunk
        write_all(self._descriptor, chunk)

    def end(self) -> None:
        """From here on, through the page cache."""
        if self.direct:
            self.direct = False
            self._set(0)

    def _set(self, direct: int) -> None:
        flags = fcntl.fcntl(self._descriptor, fcntl.F_GETFL)
        fcntl.fcntl(self._descriptor, fcntl.F_SETFL, flags & ~os.O_DIRECT | direct)


class _Here:
    """A digest that is computed when it is told something."""

    def __init__(self) -> None:
        self._digest, self._chunk = hashlib.sha256(), memoryview(bytearray(CHUNK))

    def chunk(self) -> memoryview:
        """Where the next bytes are to be read to."""
        return self._chunk

    def update(self, part: memoryview) -> None:
        """The first bytes of the last `chunk`."""
        self._digest.update(part)

    def end(self) -> str:
        return self._digest.hexdigest()


class _Beside:
    """The same, by a thread, which has a chunk until it has digested it: hashlib lets others run meanwhile."""

    def __init__(self) -> None:
        import mmap
        import queue
        import threading

        self._digest = hashlib.sha256()
        self._told: queue.Queue[memoryview] = queue.Queue()
        self._free: queue.Queue[memoryview] = queue.Queue()
        for _ in range(AHEAD):
            self._free.put(memoryview(mmap.mmap(-1, CHUNK)))  # which begins where a page does
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def chunk(self) -> memoryview:
        return self._free.get()

    def update(self, part: memoryview) -> None:
        self._told.put(part)

    def end(self) -> str:
        if self._thread.is_alive():
            self._told.put(memoryview(b""))
            self._thread.join()
        return self._digest.hexdigest()

    def _work(self) -> None:
        while part := self._told.get():
            self._digest.update(part)
            self._free.put(memoryview(part.obj))
