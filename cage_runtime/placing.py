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

from cage_runtime import packing
from cage_runtime.errors import CageError, NameTaken, TransferFailed
from cage_runtime.filenames import CHUNK, HIDDEN, MARK, RENAMES_MAX, candidate, check_file_name
from cage_runtime.intree import Misfit, Tree, read_header

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_NOREPLACE, _EXCHANGE = 1, 2
"""Of renameat2(2)."""
_DEEPEST = 200
_LIBC = ctypes.CDLL(None, use_errno=True)


class Placed:
    """What arrived: `name` in its directory, empty where it was skipped; the bytes, the entries, the digest."""

    __slots__ = ("entries", "name", "sha256", "size")

    def __init__(self, name: str, size: int, entries: int, sha256: str) -> None:
        self.name, self.size, self.entries, self.sha256 = name, size, entries, sha256


def place(stream: int, directory: int, name: str, conflict: str,
          passing: Callable[[str], object] = lambda _digest: None) -> Placed:
    """Give the one entry that comes in `stream` its `name` in the open `directory`, once all of it is on disk and
    `passing`, which may raise, has been told its digest.  NameTaken where the name is taken and that is to fail;
    TransferFailed where it did not come as it has to."""
    check_file_name(name)
    _clear(directory)
    hidden = HIDDEN + os.urandom(8).hex()
    os.mkdir(hidden, 0o700, dir_fd=directory)
    try:
        top = os.open(hidden, DIRECTORY, dir_fd=directory)
        try:
            fcntl.flock(top, fcntl.LOCK_EX | fcntl.LOCK_NB)
            inner, tree, size, entries = _unpack(stream, top)
            if _LIBC.syncfs(top):
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
            passing(tree.digest)
            given = _give_name(top, inner, directory, name, conflict)
        finally:
            os.close(top)
        os.fsync(directory)
    finally:
        with contextlib.suppress(OSError):  # hidden, and for the next one to clear
            _remove(directory, hidden, 0)
    return Placed(given, size, entries, tree.digest)


def _unpack(stream: int, top: int) -> tuple[str, Tree, int, int]:
    """The name of the one entry, now below `top`, and what was read of it."""
    try:
        announced = read_header(_exactly(stream, packing.HEADER.size))
        room = os.fstatvfs(top)
        if announced.content > room.f_bavail * room.f_frsize:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        tree = Tree(announced, lambda most: os.read(stream, min(most, CHUNK)))
        open_, first = [top], ""
        try:
            for kind, name in tree.steps():
                if len(open_) == 1 and kind != packing.LEAVE:
                    if first:
                        raise Misfit("has more than one top")
                    first = name
                _step(open_, kind, name, tree)
        finally:
            while len(open_) > 1:
                os.close(open_.pop())
    except Misfit as error:
        raise TransferFailed(f"what came {error}") from error
    if not first:
        raise TransferFailed("nothing came")
    return first, tree, announced.content, announced.entries


def _step(open_: list[int], kind: int, name: str, tree: Tree) -> None:
    if kind == packing.LEAVE:
        os.close(open_.pop())
    elif kind == packing.DIRECTORY:
        os.mkdir(name, 0o755, dir_fd=open_[-1])
        open_.append(os.open(name, DIRECTORY, dir_fd=open_[-1]))
    else:
        file = os.open(name, _NEW, 0o755 if kind == packing.PROGRAM else 0o644, dir_fd=open_[-1])
        try:
            for piece in tree.content():
                rest = piece
                while rest:
                    rest = rest[os.write(file, rest) :]
        finally:
            os.close(file)


def _exactly(stream: int, size: int) -> bytes:
    taken = b""
    while len(taken) < size and (chunk := os.read(stream, size - len(taken))):
        taken += chunk
    return taken


def _give_name(top: int, inner: str, directory: int, name: str, conflict: str) -> str:
    for ordinal in range(1, RENAMES_MAX + 1 if conflict == "rename" else 2):
        given = candidate(name, ordinal)
        try:
            _rename(top, inner, directory, given, _NOREPLACE)
        except FileExistsError:
            continue
        return given
    if conflict == "skip":
        return ""
    if conflict == "replace":
        _rename(top, inner, directory, name, _EXCHANGE)
        return name
    raise NameTaken(f'"{name}" is there already; --conflict says what else to do')


def _rename(old_directory: int, old: str, directory: int, new: str, flags: int) -> None:
    if _LIBC.renameat2(old_directory, os.fsencode(old), directory, os.fsencode(new), flags):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), new)


def _clear(directory: int) -> None:
    """Remove what copies of ours that were cut off have left."""
    with os.scandir(directory) as entries:
        names = [entry.name for entry in entries if entry.name.startswith(HIDDEN)]
    for name in names:
        with contextlib.suppress(OSError):  # that of another copy, or somebody else's
            there = os.open(name, DIRECTORY, dir_fd=directory)
            try:
                if os.fstat(there).st_uid == os.geteuid():
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
