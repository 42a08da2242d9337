# SPDX-License-Identifier: LGPL-2.1-or-later
"""A copy arrives: one file or tree, read from a stream, gets its name in a directory at once and whole, or not at all.

Law of this room: whoever wrote the stream is not believed.  Each step starts from an open directory and follows no
link; modes are 0644 and 0755 at most.  There is no directory without a name, so what was cut off stays hidden and is
cleared away by the next copy to the same place: it is known by that nobody holds its lock.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import stat

from cage_runtime import packing
from cage_runtime.errors import CageError, NameTaken, TransferFailed
from cage_runtime.filenames import CHUNK, HIDDEN, MARK, RENAMES_MAX, candidate, check_file_name
from cage_runtime.intree import Misfit, Source, Tree, read_header

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_LEFT = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_NOREPLACE, _EXCHANGE = 1, 2
"""Of renameat2(2)."""
_DEEPEST = 200
_LIBC = ctypes.CDLL(None, use_errno=True)


class Placed:
    """What arrived: `name` in its directory, empty where it was skipped or has none yet; the bytes, the entries, the
    digest, of a single file its own."""

    __slots__ = ("entries", "name", "sha256", "size")

    def __init__(self, name: str, size: int, entries: int, sha256: str) -> None:
        self.name, self.size, self.entries, self.sha256 = name, size, entries, sha256


def place(source: Source, directory: int, name: str, conflict: str,
          passing: Callable[[Placed], object] = lambda _placed: None) -> Placed:
    """Give the one entry that comes from `source` its `name` in the open `directory`, once all of it is on disk and
    `passing`, which may raise, has been told what it is.  NameTaken where the name is taken and that is to fail;
    TransferFailed where it did not come as it has to."""
    check_file_name(name)
    _clear(directory)
    hidden = HIDDEN + os.urandom(8).hex()
    coming = _Coming(directory, hidden)
    try:
        placed = _unpack(source, coming)
        coming.synchronise()
        passing(placed)
        placed.name = _give_name(directory, hidden, name, conflict)
        os.fsync(directory)
    finally:
        coming.close()
        with contextlib.suppress(OSError):  # it has its name; or it stays hidden, for the next one to clear
            _remove(directory, hidden, 0)
    return placed


class _Coming:
    """The entry on its way, which has the name `hidden` in `directory`, and the directories in it that are open."""

    def __init__(self, directory: int, hidden: str) -> None:
        self._hidden, self._open = hidden, [directory]
        self._top = -1
        """The entry itself, by whose lock it is known that somebody is still at it."""
        self._is_file = False

    def check_room(self, size: int) -> None:
        """OSError where the file system has less than `size` bytes."""
        room = os.fstatvfs(self._open[0])
        if size > room.f_bavail * room.f_frsize:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def step(self, kind: int, name: str, tree: Tree) -> None:
        if kind == packing.LEAVE:
            os.close(self._open.pop())
            return
        if len(self._open) == 1:
            if self._top >= 0:
                raise Misfit("has more than one top")
            name = self._hidden
        if kind == packing.DIRECTORY:
            os.mkdir(name, 0o755, dir_fd=self._open[-1])
            self._open.append(os.open(name, DIRECTORY, dir_fd=self._open[-1]))
            self._hold(self._open[-1], is_file=False)
        else:
            file = os.open(name, _NEW, 0o755 if kind == packing.PROGRAM else 0o644, dir_fd=self._open[-1])
            try:
                self._hold(file, is_file=True)
                _fill(file, tree)
            finally:
                os.close(file)

    def _hold(self, descriptor: int, *, is_file: bool) -> None:
        if self._top < 0:
            self._top, self._is_file = os.dup(descriptor), is_file
            fcntl.flock(self._top, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def synchronise(self) -> None:
        """To the disk; of a tree all of its file system, as many files one by one take a hundred times as long."""
        if self._top < 0:
            raise TransferFailed("nothing came")
        if self._is_file:
            os.fsync(self._top)
        elif _LIBC.syncfs(self._top):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    def close(self) -> None:
        while len(self._open) > 1:
            os.close(self._open.pop())
        if self._top >= 0:
            os.close(self._top)
            self._top = -1


def _unpack(source: Source, coming: _Coming) -> Placed:
    try:
        announced = read_header(_exactly(source, packing.HEADER.size))
        coming.check_room(announced.content)
        tree = Tree(announced, lambda most: source(min(most, CHUNK)))
        for kind, name in tree.steps():
            coming.step(kind, name, tree)
        if source(1):
            raise Misfit("is longer than was said")
    except Misfit as error:
        raise TransferFailed(f"what came {error}") from error
    return Placed("", announced.content, announced.entries, tree.manifest.content)


def _fill(file: int, tree: Tree) -> None:
    for piece in tree.content():
        rest = piece
        while rest:
            rest = rest[os.write(file, rest) :]


def _exactly(source: Source, size: int) -> bytes:
    taken = b""
    while len(taken) < size and (chunk := source(size - len(taken))):
        taken += chunk
    return taken


def _give_name(directory: int, hidden: str, name: str, conflict: str) -> str:
    for ordinal in range(1, RENAMES_MAX + 1 if conflict == "rename" else 2):
        given = candidate(name, ordinal)
        try:
            _rename(directory, hidden, given, _NOREPLACE)
        except FileExistsError:
            continue
        return given
    if conflict == "skip":
        return ""
    if conflict == "replace":
        _rename(directory, hidden, name, _EXCHANGE)
        return name
    raise NameTaken(f'"{name}" is there already; --conflict says what else to do')


def _rename(directory: int, old: str, new: str, flags: int) -> None:
    if _LIBC.renameat2(directory, os.fsencode(old), directory, os.fsencode(new), flags):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), new)


def _clear(directory: int) -> None:
    """Remove what copies of ours that were cut off have left."""
    with os.scandir(directory) as entries:
        names = [entry.name for entry in entries if entry.name.startswith(HIDDEN)]
    for name in names:
        with contextlib.suppress(OSError):  # that of another copy, or somebody else's
            there = os.open(name, _LEFT, dir_fd=directory)
            try:
                status = os.fstat(there)
                if status.st_uid == os.geteuid() and (stat.S_ISDIR(status.st_mode) or stat.S_ISREG(status.st_mode)):
                    fcntl.flock(there, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(name + MARK, dir_fd=directory)
                    _remove(directory, name, 0)
            finally:
                os.close(there)


def _remove(parent: int, name: str, depth: int) -> None:
    try:
        below = os.open(name, DIRECTORY, dir_fd=parent)
    except OSError as error:
        if error.errno not in (errno.ENOTDIR, errno.ELOOP):
            raise
        os.unlink(name, dir_fd=parent)
        return
    try:
        if depth > _DEEPEST:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), name)
        for inner in os.listdir(below):
            _remove(below, inner, depth + 1)
    finally:
        os.close(below)
    os.rmdir(name, dir_fd=parent)


def open_place(directory: int, path: str, name: str, *, links: bool) -> tuple[int, str]:
    """Where `path`, from the open `directory`, says to put something that is called `name`: an open directory, the
    caller's, and the name in it.  A path that is a directory, is empty or ends in a slash means: in it.  Without
    `links` none is followed, and nothing leads out of `directory`."""
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if not links and ".." in parts:
        raise CageError(f'"{path}": ".." is not followed')
    here = os.dup(directory) if links and not path.startswith("/") else _opened(directory, "/" if links else ".", links)
    try:
        while parts:
            try:
                below = _opened(here, parts[0], links)
            except FileNotFoundError:
                if len(parts) > 1 or path.endswith("/"):
                    raise
                return here, parts[0]
            except NotADirectoryError:
                if len(parts) > 1 or path.endswith("/"):
                    raise
                return here, parts[0]
            os.close(here)
            here = below
            del parts[0]
        return here, name
    except OSError as error:
        os.close(here)
        raise CageError(f'"{path}": {error.strerror}') from error


def _opened(directory: int, name: str, links: bool) -> int:
    return os.open(name, DIRECTORY & ~os.O_NOFOLLOW if links else DIRECTORY, dir_fd=directory)
