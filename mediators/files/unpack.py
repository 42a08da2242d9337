# SPDX-License-Identifier: LGPL-2.1-or-later
"""The delivery half's part for trees: unpacked into a hidden directory of the inbox, which then gets its name at once.

Law of this room: as for a file, nothing has the name before all of it is there, checked and on disk, and the core half
has said so.  There is no directory without a name, so what was cut off stays hidden, for the next delivery to clear.
"""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Callable

from cage_runtime import packing
from cage_runtime.intree import Misfit, Tree, read_header
from mediators.digest import write_all
from mediators.files import hidden
from mediators.files.deliver import DIRECTORY, ENDS, Held, Undelivered, first_free
from mediators.files.protocol import CHUNK, DAMAGED, REPLACE, SKIPPED, Delivery

RENAME_NOREPLACE, RENAME_EXCHANGE = 1, 2
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_LIBC = ctypes.CDLL(None, use_errno=True)


def publish_tree(staged: int, directory: int, delivery: Delivery, wait_for_go: Callable[[], None]) -> int:
    """Publish the tree whose stream is open as `staged` in `directory`, once `wait_for_go` has returned.

    Returns the ordinal of the name that it has, or SKIPPED.
    """
    name = hidden.hidden_name(delivery.once)

    def make() -> int:
        os.mkdir(name, 0o700, dir_fd=directory)
        return os.open(name, DIRECTORY, dir_fd=directory)

    published = False
    try:
        with Held(hidden.begin(directory, make)) as top:
            _unpack(staged, top, delivery)
            os.fchmod(top, 0o755)
            _synchronise(top)
            wait_for_go()
            if delivery.once:
                hidden.mark(directory, name)
            ordinal = _give_name(directory, name, delivery)
        published = True
    finally:
        if not published:
            _clear_away(directory, name)
    os.fsync(directory)
    if delivery.conflict == REPLACE or ordinal == SKIPPED:
        hidden.drop(directory, name)  # what it took the place of, or the tree itself
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


def _give_name(directory: int, name: str, delivery: Delivery) -> int:
    def rename(wanted: str) -> None:
        _rename(directory, name, wanted, RENAME_NOREPLACE)

    if delivery.conflict != REPLACE:
        return first_free(delivery, rename)
    try:
        rename(delivery.name)
    except FileExistsError:
        _rename(directory, name, delivery.name, RENAME_EXCHANGE)
    return 1


def _rename(directory: int, old: str, new: str, flags: int) -> None:
    if _LIBC.renameat2(directory, old.encode(), directory, new.encode(), flags):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), new)


def _synchronise(descriptor: int) -> None:
    """All of its file system: to wait for each of many files takes a hundred times as long."""
    if _LIBC.syncfs(descriptor):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _clear_away(directory: int, name: str) -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDS)
    hidden.discard(directory, name)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
