# SPDX-License-Identifier: LGPL-2.1-or-later
"""What is on the host to be found, by whoever gets out: files, a lock, a key, services; all gone with their context."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.attacks.probe import tells
from tests.attacks.probe.kernel import checked, syscall

CANARY = f"canary-of-the-host-{os.getpid()}"
PLACES = ("/root", "/home", "/var", "/tmp", "/opt", "/var/lib")
_ADD_KEY, _KEYCTL, _KEYCTL_UNLINK, _PROCESS_KEYRING = 248, 250, 9, -2


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """What the probe is told of it, by the verb that needs it."""

    alone: dict[str, Any]
    meet: dict[str, Any]


@contextlib.contextmanager
def marked() -> Iterator[Found]:
    with contextlib.ExitStack() as stack:
        for directory in PLACES:
            stack.callback(Path(directory, CANARY).unlink)
            Path(directory, CANARY).touch()
        facts = tells.facts(*stack.enter_context(_lock()), *stack.enter_context(_key()))
        tcp = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        abstract = stack.enter_context(socket.socket(socket.AF_UNIX))
        abstract.bind(f"\0{CANARY}")
        abstract.listen()
        meet = {"port": tcp.getsockname()[1], "abstract": f"\0{CANARY}",
                "sockets": [stack.enter_context(_socket(directory)) for directory in ("/run", "/tmp", "/var/lib")]}
        yield Found(alone={"canary": CANARY, "facts": facts}, meet=meet)


@contextlib.contextmanager
def _socket(directory: str) -> Iterator[str]:
    """One that anybody may connect to who finds it: a mount that is read-only does not stop that."""
    path = f"{directory}/{CANARY}.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        try:
            os.chmod(path, 0o666)
            listener.listen()
            yield path
        finally:
            os.unlink(path)


@contextlib.contextmanager
def _lock() -> Iterator[list[str]]:
    with tempfile.TemporaryFile() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield [f":{os.fstat(file.fileno()).st_ino} "]


@contextlib.contextmanager
def _key() -> Iterator[list[str]]:
    """In this process's own keyring."""
    key = checked(syscall(_ADD_KEY, b"user", CANARY.encode(), b"x", 1, _PROCESS_KEYRING), "add_key")
    try:
        yield [CANARY]
    finally:
        syscall(_KEYCTL, _KEYCTL_UNLINK, key, _PROCESS_KEYRING)
