# SPDX-License-Identifier: LGPL-2.1-or-later
"""cage-spawner: the one process of the core that is root.

It listens on RUN/spawner.sock for caged, whose uid the kernel vouches for, takes one typed request a message, and
answers each.  A peer that breaks the protocol is hung up on.  Told to end, it takes no request any more, which caged
sees and asks the next one, and answers those that it has taken.
"""

from __future__ import annotations

import fcntl
import gc
import logging
import os
import resource
import select
import signal
import socket
import struct
import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path

import msgspec

from cage_runtime import log
from cage_runtime.arguments import Parser
from cage_runtime.config import RuntimeConfig, load_runtime, profiles_of, uid_of
from cage_runtime.errors import CageError, HostUnsupported, RuntimeFailure
from cage_runtime.model import ENDING_SECONDS
from cage_runtime.notify import handed_over, notify, watchdog_seconds
from cage_runtime.spawner import capability, syscall, wire
from cage_runtime.spawner.filters import FILTERS, Store
from cage_runtime.spawner.loop import READ, WRITE, Loop
from cage_runtime.spawner.service import Service, failed
from cage_runtime.spawner.spec import REPEATABLE, AnyReply, AnyRequest, Event, Reply, decode_request, encode
from cage_runtime.spawner.walls import ALL, Namespace, Walls

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
        self._owed: set[int] = set()
        """Requests without an answer that may not be made again."""
        self._finished: Callable[[], None] | None = None
        self._heard_all = False
        self.closed = False

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self._loop.forget(self.connection.fileno())
            self.connection.close()
            if self._finished is not None:
                self._finished()

    def finish(self, finished: Callable[[], None]) -> None:
        """Take what has come, and no more; close when it is answered, but for what may be asked again, and then call
        `finished`."""
        self._finished = finished
        if self.closed:
            finished()
        else:
            # What is in the queue can still be read, and then comes its end; caged cannot send any more (EPIPE).
            self.connection.shutdown(socket.SHUT_RD)

    def receive(self) -> tuple[bytes, list[int]] | None:
        """The next message; None where there is none, which may be the end of the connection."""
        if self._heard_all:
            poll = select.poll()
            poll.register(self.connection, 0)
            if poll.poll(0):  # it has gone, and takes no answer
                self.close()
            return None
        try:
            received = wire.receive(self.connection)
        except BlockingIOError:
            return None
        except (OSError, wire.PeerError) as error:
            LOG.warning("caged: %s", error)
            self.close()
            return None
        if received is None and self._finished is None:
            self.close()
        elif received is None:
            self._heard_all = True
            self.flush()
        return received

    def owe(self, request: AnyRequest) -> None:
        """`request` has been taken."""
        if not isinstance(request, REPEATABLE):
            self._owed.add(request.id)

    def send(self, message: AnyReply) -> None:
        """Send `message`, now or when the peer reads; one that has gone asks again when it is back."""
        if self.closed:
            return
        self._waiting.append(encode(message))
        if isinstance(message, Reply):
            self._owed.discard(message.id)
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
        if self._heard_all and not self._owed and not self._waiting:
            self.close()
            return
        self._loop.change(self.connection.fileno(), (0 if self._heard_all else READ) | (WRITE if self._waiting else 0))


class Server:
    """The socket for caged, and the one connection that counts: the newest."""

    def __init__(self, config: RuntimeConfig, config_file: Path | None, loop: Loop, walls: Walls) -> None:
        self._loop = loop
        self._peer: Peer | None = None
        self._caged = uid_of(config.users.caged)
        self.service = Service(config, loop, self._caged, self._tell, _helper("cage-scopes", config, config_file),
                               walls, _helper("cage-syscalls", config, config_file))
        self._made: Path | None = None
        """The socket's file, where it is not systemd's."""
        self._listener = self._listen(Path(config.paths.run, "spawner.sock"))
        self._ending = False
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
        self._made = path
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
        self.service.security.tell_all()

    def _tell(self, message: Event) -> None:
        if self._peer is not None:
            self._peer.send(message)

    def end(self) -> None:
        """Take no request any more and answer what has been taken, for ENDING_SECONDS; then the loop ends."""
        if self._ending:
            self._loop.running = False
            return
        self._ending = True
        if self._made is not None:
            self._made.unlink(missing_ok=True)
        self._loop.forget(self._listener.fileno())
        self._listener.close()
        self._loop.after(ENDING_SECONDS, self._ended)
        if self._peer is None:
            self._ended()
        else:
            self._peer.finish(self._ended)

    def _ended(self) -> None:
        self._loop.running = False

    def _attend(self, peer: Peer) -> None:
        peer.flush()
        received = None if peer.closed else peer.receive()
        if received is None:
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
        peer.owe(request)
        try:
            self.service.obey(request, descriptors, peer.send)
        except (CageError, OSError) as error:
            peer.send(failed(request, error))


