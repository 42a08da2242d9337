# SPDX-License-Identifier: LGPL-2.1-or-later
"""One running cage as the spawner sees it: its cage-init, its cgroup, and its end.

Teardown is the same whether it was asked for, happened, or was found half done at a start (law 10): kill the cgroup,
wait for the kernel to say that it is empty, reap, remove.  Every step can be repeated.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import msgspec

from cage_runtime.errors import RuntimeFailure, WrongState
from cage_runtime.model import STOP_SECONDS
from cage_runtime.spawner import wire
from cage_runtime.spawner.birth import Cradle
from cage_runtime.spawner.cgroup import Cgroup, is_populated
from cage_runtime.spawner.gateway import Gateway
from cage_runtime.spawner.loop import PRIORITY, Loop
from cage_runtime.spawner.record import UNKNOWN, Record
from cage_runtime.spawner.spec import AnyRequest, Fault, Listening, Reply, Stop, decode_from_init, encode
from cage_runtime.spawner.storage import delete

LOG = logging.getLogger(__name__)

PENDING_MAX = 256
"""Requests that one cage-init may owe an answer."""
ANSWER_SECONDS = 10.0
"""What a cage-init has for an answer; it waits for nothing that a cage can hold up, but it may stand still."""
RETRY_SECONDS = 1.0
"""Before a step of a teardown that the host refused is tried again."""
LOOK_SECONDS = 0.1
"""Before a cgroup is looked at again whose last process has not been told of."""
RECONNECT_SECONDS = 0.5
"""Between attempts to reach a cage-init that takes no connection."""

Answered = Callable[[Reply], None]
Listened = Callable[["Cage", int, float], None]
"""A cage, the listener of its mediated calls, which is the callee's to close, and when the cage was born."""


