# SPDX-License-Identifier: LGPL-2.1-or-later
"""Opening a file that has to be beneath the caller's home: openat2(2).

Law of this room: the kernel resolves the path, once, and refuses what leaves the home directory; the path is never
checked first and opened later.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat

from cage_runtime.errors import CageError, HostUnsupported

_OPENAT2 = 437
"""The number of openat2 on every architecture (asm-generic) but alpha."""
_RESOLVE_NO_MAGICLINKS = 0x02
_RESOLVE_BENEATH = 0x08
_SOURCE_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


def openat2(directory: int, path: str, *, flags: int, resolve: int) -> int:
    """A descriptor of `path`, resolved from the open `directory` under the RESOLVE_ flags; OSError with the path."""
    how = _OpenHow(flags=flags, mode=0, resolve=resolve)
    syscall = ctypes.CDLL(None, use_errno=True).syscall
    syscall.restype = ctypes.c_long
    for _ in range(16):
        result = syscall(
            ctypes.c_long(_OPENAT2),
            ctypes.c_int(directory),
            ctypes.c_char_p(os.fsencode(path)),
            ctypes.byref(how),
            ctypes.c_size_t(ctypes.sizeof(how)),
        )
        # EAGAIN: a rename ran at the same time, and the kernel could not be sure about a ".." (openat2(2)).
        if result >= 0 or ctypes.get_errno() not in (errno.EAGAIN, errno.EINTR):
            break
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), path)
    return int(result)


class Marks:
    """By what a file is known to be as it was read."""

    __slots__ = ("file", "size", "times")

    def __init__(self, status: os.stat_result) -> None:
        self.file = status.st_dev, status.st_ino
        self.size = status.st_size
        self.times = status.st_mtime_ns, status.st_ctime_ns


def is_as_read(status: os.stat_result, marks: Marks) -> bool:
    now = Marks(status)
    return (now.file, now.size, now.times) == (marks.file, marks.size, marks.times)


def open_source(path: str) -> int:
    """A read-only descriptor of the regular, non-empty file or of the directory `path` beneath the home directory.

    Raises CageError with one sentence for everything else; nothing is followed out of the home directory.
    """
    home, inner = _home_and_rest(path)
    try:
        directory = os.open(home, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise CageError(f"the home directory {home} cannot be opened: {error.strerror}") from error
    try:
        descriptor = openat2(directory, inner, flags=_SOURCE_FLAGS, resolve=_RESOLVE_BENEATH | _RESOLVE_NO_MAGICLINKS)
    except OSError as error:
        raise _refusal(path, error) from error
    finally:
        os.close(directory)
    try:
        _check_kind(path, os.fstat(descriptor))
    except CageError:
        os.close(descriptor)
        raise
    return descriptor


def _home_and_rest(path: str) -> tuple[str, str]:
    """The home directory and what of `path` is beneath it; ".." is left for the kernel, which sees through links."""
    home = os.environ.get("HOME") or "/"
    parts = [part for part in os.path.join(os.getcwd(), path).split("/") if part not in ("", ".")]
    for candidate in (home, os.path.realpath(home)):
        prefix = [part for part in candidate.split("/") if part not in ("", ".")]
        if parts[: len(prefix)] == prefix:
            return candidate, "/".join(parts[len(prefix) :]) or "."
    raise CageError(f'"{path}" is not in your home directory {home}; only what is there can be sent')


def _refusal(path: str, error: OSError) -> CageError:
    if error.errno == errno.ENOSYS:
        return HostUnsupported("this kernel does not offer openat2, without which no file is sent; Linux 5.6 has it")
    sentences = {
        errno.ENOENT: f'"{path}" does not exist',
        errno.ENOTDIR: f'"{path}" does not exist: a part of its path is not a directory',
        errno.EACCES: f'"{path}" cannot be read: you have no permission',
        errno.EXDEV: f'"{path}" leads out of your home directory; only what is there can be sent',
        errno.ELOOP: f'"{path}" is a symbolic link, which is not followed; send the file that it stands for',
        errno.ENXIO: f'"{path}" is a socket; only regular files can be sent',
    }
    return CageError(sentences.get(error.errno or 0, f'"{path}" cannot be read: {error.strerror}'))


def _check_kind(path: str, status: os.stat_result) -> None:
    kinds = (
        (stat.S_ISFIFO, "a FIFO; only regular files can be sent"),
        (stat.S_ISCHR, "a device; only regular files can be sent"),
        (stat.S_ISBLK, "a device; only regular files can be sent"),
    )
    if stat.S_ISDIR(status.st_mode):
        return
    for is_kind, what in kinds:
        if is_kind(status.st_mode):
            raise CageError(f'"{path}" is {what}')
    if not stat.S_ISREG(status.st_mode):
        raise CageError(f'"{path}" is not a regular file; only those can be sent')
    if not status.st_size:
        raise CageError(f'"{path}" is empty; there is nothing to send')
