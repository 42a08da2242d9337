# SPDX-License-Identifier: LGPL-2.1-or-later
"""sd_notify(3): tell whoever started us how we are, if it asked to know."""

from __future__ import annotations

import contextlib
import os
import socket


def notify(state: str) -> None:
    """Send `state`, such as READY=1, to the supervisor's socket; nothing happens where there is none."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    # Nobody hears: to work comes before to tell of it.
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
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
