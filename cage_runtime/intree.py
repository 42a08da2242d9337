# SPDX-License-Identifier: LGPL-2.1-or-later
"""Reading a tree that came as one stream (cage_runtime.packing), by whoever receives it: each looks again.

Law of this room: a stream is a cage's.  Everything in it is held against a bound before it is believed or kept, a name
is one component that `check_file_name` has passed, and what does not fit ends the whole: there is no part of a tree.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator

from cage_runtime.errors import InvalidName
from cage_runtime.filenames import TRANSFER_BYTES_MAX, check_file_name
from cage_runtime.packing import (
    DEPTH_MAX,
    DIRECTORY,
    END,
    ENTRIES_MAX,
    ENTRY,
    FILE,
    HEADER,
    LEAVE,
    MAGIC,
    PATH_BYTES_MAX,
    PROGRAM,
)
from cage_runtime.text import escape

Source = Callable[[int], bytes]
"""At most so many of the next bytes, at least one; none where the stream has ended."""


class Misfit(Exception):
    """The stream is no tree that can be sent; the text goes after the tree's name."""


class Announced:
    """What a stream's header says that comes: entries, bytes of their contents, bytes of the whole."""

    __slots__ = ("content", "entries", "length")

    def __init__(self, entries: int, content: int, length: int) -> None:
        self.entries, self.content, self.length = entries, content, length


def read_header(untrusted: bytes) -> Announced:
    """What the first HEADER.size bytes announce, if a tree may be so large; else Misfit."""
    if len(untrusted) != HEADER.size or not untrusted.startswith(MAGIC):
        raise Misfit("did not come as a tree comes")
    _magic, entries, content, length = HEADER.unpack(untrusted)
    if entries > ENTRIES_MAX:
        raise Misfit(f"has {entries} files and directories, and a tree may have {ENTRIES_MAX}; send it in parts")
    if length > TRANSFER_BYTES_MAX:
        raise Misfit(f"is larger than the {TRANSFER_BYTES_MAX >> 30}G that a transfer takes")
    most = HEADER.size + ENTRY.size * (2 * entries + 1) + 255 * entries + content
    if not HEADER.size + ENTRY.size + content <= length <= most:
        raise Misfit("did not come as a tree comes")
    return Announced(entries, content, length)


class Manifest:
    """What stands for all of a tree: a line for each entry, its kind, size, SHA-256 and path."""

    __slots__ = ("_file", "_lines", "entries")

    def __init__(self) -> None:
        self._lines, self._file, self.entries = hashlib.sha256(), "", 0

    def directory(self, path: str) -> None:
        self._add(f"d 0 - {path}\n")

    def file(self, path: str, size: int, sha256: str, *, program: bool) -> None:
        self._add(f"{'x' if program else 'f'} {size} {sha256} {path}\n")
        self._file = sha256

    def _add(self, line: str) -> None:
        self._lines.update(line.encode())
        self.entries += 1

    @property
    def digest(self) -> str:
        """SHA-256 of all lines."""
        return self._lines.hexdigest()

    @property
    def content(self) -> str:
        """SHA-256 of the one file, where there is nothing else; of all lines otherwise."""
        return self._file if self._file and self.entries == 1 else self.digest


class Tree:
    """The entries of one stream, in order, after its header; at the end `digest` stands for all of it.

    Each step gives the kind and the name; of a FILE or a PROGRAM the content has to be taken, by `content`, before the
    next.  Misfit where anything is not as it has to be.
    """

    def __init__(self, announced: Announced, source: Source) -> None:
        self._announced, self._source = announced, source
        self._buffer, self._at = memoryview(b""), 0
        self._left = announced.length - HEADER.size
        self._open: list[tuple[str, set[str]]] = [("", set())]
        """The directories that are open, outermost first: the path of each, and the names in it so far."""
        self._entries = self._content = 0
        self._pending = 0
        """Bytes of content that have not been taken."""
        self._described = "", False
        """Of the file whose content comes: its path, and whether it is a program."""
        self.manifest = Manifest()
        self.digest = ""
        """SHA-256 of the manifest."""

    def steps(self) -> Iterator[tuple[int, str]]:
        while True:
            kind, length, size = ENTRY.unpack(self._take(ENTRY.size))
            if kind in (END, LEAVE):
                if length or size:
                    raise Misfit("did not come as a tree comes")
                if kind == END:
                    break
                self._leave()
                yield LEAVE, ""
                continue
            yield kind, self._enter(kind, bytes(self._take(length)), size)
            if self._pending:
                raise ValueError("the content was not taken")
        self._end()

    def content(self) -> Iterator[memoryview]:
        """The content of the file that has just come, in pieces that are good until the next one."""
        digest, size = hashlib.sha256(), self._pending
        while self._pending:
            piece = self._some(self._pending)
            digest.update(piece)
            self._pending -= len(piece)
            yield piece
        path, program = self._described
        self.manifest.file(path, size, digest.hexdigest(), program=program)

    def _enter(self, kind: int, untrusted_name: bytes, size: int) -> str:
        if kind not in (DIRECTORY, FILE, PROGRAM) or (kind == DIRECTORY and size):
            raise Misfit("did not come as a tree comes")
        self._entries += 1
        self._content += size
        if self._entries > self._announced.entries or self._content > self._announced.content:
            raise Misfit(CHANGED)
        above, names = self._open[-1]
        name = _checked(untrusted_name)
        if name in names:
            raise Misfit(f'has two entries "{escape(above + name, limit=200)}"; rename one')
        names.add(name)
        path = above + name
        if len(path.encode()) > PATH_BYTES_MAX:
            raise Misfit(f"has a path longer than {PATH_BYTES_MAX} bytes")
        if kind == DIRECTORY:
            if len(self._open) >= DEPTH_MAX:
                raise Misfit(f"has more than {DEPTH_MAX} directories in one another")
            self._open.append((f"{path}/", set()))
            self.manifest.directory(path)
        self._pending, self._described = size, (path, kind == PROGRAM)
        return name

    def _leave(self) -> None:
        if len(self._open) == 1:
            raise Misfit("did not come as a tree comes")
        self._open.pop()

    def _end(self) -> None:
        if len(self._open) > 1 or self._left or self._at < len(self._buffer):
            raise Misfit("did not come as a tree comes")
        if (self._entries, self._content) != (self._announced.entries, self._announced.content):
            raise Misfit(CHANGED)
        self.digest = self.manifest.digest

    def _take(self, size: int) -> memoryview:
        """The next `size` bytes, which are few."""
        if self._at + size <= len(self._buffer):
            self._at += size
            return self._buffer[self._at - size : self._at]
        taken = bytearray()
        while len(taken) < size:
            taken += self._some(size - len(taken))
        return memoryview(taken)

    def _some(self, most: int) -> memoryview:
        """At least one and at most `most` of the next bytes."""
        if self._at == len(self._buffer):
            self._buffer, self._at = memoryview(self._source(self._left)), 0
            self._left -= len(self._buffer)
            if not self._buffer:
                raise Misfit(CHANGED if self._left == 0 else "did not come whole")
        piece = self._buffer[self._at : self._at + most]
        self._at += len(piece)
        return piece


CHANGED = "changed while it was read; send it again when nothing writes to it"


def _checked(untrusted_name: bytes) -> str:
    try:
        return check_file_name(untrusted_name.decode())
    except UnicodeDecodeError:
        raise Misfit(f'has an entry "{escape(untrusted_name, limit=80)}", whose name is not UTF-8; rename it') from None
    except InvalidName as error:
        raise Misfit(f"cannot be sent: {error.sentence}") from None
