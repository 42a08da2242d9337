# SPDX-License-Identifier: LGPL-2.1-or-later
"""A directory on its way out: listed, written as one stream (cage_runtime.packing), and removed where it is moved.

Law of this room: every step starts from an open directory and follows no link; a file that is not as it was listed
ends the whole, and one that is not as it was read is not removed.
"""

from __future__ import annotations

import os
import stat

from cage_runtime import packing
from cage_runtime.cli.beneath import Marks, is_as_read
from cage_runtime.errors import CageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from cage_runtime.intree import Manifest

CHUNK = 1024 * 1024
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class Listing:
    """What is in a directory: `steps` as they go into the stream, each its kind, name and what it looked like."""

    __slots__ = ("content", "entries", "length", "path", "steps")

    def __init__(self, path: str) -> None:
        self.path = path
        """For people."""
        self.steps: list[tuple[int, str, Marks | None]] = []
        self.entries = self.content = 0
        self.length = packing.HEADER.size + packing.ENTRY.size

    @classmethod
    def of(cls, top: int, path: str) -> Listing:
        """Of the directory open as `top`, which a person knows as `path`; CageError where it cannot be sent."""
        listing = cls(path)
        listing._add(top, path.rstrip("/"), 1)
        return listing

    @classmethod
    def of_entry(cls, directory: int, name: str, path: str) -> Listing:
        """Of the one file or directory `name` in the open `directory`, with it."""
        listing = cls(os.path.dirname(path) or ".")
        try:
            status = os.stat(name, dir_fd=directory, follow_symlinks=False)
        except OSError as error:
            raise CageError(f'"{path}": {error.strerror}') from error
        listing._entry(directory, name, status, path, 0)
        return listing

    def _add(self, directory: int, path: str, depth: int) -> None:
        try:
            with os.scandir(directory) as entries:
                found = sorted((entry.name, entry.stat(follow_symlinks=False)) for entry in entries)
        except OSError as error:
            raise CageError(f'"{path}" cannot be read: {error.strerror}') from error
        for name, status in found:
            self._entry(directory, name, status, f"{path}/{name}", depth)

    def _entry(self, directory: int, name: str, status: os.stat_result, path: str, depth: int) -> None:
        self.entries += 1
        if self.entries > packing.ENTRIES_MAX:
            raise CageError(f'"{self.path}" has more than {packing.ENTRIES_MAX} files and directories; '
                            "send it in parts")
        self.length += packing.ENTRY.size + len(os.fsencode(name))
        if stat.S_ISDIR(status.st_mode):
            if depth >= packing.DEPTH_MAX:
                raise CageError(f'"{self.path}" has more than {packing.DEPTH_MAX} directories in one another')
            self.steps.append((packing.DIRECTORY, name, None))
            below = _opened(directory, name, path, _DIRECTORY)
            try:
                self._add(below, path, depth + 1)
            finally:
                os.close(below)
            self.steps.append((packing.LEAVE, name, None))
            self.length += packing.ENTRY.size
        elif stat.S_ISREG(status.st_mode):
            kind = packing.PROGRAM if status.st_mode & stat.S_IXUSR else packing.FILE
            self.steps.append((kind, name, Marks(status)))
            self.content += status.st_size
            self.length += status.st_size
        elif stat.S_ISLNK(status.st_mode):
            raise CageError(f'"{path}" is a symbolic link, which is not followed; remove it, or put there what it '
                            "stands for")
        else:
            raise CageError(f'"{path}" is neither a file nor a directory; only those can be sent')


def write(stream: int, top: int, listing: Listing, progress: Callable[[int], object] = lambda _written: None,
          manifest: Manifest | None = None) -> None:
    """The tree below the open directory `top` as one stream; BrokenPipeError where it is not wanted any more.

    `progress` is told, now and then, how many bytes of it have been taken.  `manifest` gets what whoever receives it
    should have; then a name that cannot be received is InvalidName here.
    """
    out = _Buffered(stream, progress)
    out.add(packing.header(listing.entries, listing.content, listing.length))
    open_, path = [top], [listing.path.rstrip("/")]
    try:
        for kind, name, marks in listing.steps:
            if kind == packing.LEAVE:
                os.close(open_.pop())
                path.pop()
                out.add(packing.entry(kind))
                continue
            shown = "/".join((*path, name))
            described = None if manifest is None else _Described(manifest, [*path[1:], name])
            if marks is None:
                open_.append(_opened(open_[-1], name, shown, _DIRECTORY))
                path.append(name)
                out.add(packing.entry(kind, os.fsencode(name)))
                if described:
                    described.directory()
                continue
            file = _opened(open_[-1], name, shown, _FILE)
            try:
                out.add(packing.entry(kind, os.fsencode(name), marks.size))
                _copy(out, file, marks, shown, described)
                if described:
                    described.file(marks.size, program=kind == packing.PROGRAM)
            finally:
                os.close(file)
        out.add(packing.entry(packing.END))
        out.flush()
    finally:
        while len(open_) > 1:
            os.close(open_.pop())


