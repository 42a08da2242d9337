# SPDX-License-Identifier: LGPL-2.1-or-later
"""Files of the key cage that are its user's alone: what is anything else is none."""

from __future__ import annotations

import os
import stat

from mediators.keys.protocol import Unsigned


def read(path: str, most: int) -> bytes:
    """What is in the file, of at most `most` bytes; Unsigned says why it is none, for the key cage's own eyes."""
    try:
        # Non-blocking, because what is there may be a FIFO.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise Unsigned(f"{path}: {error.strerror}") from error
    try:
        if fault := _fault_of(os.fstat(descriptor), most):
            raise Unsigned(f"{path} {fault}")
        return os.read(descriptor, most)
    finally:
        os.close(descriptor)


def _fault_of(status: os.stat_result, most: int) -> str:
    if not stat.S_ISREG(status.st_mode):
        return "is not a regular file"
    if status.st_uid != os.getuid() or status.st_nlink != 1:
        return "is not its user's own, or is linked from elsewhere"
    if status.st_mode & 0o077:
        return "can be read by others; chmod 600 makes it a key"
    return "is too large" if status.st_size > most else ""
