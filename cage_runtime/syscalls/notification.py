# SPDX-License-Identifier: LGPL-2.1-or-later
"""The listener of a seccomp filter (seccomp_unotify(2)): one thin wrapper an ioctl."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from dataclasses import dataclass

RECEIVE, SEND, IS_VALID = 0xC0502100, 0xC0182101, 0x40082102
"""SECCOMP_IOCTL_NOTIF_RECV, _SEND and _ID_VALID, on x86-64 and arm64 alike."""
_NOTIFICATION, _RESPONSE = struct.Struct("=QIIiIQ6Q"), struct.Struct("=QqiI")
NO_FLAGS = 0
"""Of a response.  The only flag there is lets the kernel go on with the call, whose arguments may be others by then."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Notification:
    """A call that waits for its answer; `pid` is the calling thread's as we see it, 0 where we do not."""

    id: int
    pid: int
    number: int
    arguments: tuple[int, ...]


def is_listener(descriptor: int, proc: str = "/proc") -> bool:
    return os.readlink(f"{proc}/self/fd/{descriptor}") == "anon_inode:seccomp notify"


def receive(listener: int) -> Notification | None:
    """The next call; None where its caller has just been interrupted, or nobody is left who could call.

    To be asked when `listener` is readable: otherwise it waits.
    """
    buffer = bytearray(_NOTIFICATION.size)  # zeros, as the kernel insists
    try:
        fcntl.ioctl(listener, RECEIVE, buffer, True)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.EINTR):
            return None
        raise
    number_, pid, _flags, call, _architecture, _pointer, *arguments = _NOTIFICATION.unpack(buffer)
    return Notification(id=number_, pid=pid, number=call, arguments=tuple(arguments))


def is_valid(listener: int, notification: Notification) -> bool:
    """Whether the caller still waits: what was opened by its pid before this is the caller's."""
    try:
        fcntl.ioctl(listener, IS_VALID, struct.pack("=Q", notification.id))
    except FileNotFoundError:
        return False
    return True


def respond(listener: int, notification: Notification, error: int) -> None:
    """The call returns 0, or fails with `error` where that is not 0; a caller that has gone needs no answer."""
    try:
        fcntl.ioctl(listener, SEND, _RESPONSE.pack(notification.id, 0, -error, NO_FLAGS))
    except OSError as refused:
        if refused.errno not in (errno.ENOENT, errno.EINPROGRESS):
            raise