def _checked(descriptors: list[int], path: Path) -> socket.socket:
    """The one socket that was handed over; HostUnsupported where it is not the one that caged connects to."""
    if len(descriptors) == 1:
        listener = socket.socket(fileno=descriptors[0])
        if wire.listens(listener, socket.SOCK_SEQPACKET) and listener.getsockname() == str(path):
            listener.setblocking(True)
            return listener
    raise HostUnsupported(f"what systemd hands over is not a socket on {path}; see cage-spawner.socket")


def _helper(name: str, config: RuntimeConfig, config_file: Path | None) -> tuple[str, ...]:
    """The command line of a program that the spawner starts for itself."""
    program = str(Path(config.paths.runtime, "bin", name))
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


def _prepare(config: RuntimeConfig, walls: Walls) -> None:
    if os.geteuid() != 0:
        raise HostUnsupported("cage-spawner makes namespaces and id maps: run it as root")
    _single(Path(config.paths.run))
    try:
        syscall.unshare(syscall.CLONE_NEWNS)
    except PermissionError as error:
        raise HostUnsupported("cage-spawner may not make namespaces, because what starts it takes that away; "
                              "see systemctl cat cage-spawner") from error
    # What the host unmounts is to go here too; what is mounted here is nobody else's business.
    syscall.mount(None, "/", None, syscall.MS_REC | syscall.MS_SLAVE)
    syscall.keyctl_join_session_keyring()
    _confine(config, walls)
    # Two descriptors a cage; what starts in one has limits of its own.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    _default_signals()
    os.umask(0o022)
    os.chdir("/")


def _confine(config: RuntimeConfig, walls: Walls) -> None:
    """Ourselves as our unit does it, also where there is none; what cages inherit of it is no more than they lose."""
    if walls.capabilities and Namespace.USER in walls.namespaces:  # else cage-init has ours
        _bound()
    capability.one_way()
    if walls.seccomp:
        Store(Path(config.paths.run, FILTERS)).refusing(profiles_of(config.paths), "spawner").load()


def _bound() -> None:
    """Have what the unit's bounding set gives and no more; HostUnsupported without it."""
    for number in sorted(capability.SPAWNER.keys() - capability.permitted()):
        raise HostUnsupported(f"cage-spawner has to {capability.SPAWNER[number]} ({capability.NAMES[number]}), and "
                              "what starts it takes that away; see systemctl cat cage-spawner")
    capability.bound(frozenset(capability.SPAWNER))


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


def _end_when_told(server: Server, loop: Loop) -> None:
    """SIGTERM and SIGINT end the server in its turn, never in the middle of what it does."""
    told, telling = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    numbers = (signal.SIGTERM, signal.SIGINT)

    def heard() -> None:
        if set(os.read(told, 512)) & set(numbers):
            server.end()

    for number in numbers:
        signal.signal(number, lambda *_: None)
    signal.set_wakeup_fd(telling, warn_on_full_buffer=False)
    loop.watch(told, heard)


def main(walls: Walls = ALL) -> int:
    """`walls` is given by the attack suite's spawner alone (walls.py)."""
    options = Parser("cage-spawner", "makes cages, for caged alone").parse_args()
    config_file = None if options.config is None else options.config.absolute()
    log.set_up("%(name)s: %(message)s")
    loop = Loop()
    try:
        config = load_runtime(config_file)
        _prepare(config, walls)
        server = Server(config, config_file, loop, walls)
    except CageError as error:
        LOG.critical("%s", error.sentence)
        return error.exit_status
    except OSError as error:
        LOG.critical("%s", error)
        return RuntimeFailure.exit_status
    for fault in server.service.faults:
        LOG.error("%s", fault)
    if server.service.security.why:
        LOG.warning("cages have no security contexts: %s", server.service.security.why)
    _end_when_told(server, loop)
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