class _Described:
    """One entry of a manifest, by the names that whoever receives it gives it."""

    def __init__(self, manifest: Manifest, names: list[str]) -> None:
        import hashlib

        from cage_runtime.filenames import check_file_name

        self._manifest, self._path = manifest, "/".join(map(check_file_name, names))
        self._content = hashlib.sha256()

    def directory(self) -> None:
        self._manifest.directory(self._path)

    def take(self, chunk: bytes) -> None:
        self._content.update(chunk)

    def file(self, size: int, *, program: bool) -> None:
        self._manifest.file(self._path, size, self._content.hexdigest(), program=program)


def _copy(out: _Buffered, file: int, marks: Marks, shown: str, described: _Described | None) -> None:
    left = marks.size
    if is_as_read(os.fstat(file), marks):
        while left and (chunk := os.read(file, min(left, CHUNK))):
            left -= len(chunk)
            out.add(chunk)
            if described:
                described.take(chunk)
    if left or not is_as_read(os.fstat(file), marks):
        raise CageError(f'"{shown}" changed while it was read; send it again when nothing writes to it')


class _Buffered:
    """Small pieces together, in one write."""

    def __init__(self, stream: int, progress: Callable[[int], object]) -> None:
        self._stream, self._pieces, self._written, self._progress = stream, bytearray(), 0, progress

    def add(self, piece: bytes) -> None:
        if len(piece) >= CHUNK // 4:
            self.flush()
            self._write(piece)
            return
        self._pieces += piece
        if len(self._pieces) >= CHUNK // 4:
            self.flush()

    def flush(self) -> None:
        self._write(self._pieces)
        self._pieces = bytearray()

    def _write(self, content: bytes | bytearray) -> None:
        rest = memoryview(content)
        while rest:
            written = os.write(self._stream, rest)
            rest = rest[written:]
            self._written += written
            self._progress(self._written)


def remove(top: int, listing: Listing) -> str:
    """Remove below `top` what is still as it was read; the path of one that is not and was kept, or nothing."""
    open_, kept, path = [top], "", [listing.path.rstrip("/")]
    lost = 0
    """Directories, from the innermost outwards, that are not there any more."""
    for kind, name, marks in listing.steps:
        shown = "/".join((*path, name))
        if kind == packing.DIRECTORY:
            path.append(name)
            try:
                if not lost:
                    open_.append(os.open(name, _DIRECTORY, dir_fd=open_[-1]))
                    continue
            except OSError:
                kept = kept or shown
            lost += 1
        elif kind == packing.LEAVE:
            path.pop()
            if lost:
                lost -= 1
                continue
            os.close(open_.pop())
            kept = kept or _unless_empty(open_[-1], name, "/".join((*path, name)))
        elif marks is not None and not lost:
            kept = _unless_as_read(open_[-1], name, marks, shown) or kept
    return kept


def _unless_as_read(directory: int, name: str, marks: Marks, shown: str) -> str:
    try:
        if is_as_read(os.stat(name, dir_fd=directory, follow_symlinks=False), marks):
            os.unlink(name, dir_fd=directory)
            return ""
    except OSError:
        return shown
    return shown


def _unless_empty(directory: int, name: str, shown: str) -> str:
    try:
        os.rmdir(name, dir_fd=directory)
    except OSError:
        return shown
    return ""


def _opened(directory: int, name: str, path: str, flags: int) -> int:
    try:
        return os.open(name, flags, dir_fd=directory)
    except OSError as error:
        raise CageError(f'"{path}" cannot be read: {error.strerror}') from error
