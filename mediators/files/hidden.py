# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a delivery has in the inbox before it has its name, and the mark that it has been given one.

Law of this room: what is hidden is somebody's as long as it is locked; what nobody has locked was cut off, and the next
delivery clears it away.  Of a delivery that may come a second time the mark is there before the name is given, and
what is hidden goes when it has been, so that the second one sees what became of the first: it finds the mark alone.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat

from cage_runtime.filenames import HIDDEN, MARK

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_LEFT = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_MARK = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_DEEPEST = 200
"""Directories in one another that are cleared away; deeper, somebody else has put them there."""


def hidden_name(once: str = "") -> str:
    """For something on its way, until it has its name: that of the delivery `once`, or one of its own."""
    return HIDDEN + (once or os.urandom(8).hex())


def begin(directory: int, make: Callable[[], int]) -> int:
    """The descriptor of what `make` makes in `directory`, locked before anybody could clear it away."""
    fcntl.flock(directory, fcntl.LOCK_SH)
    try:
        made = make()
        fcntl.flock(made, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        fcntl.flock(directory, fcntl.LOCK_UN)
    return made


def clear(directory: int, since: int) -> None:
    """Remove what deliveries that were cut off have left, and the marks from before `since`, a time of day."""
    try:
        fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:  # another delivery begins, or clears
        return
    left: list[tuple[str, int]] = []
    try:
        with os.scandir(directory) as entries:
            names = [entry.name for entry in entries if entry.name.startswith(HIDDEN)]
        for name in names:
            if name.endswith(MARK):
                _clear_mark(directory, name, since)
            elif (locked := _locked(directory, name)) is not None:
                left.append((name, locked))
    finally:
        fcntl.flock(directory, fcntl.LOCK_UN)
    for name, locked in left:
        try:
            _remove_left(directory, name, locked)
        except OSError:  # somebody else moves it about
            pass
        finally:
            os.close(locked)


def _clear_mark(directory: int, name: str, since: int) -> None:
    try:
        if os.stat(name, dir_fd=directory, follow_symlinks=False).st_mtime < since:
            os.unlink(name, dir_fd=directory)
    except OSError:  # not one of ours
        return


def _locked(directory: int, name: str) -> int | None:
    """What has that name, locked; None where it is another delivery's, or not one at all."""
    try:
        left = os.open(name, _LEFT, dir_fd=directory)
    except OSError:
        return None
    try:
        fcntl.flock(left, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(left)
        return None
    return left


def _remove_left(directory: int, name: str, held: int) -> None:
    """A mark without what is hidden would say that it has been given its name, so it goes first; where it has, it
    stays."""
    if not _is_given(held):
        unmark(directory, name)
    remove(directory, name)


def _is_given(held: int) -> bool:
    """Whether the file that is open has a name besides the hidden one; a directory cannot have two."""
    status = os.fstat(held)
    return stat.S_ISREG(status.st_mode) and status.st_nlink > 1


def is_given(directory: int, once: str) -> bool:
    """Whether an earlier delivery of the same has given it its name; waits for one that still may, and removes what
    one that could not has left."""
    name = hidden_name(once)
    while True:
        try:
            earlier = os.open(name, _LEFT, dir_fd=directory)
        except FileNotFoundError:
            return _exists(directory, name + MARK)
        try:
            fcntl.flock(earlier, fcntl.LOCK_EX)
            if not _is_still(directory, name, earlier):
                continue
            given = _is_given(earlier)
            _remove_left(directory, name, earlier)
            return given
        finally:
            os.close(earlier)


def _is_still(directory: int, name: str, opened: int) -> bool:
    try:
        return os.path.samestat(os.stat(name, dir_fd=directory, follow_symlinks=False), os.fstat(opened))
    except FileNotFoundError:
        return False


def _exists(directory: int, name: str) -> bool:
    try:
        os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def mark(directory: int, name: str) -> None:
    """Say, on disk, that what is hidden as `name` is given its name next."""
    os.close(os.open(name + MARK, _MARK, 0o600, dir_fd=directory))
    os.fsync(directory)


def unmark(directory: int, name: str) -> None:
    try:
        os.unlink(name + MARK, dir_fd=directory)
    except FileNotFoundError:
        return


def discard(directory: int, name: str) -> None:
    """Remove what is hidden as `name`, and first its mark; what stays is for the next delivery to clear."""
    try:
        unmark(directory, name)
        remove(directory, name)
    except OSError:
        return


def drop(directory: int, name: str) -> None:
    """Remove the hidden name of what has been given its own; its mark stays."""
    try:
        remove(directory, name)
    except OSError:
        return


def remove(parent: int, name: str, depth: int = 0) -> None:
    """A file or a whole directory; no link is followed."""
    try:
        descriptor = os.open(name, _DIRECTORY, dir_fd=parent)
    except (NotADirectoryError, FileNotFoundError):
        os.unlink(name, dir_fd=parent)
        return
    try:
        if depth > _DEEPEST:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), name)
        with os.scandir(descriptor) as entries:
            inner = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
        for below, is_directory in inner:
            if is_directory:
                remove(descriptor, below, depth + 1)
            else:
                os.unlink(below, dir_fd=descriptor)
    finally:
        os.close(descriptor)
    os.rmdir(name, dir_fd=parent)
