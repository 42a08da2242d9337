# SPDX-License-Identifier: LGPL-2.1-or-later
"""The hostile cage half says every member of every mediator, with descriptors of every kind, and says it again."""

from __future__ import annotations

import os
import socket
import threading
from pathlib import Path

import pytest

from cage_runtime import handed
from tests.fuzz.hostile import ALL_KINDS, NAMES, Hostile, made, members


def test_every_mediator_is_spoken_to() -> None:
    assert {member.mediator for member in members()} == set(NAMES)
    assert {"call", "clipboard", "files", "keys", "log", "notify", "open"} <= set(NAMES)


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_each_kind_of_descriptor_can_be_made(kind: str) -> None:
    before = len(os.listdir("/proc/self/fd"))
    descriptor, held = made(kind)
    assert os.path.exists(f"/proc/self/fd/{descriptor}")
    handed.close([descriptor])
    del held
    assert len(os.listdir("/proc/self/fd")) == before


def test_one_that_is_sent_lingers() -> None:
    assert "a socket that lingers" in ALL_KINDS


def test_it_says_all_that_it_can_and_leaves_nothing_open(tmp_path: Path) -> None:
    path = str(tmp_path / "bus")
    heard = bytearray()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen(64)

        def serve() -> None:
            while True:
                connection, _ = listening.accept()
                with connection:
                    while chunk := connection.recv(65536):
                        if chunk == b"enough":
                            return
                        heard.extend(chunk)

        server = threading.Thread(target=serve)
        server.start()
        before = len(os.listdir("/proc/self/fd"))
        hostile = Hostile(path, 1, ("vault",))
        hostile.say(1000)
        assert len(os.listdir("/proc/self/fd")) <= before + 1  # of the server
        with socket.socket(socket.AF_UNIX) as last:
            last.connect(path)
            last.sendall(b"enough")
        server.join()
    assert {"honest", "elsewhere", "other kind", "to the bus", "broken", "half", "leave at once"} <= hostile.did.keys()
    for member in members():
        assert member.name.encode() in heard
