# SPDX-License-Identifier: LGPL-2.1-or-later
"""Space held back on the disk, so that what ends something can be recorded, and so be done, when the disk is full.

A cage may fill the disk that the chain is on.  Nothing is done unrecorded; so without this it could not be stopped.
"""

from __future__ import annotations

import contextlib
import errno
import os

from cage_runtime.audit.event import Kind

RESERVE_BYTES = 256 * 1024
"""Room for some hundred records."""
NAME = "reserve"
FULL = (errno.ENOSPC, errno.EDQUOT)

ENTITLED = frozenset({
    Kind.CORE_STARTED, Kind.CORE_STOPPED, Kind.RECOVERED, Kind.CLOCK_SET_BACK, Kind.POLICY_LOADED, Kind.CAGE_ADOPTED,
    Kind.CAGE_PAUSED, Kind.CAGE_STOPPED, Kind.CAGE_FAILED, Kind.CAGE_DESTROYED,
})
"""What may use the reserve: coming up, and bringing cages to an end.  A cage can cause none of it at will."""


class Reserve:
    """The file of the reserve in the chain's directory."""

    def __init__(self, directory_fd: int) -> None:
        self._directory_fd = directory_fd
        self._held = False

    def hold(self) -> None:
        """Hold the space, again if it was given up; OSError where the disk does not have it."""
        if self._held:
            return
        descriptor = os.open(NAME, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600,
                             dir_fd=self._directory_fd)
        try:
            os.posix_fallocate(descriptor, 0, RESERVE_BYTES)
        except OSError:
            self.release()
            raise
        finally:
            os.close(descriptor)
        self._held = True

    def release(self) -> None:
        """Give the space to whatever is written next."""
        self._held = False
        with contextlib.suppress(FileNotFoundError):
            os.unlink(NAME, dir_fd=self._directory_fd)
