# SPDX-License-Identifier: LGPL-2.1-or-later
"""The agent: two requests are answered, whatever else is sent fails, and each client is alone."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cage_runtime.cli import sshagent
from cage_runtime.cli.sshagent import (
    CLIENTS_MAX,
    FAILURE,
    IDENTITIES_ANSWER,
    MESSAGE_MAX,
    REQUEST_IDENTITIES,
    SIGN_REQUEST,
    SIGN_RESPONSE,
    Keys,
    Malformed,
    Server,
    answer,
    has_gone,
    packed,
    serve_client,
    take_string,
)
from cage_runtime.errors import CageError, PolicyRefused

BLOB, OTHER = b"public key", b"another"


class Peer:
    """The cage half of the keys mediator, with one key."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []
        self.refuses: CageError | None = None

    def call(self, member: str, _signature: str, *values: Any, returns: str, timeout: float | None) -> Any:
        assert (returns, timeout) == ({"List": "a(say)", "Sign": "ay"}[member], None)
        self.asked.append((member, *values))
        if self.refuses:
            raise self.refuses
        return [("work", BLOB)] if member == "List" else b"signature"


@pytest.fixture
def peer() -> Peer:
    return Peer()


@pytest.fixture
def keys(peer: Peer) -> Keys:
    return Keys(peer, "vault")  # type: ignore[arg-type]


def request(blob: bytes = BLOB, data: bytes = b"data", flags: int = 4) -> bytes:
    return bytes([SIGN_REQUEST]) + packed(blob) + packed(data) + flags.to_bytes(4, "big")


def test_identities_are_the_keys_of_the_cage(keys: Keys, peer: Peer) -> None:
    expected = bytes([IDENTITIES_ANSWER]) + b"\0\0\0\1" + packed(BLOB) + packed(b"work")
    assert answer(bytes([REQUEST_IDENTITIES]), keys) == expected
    assert peer.asked == [("List", "vault", {})]


def test_a_signature_is_asked_for_by_the_name_of_its_key(keys: Keys, peer: Peer) -> None:
    """Which is found once; a client that knows its key asks for no list."""
    for _ in range(2):
        assert answer(request(), keys) == bytes([SIGN_RESPONSE]) + packed(b"signature")
    sign = ("Sign", "vault", "work", BLOB, b"data", 4, {})
    assert peer.asked == [("List", "vault", {}), sign, sign]


def test_a_key_that_is_not_there_does_not_sign(keys: Keys, peer: Peer) -> None:
    assert answer(request(OTHER), keys) == bytes([FAILURE])
    assert [asked[0] for asked in peer.asked] == ["List"]


@pytest.mark.parametrize("message", [bytes([kind]) for kind in range(256) if kind not in (REQUEST_IDENTITIES,
                                                                                          SIGN_REQUEST)])
def test_every_other_request_fails(keys: Keys, peer: Peer, message: bytes) -> None:
    """To add a key, remove one, lock, and all extensions."""
    assert answer(message, keys) == answer(message + b"rest", keys) == bytes([FAILURE])
    assert peer.asked == []


@pytest.mark.parametrize("message", [
    bytes([SIGN_REQUEST]), request()[:-1], request() + b"x", bytes([SIGN_REQUEST]) + b"\xff\xff\xff\xff" + BLOB])
def test_a_malformed_request_asks_nobody(keys: Keys, peer: Peer, message: bytes) -> None:
    with pytest.raises(Malformed):
        answer(message, keys)
    assert peer.asked == []


def test_identities_with_something_behind_fail(keys: Keys, peer: Peer) -> None:
    assert answer(bytes([REQUEST_IDENTITIES]) + b"x", keys) == bytes([FAILURE])
    assert peer.asked == []


@given(st.binary(max_size=100))
def test_any_bytes_are_answered_or_malformed(message: bytes) -> None:
    peer = Peer()
    with contextlib.suppress(Malformed):
        assert answer(message, Keys(peer, "vault"))[0] in (FAILURE, IDENTITIES_ANSWER, SIGN_RESPONSE)  # type: ignore[arg-type]