class Cage:
    def __init__(self, uuid: str, loop: Loop, cradle: Cradle, cgroup: Cgroup, ended: Callable[[Cage], None],
                 gateway_ended: Callable[[Cage], None] = lambda _cage: None, *, record: Record = UNKNOWN,
                 forget: Callable[[Cage], None] = lambda _cage: None,
                 listening: Listened = lambda _cage, listener, _born: os.close(listener)) -> None:
        """`forget` is called when nothing runs in the cage any more, perhaps again, and `ended` once nothing is left
        of it."""
        self.uuid, self.record, self._forget = uuid, record, forget
        self.cgroup = cgroup
        self.gateway = Gateway(loop, cgroup.beside("gateway"), self._on_gateway_end)
        self._gateway_ended, self._listening = gateway_ended, listening
        self._loop = loop
        self._cradle = cradle
        self._ended = ended
        self._connection: socket.socket | None = None
        self._pid, self._pidfd = 0, -1
        self._events = -1
        self._pending: dict[int, tuple[int, Answered]] = {}
        self._next = 0
        self.waiting: list[Callable[[], None]] = []
        """Whom to tell when nothing is left of the cage."""
        self.ending = False
        self._gone = False

    @property
    def since(self) -> float:
        """When it was born, in seconds of the epoch: nothing comes into its directory afterwards."""
        return self._cradle.directory.stat().st_mtime

    # --- cage-init -------------------------------------------------------------------------------------------
    def born(self, pid: int, pidfd: int) -> None:
        """Own the new cage's PID 1, which serves already."""
        self._pid, self._pidfd = pid, pidfd
        self._loop.watch(pidfd, self._reap)
        self.adopt()

    def adopt(self) -> None:
        """Connect to cage-init; OSError where none listens.

        A paused one takes no connection, and of spawners that come and go it has soon as many waiting as may: it is
        there all the same, so it is tried again, and until then the cage does not answer.
        """
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        try:
            connection.connect(self._cradle.socket)
        except BlockingIOError:
            connection.close()
            self._loop.after(RECONNECT_SECONDS, self._adopt_again)
            return
        except OSError:
            connection.close()
            raise
        self._connection = connection
        self._loop.watch(connection.fileno(), self._hear)

    def _adopt_again(self) -> None:
        if self.ending:
            return
        try:
            self.adopt()
        except OSError:
            self.end()

    def ask(self, request: AnyRequest, descriptors: list[int], answered: Answered) -> None:
        """Pass `request` on to cage-init, under a number of our own."""
        if self.ending:
            raise WrongState("the cage is stopping")
        if self._connection is None or len(self._pending) >= PENDING_MAX:
            raise RuntimeFailure("the cage does not answer")
        self._next += 1
        message = encode(msgspec.structs.replace(request, id=self._next))
        try:
            wire.send(self._connection, message, descriptors)
        except BlockingIOError as error:
            raise RuntimeFailure("the cage does not answer") from error
        except OSError as error:
            if error.errno == errno.EMSGSIZE:
                raise RuntimeFailure("the request is longer than a cage takes") from error
            raise WrongState("the cage has just ended") from error
        self._pending[self._next] = (request.id, answered)
        number = self._next
        self._loop.after(ANSWER_SECONDS, lambda: self._unanswered(number))

    def _unanswered(self, number: int) -> None:
        """Whoever asked is told; the answer may still come, and is for nobody then."""
        if number in self._pending:
            asked, answered = self._pending[number]
            self._pending[number] = (asked, lambda _late: None)
            answered(Reply(id=asked, fault=Fault(kind="RuntimeFailure", sentence="the cage does not answer")))

    def _hear(self) -> None:
        if self._connection is None:
            return
        try:
            received = wire.receive(self._connection)
            if received is None:
                self.end()
                return
            reply = self._understood(*received)
        except BlockingIOError:
            return
        except (OSError, wire.PeerError, msgspec.DecodeError):
            self.end()
            return
        if reply is None:
            return
        if reply.id not in self._pending:
            self.end()
            return
        number, answered = self._pending.pop(reply.id)
        answered(msgspec.structs.replace(reply, id=number))

    def _understood(self, message: bytes, descriptors: list[int]) -> Reply | None:
        """The reply that `message` is; None where it was the listener of the cage's calls, all that it has for us."""
        try:
            said = decode_from_init(message)
            if not isinstance(said, Listening):
                return said
            if len(descriptors) != 1:
                raise wire.PeerError("a listener without its descriptor")
            self._listening(self, descriptors.pop(), said.born)
            return None
        finally:
            wire.close_all(descriptors)

    # --- the end ---------------------------------------------------------------------------------------------
    def stop(self, seconds: float) -> None:
        """Ask all to end, and see to it after `seconds`."""
        if self.ending:
            return
        if seconds > 0 and self._connection is not None:
            self._next += 1
            try:
                self.cgroup.freeze(frozen=False)
                wire.send(self._connection, encode(Stop(id=self._next, uuid=self.uuid, seconds=seconds)))
            except OSError:
                self.end()
                return
            self._pending[self._next] = (0, lambda _reply: None)
            self._loop.after(min(seconds, STOP_SECONDS * 12), self.end)
        else:
            self.end()

    def end(self) -> None:
        """Kill what is left; `waiting` and `ended` are told when the kernel says that it is gone."""
        if self.ending:
            return
        self.ending = True
        if self._connection is not None:
            self._loop.forget(self._connection.fileno())
            self._connection.close()
            self._connection = None
        self._kill()

    def _kill(self) -> None:
        if self._gone:
            return
        try:
            if self._events < 0:
                self._events = self.cgroup.open_events()
                if self._events >= 0:
                    self._loop.watch(self._events, self._emptied, PRIORITY)
            if self._events >= 0:
                self.cgroup.kill()
        except OSError as error:
            self._again(self._kill, error)
            return
        self._emptied()

    def _again(self, step: Callable[[], None], error: OSError) -> None:
        """What the host has no room or no time for now it may have later; a teardown is never given up."""
        LOG.error("the cage %s cannot be ended yet: %s", self.uuid, error)
        self._loop.after(RETRY_SECONDS, step)

    def _reap(self) -> None:
        pid, _ = os.waitpid(self._pid, os.WNOHANG)
        if pid:
            self._loop.forget(self._pidfd)
            os.close(self._pidfd)
            self._pid, self._pidfd = 0, -1
            if self.ending:
                self._emptied()
            else:
                self.end()

    def _emptied(self) -> None:
        if self._events >= 0 and is_populated(self._events):
            # The kernel tells of that within 10 ms, unless systemd, which is told as well, has removed it by then.
            self._loop.after(LOOK_SECONDS, self._look_again)
            return
        if self._pid:
            return
        if self._events >= 0:
            self._loop.forget(self._events)
            os.close(self._events)
            self._events = -1
        self._remove()

    def _look_again(self) -> None:
        if self._events >= 0 and not is_populated(self._events):
            self._emptied()

    def _on_gateway_end(self) -> None:
        if self.ending:
            self._emptied()
        else:
            self._gateway_ended(self)

    def _remove(self) -> None:
        if self._gone:  # and what is there by now is of its next life
            return
        try:
            if not self.gateway.end():
                self._loop.after(LOOK_SECONDS, self._remove)
                return
            self.cgroup.remove()
            self._forget(self)
            remove_cradle(self._cradle)
        except OSError as error:
            self._again(self._remove, error)
            return
        self._gone = True
        pending, self._pending = self._pending, {}
        for number, answered in pending.values():
            answered(Reply(id=number, fault=Fault(kind="WrongState", sentence="the cage ended")))
        self._ended(self)


def remove_cradle(cradle: Cradle) -> None:
    # The cage's own directory last: it is what a spawner that was killed here goes on from.
    if cradle.gateway.is_dir():
        _remove_gateway(cradle.gateway)
    if cradle.directory.is_dir():
        shutil.rmtree(cradle.directory)


def _remove_gateway(directory: Path) -> None:
    """It belongs to caged, which has sockets there, and could have a tree too deep for Python's own way of deletion."""
    try:
        for entry in directory.iterdir():
            entry.unlink()
    except IsADirectoryError:
        delete(directory).wait()
    else:
        directory.rmdir()
    if directory.is_dir():
        raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), str(directory))
