# SPDX-License-Identifier: LGPL-2.1-or-later
"""Programs that the spawner starts for itself, each with the one socket over which it is asked."""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import socket
import stat
from collections.abc import Callable
from typing import TypeVar

import msgspec

from cage_runtime.errors import CageError, HostUnsupported, RuntimeFailure
from cage_runtime.spawner import wire

Told = TypeVar("Told")

END_SECONDS = 1.0
"""One that has not ended by then stands still, and is left to."""
DESCRIPTOR = 3
"""Where a helper finds its end of the pair of sockets."""


def start(command: tuple[str, ...]) -> tuple[socket.socket, int]:
    """Our end, which does not block, and the helper's pid; OSError where it cannot be started."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        ours.setblocking(False)
        environment = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"}
        environment |= {name: os.environ[name] for name in ("JOURNAL_STREAM",) if name in os.environ}
        try:
            # Everything else of ours is close-on-exec.  No address of a bus is passed on: systemd is on the system's.
            pid = os.posix_spawn(
                command[0], command, environment, file_actions=[(os.POSIX_SPAWN_DUP2, theirs.fileno(), DESCRIPTOR)],
                setsigdef=signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}, setsigmask=[])
        except OSError:
            ours.close()
            raise
    return ours, pid


def end(connection: socket.socket, pid: int) -> None:
    """A helper has nothing to lose; one of another user, which is not ours to kill, ends as its socket does."""
    pidfd = os.pidfd_open(pid)
    try:
        connection.close()
        with contextlib.suppress(PermissionError):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        poll.poll(END_SECONDS * 1000)
        os.waitpid(pid, os.WNOHANG)
    finally:
        os.close(pidfd)


def hear(connection: socket.socket, decode: Callable[[bytes], Told], lost: Callable[[str], None]) -> Told | None:
    """One message of the helper's; None where there is none, and where it is lost, of which `lost` is told why."""
    try:
        received = wire.receive(connection)
        if received is None:
            lost("it has ended; its messages are above")
            return None
        message, descriptors = received
        wire.close_all(descriptors)
        return decode(message)
    except BlockingIOError:
        return None
    except (OSError, wire.PeerError, msgspec.DecodeError) as error:
        lost(str(error))
        return None


# --- a helper's own side ----------------------------------------------------------------------------------------------
def exit_status(serve: Callable[[], None], log: logging.Logger) -> int:
    """Of a helper, which `serve` is all of."""
    try:
        serve()
    except CageError as error:
        log.critical("%s", error.sentence)
        return error.exit_status
    except ConnectionError:
        return 0  # the spawner has just ended
    except (OSError, wire.PeerError, msgspec.DecodeError) as error:
        log.critical("%s", error)
        return RuntimeFailure.exit_status
    return 0


def given_socket(program: str) -> socket.socket:
    """The socket that it was started with; HostUnsupported where somebody else started it."""
    try:
        there = stat.S_ISSOCK(os.fstat(DESCRIPTOR).st_mode)
    except OSError:
        there = False
    if not there:
        raise HostUnsupported(f"{program} is for cage-spawner to start, which gives it its socket")
    os.set_inheritable(DESCRIPTOR, False)
    return socket.socket(fileno=DESCRIPTOR)