@given(st.binary(max_size=20))
def test_a_string_is_taken_whole_or_not_at_all(content: bytes) -> None:
    try:
        string, rest = take_string(content)
    except Malformed:
        return
    assert packed(string) + rest == content


def conversation(keys: Keys, content: bytes) -> tuple[bytes, list[str]]:
    """What a client hears that sends `content` and then no more, and what a person does."""
    near, far = socket.socketpair()
    complaints: list[str] = []
    with near, far:
        sending = threading.Thread(target=lambda: (far.sendall(content), far.shutdown(socket.SHUT_WR)))
        sending.start()
        with near:
            serve_client(near, keys, complaints.append)
        sending.join()
        heard = b""
        with contextlib.suppress(ConnectionResetError):
            while chunk := far.recv(65536):
                heard += chunk
    return heard, complaints


def test_a_client_may_ask_again_and_again(keys: Keys) -> None:
    heard, complaints = conversation(keys, packed(request()) + packed(b"\x1b") + packed(request()[:-1]))
    assert heard == packed(bytes([SIGN_RESPONSE]) + packed(b"signature")) + packed(bytes([FAILURE])) * 2
    assert complaints == []


def test_a_refusal_is_a_failure_to_the_client_and_a_sentence_to_the_person(keys: Keys, peer: Peer) -> None:
    peer.refuses = PolicyRefused("no rule allows it")
    assert conversation(keys, packed(request())) == (packed(bytes([FAILURE])), ["no rule allows it"])


@pytest.mark.parametrize("content", [b"", b"\0\0", b"\0\0\0\0", b"\0\0\0\x05abc", (MESSAGE_MAX + 1).to_bytes(4, "big"),
                                     b"\xff\xff\xff\xff" + b"x" * 1000])
def test_what_is_too_long_or_cut_off_ends_the_conversation(keys: Keys, peer: Peer, content: bytes) -> None:
    assert conversation(keys, content) == (b"", [])
    assert peer.asked == []


def test_a_client_that_goes_is_seen_to() -> None:
    near, far = socket.socketpair()
    with near:
        assert not has_gone(near)
        far.close()
        assert has_gone(near)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, peer: Peer) -> Iterator[Path]:
    """An agent that runs in a process of its own, at this path."""
    monkeypatch.setattr(sshagent, "mediator", lambda *_words, **_options: peer)
    monkeypatch.chdir(tmp_path)
    until, end = os.pipe()
    made = Server("agent", "vault", "incage")
    pid = os.fork()
    if pid == 0:
        os.close(end)
        made.run(until)
        os._exit(0)
    made._listener.close()
    os.close(until)
    yield Path("agent")
    os.close(end)
    assert os.waitpid(pid, 0)[1] == 0


def connected(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(20)
    connection.connect(str(path))
    return connection


def asks(connection: socket.socket) -> bytes:
    connection.sendall(packed(request()))
    return connection.recv(4096)


def test_its_socket_is_its_users_alone(server: Path) -> None:
    assert stat.S_IMODE(server.stat().st_mode) == 0o600


def test_one_client_keeps_no_other_waiting(server: Path) -> None:
    """Half a request, and then silence."""
    with connected(server) as silent, connected(server) as other:
        silent.sendall(b"\0\0\0\x50\x0d")
        assert asks(other) == packed(bytes([SIGN_RESPONSE]) + packed(b"signature"))


def test_more_clients_than_may_be_wait_for_one_to_go(server: Path) -> None:
    with contextlib.ExitStack() as held:
        clients = [held.enter_context(connected(server)) for _ in range(CLIENTS_MAX)]
        for client in clients:
            assert asks(client)
        late = held.enter_context(connected(server))
        late.settimeout(0.3)
        with pytest.raises(TimeoutError):
            asks(late)
        late.settimeout(20)
        clients[0].close()
        assert late.recv(4096) == packed(bytes([SIGN_RESPONSE]) + packed(b"signature"))
