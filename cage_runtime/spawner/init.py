# SPDX-License-Identifier: LGPL-2.1-or-later
"""cage-init: PID 1 of a cage, born inside, sealed before it serves.

Law of this room: it is the only way into the cage.  It takes requests from whoever connects to the socket it was
born with, which lies where only the host's root can reach it; it starts what is asked with a rebuilt environment
and every other descriptor closed; it opens terminals and pipes itself, so that no descriptor of the host goes in.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import socket
from dataclasses import dataclass

import msgspec

from cage_runtime.decoding import decode
from cage_runtime.errors import PrivateCage
from cage_runtime.model import PROCESSES_MAX, STOP_SECONDS
from cage_runtime.spawner import applications, capability, syscall, wire
from cage_runtime.spawner.buses import Buses
from cage_runtime.spawner.channel import MESSAGE_MAX
from cage_runtime.spawner.child import Command, NotStarted, Streams
from cage_runtime.spawner.inhabitants import SIGINFO_BYTES, children, from_outside, is_alone, signal_all, signal_group
from cage_runtime.spawner.listener import Listener
from cage_runtime.spawner.loop import Loop
from cage_runtime.spawner.output import Output
from cage_runtime.spawner.private import check as check_private
from cage_runtime.spawner.profile import Filters, ProfileName
from cage_runtime.spawner.spec import (
    SENTENCE_MAX,
    Conceal,
    Expose,
    Fault,
    Logs,
    Reply,
    Request,
    Spawn,
    Stop,
    decode_request,
    encode,
)
from cage_runtime.spawner.starting import Starter
from cage_runtime.spawner.walls import Walls

ASKED_TO_END = (signal.SIGTERM, signal.SIGRTMIN + 4)
"""What a host's administrator sends: systemd when it stops the cage's scope, machinectl poweroff (systemd(1))."""
GRACE_SECONDS = 2.0
"""What is given to a delivery half or a service, whose core half is gone, before it is killed."""
_WISHES = msgspec.json.Decoder(dict[str, int])


@dataclass(kw_only=True, slots=True)
class Running:
    """A started command: its channel is None when nobody waits for it."""

    channel: socket.socket | None
    profile: ProfileName
    serves: bool = False
    """It does not outlive its channel."""
    terminal: int | None = None


class Init:
    """The event loop of PID 1."""

    def __init__(self, listener: socket.socket, filters: Filters, processes: int, walls: Walls, *,
                 private: bool, disposable: float = 0.0) -> None:
        self._private, self._disposable = private, disposable
        self._used = False
        """Something has been started in it."""
        self._loop = Loop()
        self._listener = listener
        self._connection: socket.socket | None = None
        self._running: dict[int, Running] = {}
        self._stopping = False
        self._calls: Listener | None = None
        # Blocked, or the kernel would drop them, as all that PID 1 of a namespace does not handle.
        signal.pthread_sigmask(signal.SIG_BLOCK, ASKED_TO_END)
        self._signals = syscall.signalfd(ASKED_TO_END)
        self._output = Output(self._loop)
        self._starter = Starter(self._loop, filters, walls, processes)
        self._buses = Buses(self._loop, self._starter, self._output)

    def hand_over(self, listener: int, born: float) -> None:
        """From now on whoever connects gets `listener`, that of the cage's mediated calls."""
        self._calls = Listener(self._loop, listener, born)

    def serve(self) -> None:
        """Until the cage is told to stop and nothing is left in it."""
        wake_read, wake_write = socket.socketpair()
        wake_write.setblocking(False)
        wake_read.setblocking(False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake_write.fileno(), warn_on_full_buffer=False)
        self._loop.watch(wake_read.fileno(), lambda: self._reap(wake_read))
        self._loop.watch(self._listener.fileno(), self._accept)
        self._loop.watch(self._signals, self._signalled)
        self._output.collect()
        self._buses.await_connections()
        if self._disposable:
            self._loop.after(self._disposable, self._end_if_unused)
        while not (self._stopping and is_alone()):
            self._loop.turn()

    # --- requests --------------------------------------------------------------------------------------------
    def _accept(self) -> None:
        connection, _ = self._listener.accept()
        if self._connection is not None:
            self._hang_up()
        self._connection = connection
        self._loop.watch(connection.fileno(), self._request)
        if self._calls is not None:
            try:
                self._calls.hand_over(connection)
            except OSError:
                self._hang_up()

    def _hang_up(self) -> None:
        if self._connection is not None:
            self._loop.forget(self._connection.fileno())
            self._connection.close()
            self._connection = None
            if self._calls is not None:
                self._calls.left()

    def _request(self) -> None:
        connection = self._connection
        if connection is None:
            return
        try:
            received = wire.receive(connection)
        except (OSError, wire.PeerError):
            received = None
        if received is None:
            self._hang_up()
            return
        message, descriptors = received
        try:
            wire.send(connection, encode(self._answer(decode_request(message), descriptors)))
        except (OSError, msgspec.DecodeError):
            # The spawner ended, or what connected is none; the next one that connects is heard.
            self._hang_up()
        finally:
            wire.close_all(descriptors)

    def _answer(self, request: Request, descriptors: list[int]) -> Reply:
        """What the kernel refuses fails the request, never the cage."""
        try:
            if self._private:
                check_private(request)
            return self._obey(request, descriptors)
        except PrivateCage as error:
            return _fault(request, error.bus_name, error.sentence)
        except OSError as error:
            return _fault(request, "RuntimeFailure", f"cage-init: {error}")

    def _obey(self, request: Request, descriptors: list[int]) -> Reply:
        match request:
            case Spawn():
                return self._spawn(request, descriptors)
            case Expose():
                if len(descriptors) != len(request.trees):
                    return _fault(request, "RuntimeFailure", "an expose request without its mounts")
                with capability.in_force():
                    applications.attach(request.trees, descriptors)
                return Reply(id=request.id)
            case Conceal():
                with capability.in_force():
                    applications.detach(request.trees)
                return Reply(id=request.id)
            case Logs():
                return Reply(id=request.id, log=self._output.kept())
            case Stop():
                self._stop()
                return Reply(id=request.id)
            case _:
                return Reply(id=request.id, fault=Fault(kind="RuntimeFailure", sentence="not a request for cage-init"))

    def _stop(self) -> None:
        self._stopping = True
        self._buses.stop()
        signal_all(signal.SIGTERM)
        signal_all(signal.SIGCONT)

    def _signalled(self) -> None:
        """End the cage where a process outside of it sends the signal; whoever is in it has no say in that."""
        if from_outside(os.read(self._signals, SIGINFO_BYTES)):
            self._end()

    def _end(self) -> None:
        """As a stop that nobody asked the spawner for."""
        if self._stopping:
            return
        self._stop()
        # The spawner, which would see to that, may not run.
        self._loop.after(STOP_SECONDS, lambda: signal_all(signal.SIGKILL))

    def _end_if_unused(self) -> None:
        if not self._used:
            self._end()

    def _end_if_over(self) -> None:
        """End a disposable cage with the last process that was started in it, or that is left of one.

        What the buses have started is in their sessions (setsid(2)) and no reason to go on; of what else there is, one
        is a child of ours.
        """
        if self._disposable and self._used and not self._stopping and not self._running:
            sessions = {os.getsid(pid) for pid in children()}
            if not sessions - self._buses.ever:
                self._end()

    # --- processes -------------------------------------------------------------------------------------------
    def _spawn(self, request: Spawn, descriptors: list[int]) -> Reply:
        if len(descriptors) != 1 + request.own_input:
            return _fault(request, "RuntimeFailure", "a spawn request without its channel")
        channel = socket.socket(fileno=fcntl.fcntl(descriptors[0], fcntl.F_DUPFD_CLOEXEC, 3))
        channel.setblocking(False)
        if self._stopping or len(self._running) >= PROCESSES_MAX:
            why = "the cage is stopping" if self._stopping else f"{PROCESSES_MAX} commands are running in the cage"
            _tell(channel, {"event": "refused", "status": 125, "sentence": why})
            channel.close()
            return Reply(id=request.id)
        given = descriptors[1] if request.own_input else None
        try:
            streams = Streams.open(request, given, self._output.write_end)
        except OSError:
            channel.close()
            raise
        command = Command.of(request)
        try:
            pid = self._starter.start(
                command, streams, lambda pid, refusal: self._started(request, pid, channel, streams, refusal))
        except NotStarted as error:
            self._refused(channel, error, streams)
            return Reply(id=request.id)
        finally:
            streams.close_inner()
        self._running[pid] = Running(channel=None, profile=command.profile, serves=request.serves)
        self._used = True
        return Reply(id=request.id)

    def _refused(self, channel: socket.socket, refusal: NotStarted, streams: Streams) -> None:
        _tell(channel, {"event": "refused", "status": refusal.status, "sentence": refusal.sentence})
        channel.close()
        streams.close_outer()

    def _started(self, request: Spawn, pid: int, channel: socket.socket, streams: Streams,
                 refusal: NotStarted | None) -> None:
        if refusal is not None:
            self._refused(channel, refusal, streams)
            return
        told = _tell(channel, {"event": "started"}, streams.outer)
        running = self._running[pid]
        if request.terminal is not None and told:
            running.terminal = fcntl.fcntl(streams.outer[0], fcntl.F_DUPFD_CLOEXEC, 3)
        streams.close_outer()
        if request.detached:
            channel.close()
            return
        running.channel = channel
        self._loop.watch(channel.fileno(), lambda: self._on_channel(pid))

    def _on_channel(self, pid: int) -> None:
        running = self._running[pid]
        if running.channel is None:
            return
        try:
            message = running.channel.recv(MESSAGE_MAX)
            wish = decode(message, _WISHES) if message else None
        except (OSError, msgspec.DecodeError):
            wish = None
        if wish is None:
            # The client is gone: as when a terminal is closed, what it ran is told so, also if it is stopped.
            self._close_channel(running)
            signal_group(pid, signal.SIGHUP)
            signal_group(pid, signal.SIGCONT)
            if running.profile is ProfileName.DELIVERY or running.serves:
                # It holds what is the core's, and the cage's user can stop it again.
                self._loop.after(GRACE_SECONDS, lambda: self._kill(pid, running))
        elif "signal" in wish:
            signal_group(pid, wish["signal"])
        elif running.terminal is not None and {"rows", "columns"} <= wish.keys():
            os_size = (max(1, min(9999, wish["rows"])), max(1, min(9999, wish["columns"])))
            _resize(running.terminal, os_size)

    def _kill(self, pid: int, running: Running) -> None:
        if self._running.get(pid) is running:
            signal_group(pid, signal.SIGKILL)

    def _close_channel(self, running: Running) -> None:
        if running.channel is not None:
            self._loop.forget(running.channel.fileno())
            running.channel.close()
            running.channel = None
        if running.terminal is not None:
            os.close(running.terminal)
            running.terminal = None

    def _reap(self, wake: socket.socket) -> None:
        with contextlib.suppress(BlockingIOError):
            wake.recv(4096)
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == 0:
                break
            self._ended(pid, os.waitstatus_to_exitcode(status))
        self._end_if_over()

    def _ended(self, pid: int, code: int) -> None:
        self._starter.ended(pid)
        self._buses.ended(pid)
        running = self._running.pop(pid, None)
        if running is None:
            return
        if running.channel is not None:
            _tell(running.channel, {"event": "exit", "status": code if code >= 0 else 128 - code})
        self._close_channel(running)


def _fault(request: Request, kind: str, sentence: str) -> Reply:
    return Reply(id=request.id, fault=Fault(kind=kind, sentence=sentence[:SENTENCE_MAX]))


def _tell(channel: socket.socket, event: dict[str, object], descriptors: list[int] | None = None) -> bool:
    """Send on a session's channel; a client that is gone or does not read loses the message, nobody else does."""
    try:
        wire.send(channel, msgspec.json.encode(event), descriptors or [])
    except OSError:
        return False
    return True


def _resize(terminal: int, size: tuple[int, int]) -> None:
    import termios

    try:
        termios.tcsetwinsize(terminal, size)
    except (OSError, termios.error):
        return
