# SPDX-License-Identifier: LGPL-2.1-or-later
"""The delivery half's part for trees: unpacked into a hidden directory of the inbox, which then gets its name at once.

Law of this room: as for a file, nothing has the name before all of it is there, checked and on disk, and the core half
has said so.  There is no directory without a name, so what was cut off stays hidden, and the next tree clears it away:
it is known by that nobody holds its lock.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import signal
from collections.abc import Callable

from cage_runtime import packing
from cage_runtime.intree import Misfit, Tree, read_header
from mediators.files.deliver import DIRECTORY, ENDS, Held, Undelivered, first_free, hidden_name, write_all
from mediators.files.protocol import CHUNK, DAMAGED, HIDDEN, REPLACE, SKIPPED, Delivery

RENAME_NOREPLACE, RENAME_EXCHANGE = 1, 2
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_DEEPEST = 200
"""Directories in one another that are cleared away; deeper, somebody else has put them there."""
_LIBC = ctypes.CDLL(None, use_errno=True)


def publish_tree(staged: int, directory: int, delivery: Delivery, wait_for_go: Callable[[], None]) -> int:
    """Publish the tree whose stream is open as `staged` in `directory`, once `wait_for_go` has returned.

    Returns the ordinal of the name that it has, or SKIPPED.
    """
    _clear(directory)
    hidden = hidden_name()
    os.mkdir(hidden, 0o700, dir_fd=directory)
    published = False
    try:
        with Held(os.open(hidden, DIRECTORY, dir_fd=directory)) as top:
            fcntl.flock(top, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _unpack(staged, top, delivery)
            os.fchmod(top, 0o755)
            _synchronise(top)
            wait_for_go()
            ordinal = _give_name(directory, hidden, delivery)
        published = True
    finally:
        if not published:
            _clear_away(directory, hidden)
    os.fsync(directory)
    if delivery.conflict == REPLACE or ordinal == SKIPPED:
        _clear_away(directory, hidden)  # what it took the place of, or the tree itself
    return ordinal


def _unpack(staged: int, top: int, delivery: Delivery) -> None:
    offset = 0

    def source(most: int) -> bytes:
        nonlocal offset
        chunk = os.pread(staged, min(most, CHUNK), offset)
        offset += len(chunk)
        return chunk

    try:
        announced = read_header(source(packing.HEADER.size))
        if announced.length != delivery.size:
            raise Undelivered(DAMAGED, "another length than announced")
        tree = Tree(announced, source)
        with _Open(top) as below:
            for kind, name in tree.steps():
                below.step(kind, name, tree)
    except Misfit as error:
        raise Undelivered(DAMAGED, str(error)) from error
    if tree.digest != delivery.sha256:
        raise Undelivered(DAMAGED, "another digest than announced")


class _Open:
    """The directories of a tree that are open, outermost first; the first is the caller's."""

    def __init__(self, top: int) -> None:
        self._open = [top]

    def __enter__(self) -> _Open:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        while len(self._open) > 1:
            os.close(self._open.pop())

    def step(self, kind: int, name: str, tree: Tree) -> None:
        here = self._open[-1]
        if kind == packing.LEAVE:
            os.close(self._open.pop())
        elif kind == packing.DIRECTORY:
            os.mkdir(name, 0o755, dir_fd=here)
            self._open.append(os.open(name, DIRECTORY, dir_fd=here))
        else:
            with Held(os.open(name, _NEW, 0o755 if kind == packing.PROGRAM else 0o644, dir_fd=here)) as file:
                for piece in tree.content():
                    write_all(file, piece)


def _give_name(directory: int, hidden: str, delivery: Delivery) -> int:
    def rename(name: str) -> None:
        _rename(directory, hidden, name, RENAME_NOREPLACE)

    if delivery.conflict != REPLACE:
        return first_free(delivery, rename)
    try:
        rename(delivery.name)
    except FileExistsError:
        _rename(directory, hidden, delivery.name, RENAME_EXCHANGE)
    return 1


def _rename(directory: int, old: str, new: str, flags: int) -> None:
    if _LIBC.renameat2(directory, old.encode(), directory, new.encode(), flags):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), new)


def _synchronise(descriptor: int) -> None:
    """All of its file system: to wait for each of many files takes a hundred times as long."""
    if _LIBC.syncfs(descriptor):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _clear(directory: int) -> None:
    """Remove what deliveries that were cut off have left."""
    with os.scandir(directory) as entries:
        names = [entry.name for entry in entries if entry.name.startswith(HIDDEN)]
    for name in names:
        # that of another delivery, or not one at all
        with contextlib.suppress(OSError), Held(os.open(name, DIRECTORY, dir_fd=directory)) as there:
            fcntl.flock(there, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove(directory, name)


def _clear_away(directory: int, name: str) -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDS)
    with contextlib.suppress(OSError):  # what stays is hidden, and for the next one to clear
        _remove(directory, name)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _remove(parent: int, name: str, depth: int = 0) -> None:
    try:
        descriptor = os.open(name, DIRECTORY, dir_fd=parent)
    except (NotADirectoryError, FileNotFoundError):
        os.unlink(name, dir_fd=parent)
        return
    if depth > _DEEPEST:
        os.close(descriptor)
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), name)
    with Held(descriptor):
        with os.scandir(descriptor) as entries:
            inner = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
        for below, is_directory in inner:
            if is_directory:
                _remove(descriptor, below, depth + 1)
            else:
                os.unlink(below, dir_fd=descriptor)
    os.rmdir(name, dir_fd=parent)
