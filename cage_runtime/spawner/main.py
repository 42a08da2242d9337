# SPDX-License-Identifier: LGPL-2.1-or-later
"""cage-spawner: the one process of the core that is root.

It listens on RUN/spawner.sock for caged, whose uid the kernel vouches for, takes one typed request a message, and
answers each.  A peer that breaks the protocol is hung up on.
"""

from __future__ import annotations

import fcntl
import gc
import logging
import os
import resource
import signal
import socket
import struct
import sys
from collections import deque
from pathlib import Path

import msgspec

from cage_runtime import log
from cage_runtime.arguments import Parser
from cage_runtime.config import RuntimeConfig, load_runtime, uid_of
from cage_runtime.errors import CageError, HostUnsupported, RuntimeFailure
from cage_runtime.notify import handed_over, notify, watchdog_seconds
from cage_runtime.spawner import capability, syscall, wire
from cage_runtime.spawner.loop import READ, WRITE, Loop
from cage_runtime.spawner.service import Service, failed
from cage_runtime.spawner.spec import AnyReply, AnyRequest, Ended, decode_request, encode

LOG = logging.getLogger("cage-spawner")
WAITING_MAX = 1024
"""Answers that wait for a caged that does not read."""


class Peer:
    """One connection of caged: what is owed to it goes to it alone, and waits where it does not read."""

    def __init__(self, connection: socket.socket, loop: Loop) -> None:
        connection.setblocking(False)
        self.connection = connection
        self._loop = loop
        self._waiting: deque[bytes] = deque()
        self.closed = False

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self._loop.forget(self.connection.fileno())
            self.connection.close()

    def send(self, message: AnyReply) -> None:
        """Send `message`, now or when the peer reads; one that has gone asks again when it is back."""
        if self.closed:
            return
        self._waiting.append(encode(message))
        if len(self._waiting) > WAITING_MAX:
            LOG.warning("caged does not take its answers")
            self.close()
            return
        self.flush()

    def flush(self) -> None:
        try:
            while self._waiting:
                wire.send(self.connection, self._waiting[0])
                self._waiting.popleft()
        except BlockingIOError:
            pass
        except OSError as error:
            LOG.warning("caged does not take an answer: %s", error)
            self.close()
            return
        self._loop.change(self.connection.fileno(), READ | WRITE if self._waiting else READ)


class Server:
    """The socket for caged, and the one connection that counts: the newest."""

    def __init__(self, config: RuntimeConfig, config_file: Path | None, loop: Loop) -> None:
        self._loop = loop
        self._peer: Peer | None = None
        self._caged = uid_of(config.users.caged)
        self.service = Service(config, loop, self._caged, self._tell, _scopes(config, config_file))
        self._listener = self._listen(Path(config.paths.run, "spawner.sock"))
        loop.watch(self._listener.fileno(), self._accept)

    def _listen(self, path: Path) -> socket.socket:
        """On `path`: the socket that systemd holds, so that caged can connect while we are not there, or our own."""
        if descriptors := handed_over():
            return _checked(descriptors, path)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        path.unlink(missing_ok=True)
        os.umask(0o077)
        listener.bind(str(path))
        os.umask(0o022)
        os.chown(path, self._caged, self._caged)
        listener.listen(4)
        return listener

    def _accept(self) -> None:
        connection, _ = self._listener.accept()
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        _, uid, _ = struct.unpack("3i", credentials)
        if uid not in (self._caged, 0):
            LOG.warning("uid %d connected and was refused", uid)
            connection.close()
            return
        if self._peer is not None:
            self._peer.close()
        peer = self._peer = Peer(connection, self._loop)
        self._loop.watch(connection.fileno(), lambda: self._attend(peer))

    def _tell(self, message: Ended) -> None:
        if self._peer is not None:
            self._peer.send(message)

    def _attend(self, peer: Peer) -> None:
        peer.flush()
        if peer.closed:
            return
        try:
            received = wire.receive(peer.connection)
        except BlockingIOError:
            return
        except (OSError, wire.PeerError) as error:
            LOG.warning("caged: %s", error)
            received = None
        if received is None:
            peer.close()
            return
        message, descriptors = received
        try:
            self._obey(decode_request(message), descriptors, peer)
        except msgspec.DecodeError as error:
            LOG.warning("caged sent what is no request: %s", error)
            peer.close()
        finally:
            wire.close_all(descriptors)

    def _obey(self, request: AnyRequest, descriptors: list[int], peer: Peer) -> None:
        try:
            self.service.obey(request, descriptors, peer.send)
        except (CageError, OSError) as error:
            peer.send(failed(request, error))


def _checked(descriptors: list[int], path: Path) -> socket.socket:
    """The one socket that was handed over; HostUnsupported where it is not the one that caged connects to."""
    if len(descriptors) == 1:
        listener = socket.socket(fileno=descriptors[0])
        listening = listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        if (listener.family, listener.type, listening) == (socket.AF_UNIX, socket.SOCK_SEQPACKET, 1) \
                and listener.getsockname() == str(path):
            listener.setblocking(True)
            return listener
    raise HostUnsupported(f"what systemd hands over is not a socket on {path}; see cage-spawner.socket")


def _scopes(config: RuntimeConfig, config_file: Path | None) -> tuple[str, ...]:
    """The command line of cage-scopes."""
    program = str(Path(config.paths.runtime, "bin", "cage-scopes"))
    return (program,) if config_file is None else (program, "--config", str(config_file))


def _single(run: Path) -> int:
    """A lock that two spawners cannot both have."""
    run.mkdir(mode=0o755, parents=True, exist_ok=True)
    lock = os.open(run / "spawner.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise HostUnsupported(f"another cage-spawner runs with {run}; end it first") from error
    return lock


def _prepare(config: RuntimeConfig) -> None:
    if os.geteuid() != 0:
        raise HostUnsupported("cage-spawner makes namespaces and id maps: run it as root")
    _single(Path(config.paths.run))
    syscall.unshare(syscall.CLONE_NEWNS)
    # What the host unmounts is to go here too; what is mounted here is nobody else's business.
    syscall.mount(None, "/", None, syscall.MS_REC | syscall.MS_SLAVE)
    syscall.keyctl_join_session_keyring()
    capability.one_way()
    # Two descriptors a cage; what starts in one has limits of its own.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    _default_signals()
    os.umask(0o022)
    os.chdir("/")


def _default_signals() -> None:
    """What whoever started us ignored or blocked, no cage is to inherit."""
    for number in signal.valid_signals() - {signal.SIGINT, signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_DFL)
    # Python ignores these, which would be inherited; a handler has the same use here, and ends with the clone.
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])


def _feed(loop: Loop, seconds: float) -> None:
    """Tell systemd's watchdog, each time that the loop has come around to this."""
    notify("WATCHDOG=1")
    loop.after(seconds, lambda: _feed(loop, seconds))


def main() -> int:
    options = Parser("cage-spawner", "makes cages, for caged alone").parse_args()
    config_file = None if options.config is None else options.config.absolute()
    log.set_up("%(name)s: %(message)s")
    loop = Loop()
    try:
        config = load_runtime(config_file)
        _prepare(config)
        server = Server(config, config_file, loop)
    except CageError as error:
        LOG.critical("%s", error.sentence)
        return error.exit_status
    except OSError as error:
        LOG.critical("%s", error)
        return RuntimeFailure.exit_status
    for fault in server.service.faults:
        LOG.error("%s", fault)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))
    gc.collect()
    gc.freeze()
    notify("READY=1")
    if seconds := watchdog_seconds():
        _feed(loop, seconds / 2)
    try:
        loop.run()
    finally:
        server.service.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
