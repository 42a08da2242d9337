# SPDX-License-Identifier: LGPL-2.1-or-later
"""An SSH agent (draft-miller-ssh-agent) whose keys are in another cage: it holds none, and passes on what is asked.

Law of this room: two requests are answered, for the identities and for a signature; to all others, and to what is
malformed, the answer is that it failed.  Each client has a process of its own, so that one for whom a person is being
asked keeps no other waiting, and one that goes takes its question along.
"""

from __future__ import annotations

import os
import select
import signal
import socket

from cage_runtime.cli.client import mediator
from cage_runtime.cli.output import say
from cage_runtime.errors import CageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from cage_runtime.cli.client import Peer

FAILURE, REQUEST_IDENTITIES, IDENTITIES_ANSWER, SIGN_REQUEST, SIGN_RESPONSE = 5, 11, 12, 13, 14
MESSAGE_MAX = 32 * 1024
"""Bytes of a request; more than what is ever signed."""
CLIENTS_MAX = 16
"""Clients at once; others wait to be taken."""


class Malformed(Exception):
    """What a client sent is no request."""


def take_string(content: bytes) -> tuple[bytes, bytes]:
    """A string of SSH's wire format at the beginning of `content`, and the rest."""
    if len(content) < 4 or len(content) - 4 < (size := int.from_bytes(content[:4], "big")):
        raise Malformed
    return content[4 : 4 + size], content[4 + size :]


def packed(content: bytes) -> bytes:
    return len(content).to_bytes(4, "big") + content


class Keys:
    """The keys of the cage `target`, or of the one that policy names where it is empty."""

    def __init__(self, peer: Peer, target: str) -> None:
        self._peer, self._target = peer, target
        self._names: dict[bytes, str] = {}

    def list(self) -> list[tuple[str, bytes]]:
        # As long as it takes: a person may have to be asked.
        keys: list[tuple[str, bytes]] = self._peer.call("List", "sa{sv}", self._target, {}, returns="a(say)",
                                                        timeout=None)
        self._names = {blob: name for name, blob in keys}
        return keys

    def sign(self, blob: bytes, data: bytes, flags: int) -> bytes | None:
        """None where there is no such key."""
        if blob not in self._names:
            self.list()
        if (name := self._names.get(blob)) is None:
            return None
        signature: bytes = self._peer.call("Sign", "ssayayua{sv}", self._target, name, blob, data, flags, {},
                                           returns="ay", timeout=None)
        return signature


def answer(message: bytes, keys: Keys) -> bytes:
    """What an agent says to `message`; Malformed, and CageError where the keys are not to be had."""
    if message == bytes([REQUEST_IDENTITIES]):
        found = keys.list()
        identities = b"".join(packed(blob) + packed(name.encode()) for name, blob in found)
        return bytes([IDENTITIES_ANSWER]) + len(found).to_bytes(4, "big") + identities
    if message[:1] == bytes([SIGN_REQUEST]):
        blob, rest = take_string(message[1:])
        data, rest = take_string(rest)
        if len(rest) != 4:
            raise Malformed
        signature = keys.sign(blob, data, int.from_bytes(rest, "big"))
        if signature is not None:
            return bytes([SIGN_RESPONSE]) + packed(signature)
    return bytes([FAILURE])


def serve_client(connection: socket.socket, keys: Keys, complain: Callable[[str], None]) -> None:
    """Answer one client until it goes, or sends what is too long to be a request."""
    while len(head := _received(connection, 4)) == 4:
        size = int.from_bytes(head, "big")
        if not 0 < size <= MESSAGE_MAX or len(message := _received(connection, size)) < size:
            return
        try:
            said = answer(message, keys)
        except Malformed:
            said = bytes([FAILURE])
        except CageError as error:
            complain(error.sentence)
            said = bytes([FAILURE])
        connection.sendall(packed(said))


def _received(connection: socket.socket, size: int) -> bytes:
    content = b""
    while len(content) < size and (chunk := connection.recv(size - len(content))):
        content += chunk
    return content


def has_gone(connection: socket.socket) -> bool:
    """Whether the client at the other end is not there any more."""
    poll = select.poll()
    poll.register(connection, select.POLLRDHUP)
    return bool(poll.poll(0))


class Server:
    """Takes clients at the socket `path`, which it makes for its own user alone, until `until` is readable."""

    def __init__(self, path: str, target: str, program: str) -> None:
        self._target, self._program = target, program
        self._clients: dict[int, int] = {}
        """The processes that serve a client: their ids by their pidfds."""
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        before = os.umask(0o177)
        try:
            self._listener.bind(path)
        finally:
            os.umask(before)
        self._listener.listen(CLIENTS_MAX)

    def run(self, until: int) -> None:
        try:
            while True:
                poll = select.poll()
                for descriptor in (until, *self._clients):
                    poll.register(descriptor, select.POLLIN)
                if len(self._clients) < CLIENTS_MAX:
                    poll.register(self._listener, select.POLLIN)
                ready = {descriptor for descriptor, _ in poll.poll()}
                if until in ready:
                    return
                for pidfd in ready & self._clients.keys():
                    self._reap(pidfd)
                if self._listener.fileno() in ready:
                    self._take()
        finally:
            for pidfd, pid in list(self._clients.items()):
                os.kill(pid, signal.SIGTERM)
                self._reap(pidfd)
            self._listener.close()

    def _reap(self, pidfd: int) -> None:
        os.waitpid(self._clients.pop(pidfd), 0)
        os.close(pidfd)

    def _take(self) -> None:
        connection, _ = self._listener.accept()
        with connection:
            pid = os.fork()
            if pid == 0:
                self._become_client(connection)
        self._clients[os.pidfd_open(pid)] = pid

    def _become_client(self, connection: socket.socket) -> None:
        try:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            self._listener.close()
            peer = mediator("keys", "so there are no keys", given_up=lambda: has_gone(connection))
            serve_client(connection, Keys(peer, self._target), lambda sentence: say(self._program, sentence))
        except CageError as error:
            say(self._program, error.sentence)
        except OSError:  # the client went while it was answered
            return
        finally:
            os._exit(0)
