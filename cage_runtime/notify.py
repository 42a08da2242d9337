# SPDX-License-Identifier: LGPL-2.1-or-later
"""sd_notify(3): tell whoever started us how we are, if it asked to know."""

from __future__ import annotations

import contextlib
import os
import socket

SEND_SECONDS = 5.0
"""What a supervisor that does not listen for now, whose queue anybody on the host may fill, has to take a message."""
FIRST_DESCRIPTOR = 3
"""SD_LISTEN_FDS_START."""


def notify(state: str) -> None:
    """Send `state`, such as READY=1, to the supervisor's socket; nothing happens where there is none."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    # Nobody hears: to work comes before to tell of it.
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        sender.settimeout(SEND_SECONDS)
        sender.connect("\0" + address[1:] if address.startswith("@") else address)
        sender.sendall(state.encode())


def watchdog_seconds() -> float:
    """Within what time the supervisor wants to hear WATCHDOG=1, again and again; 0.0 where it does not
    (sd_watchdog_enabled(3)).
    """
    microseconds = os.environ.get("WATCHDOG_USEC", "")
    meant = os.environ.get("WATCHDOG_PID", str(os.getpid()))
    if not (microseconds.isascii() and microseconds.isdigit()) or meant != str(os.getpid()):
        return 0.0
    return int(microseconds) / 1e6


def handed_over() -> list[int]:
    """The descriptors that the supervisor has opened for us, close-on-exec from now on (sd_listen_fds(3)).

    They are for this process alone: none where another one is meant, and none for what starts from here.
    """
    meant, count = os.environ.pop("LISTEN_PID", ""), os.environ.pop("LISTEN_FDS", "")
    os.environ.pop("LISTEN_FDNAMES", "")
    if meant != str(os.getpid()) or not (count.isascii() and count.isdigit()):
        return []
    descriptors = list(range(FIRST_DESCRIPTOR, FIRST_DESCRIPTOR + int(count)))
    for descriptor in descriptors:
        os.set_inheritable(descriptor, False)
    return descriptors
