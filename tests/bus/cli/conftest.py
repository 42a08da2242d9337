# SPDX-License-Identifier: LGPL-2.1-or-later
"""A private bus, and a fake caged on it that answers as each test tells it to."""

from __future__ import annotations

import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from jeepney import MessageFlag, MessageType, new_error, new_method_return
from jeepney.bus_messages import message_bus
from jeepney.io.blocking import DBusConnection, open_dbus_connection
from jeepney.low_level import HeaderFields, Message

CONFIGURATION = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-BUS Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>session</type>
  <listen>unix:path={socket}</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow send_destination="*"/>
    <allow receive_sender="*"/>
    <allow receive_requested_reply="true"/>
    <deny send_interface="org.cageruntime.Core1.Manager" send_member="ForbiddenByTheBus"/>
    <allow own="*"/>
  </policy>
</busconfig>
"""

Answer = tuple[str, tuple[Any, ...]]


class FakeError(Exception):
    """The fake answers with this error."""

    def __init__(self, name: str, sentence: str) -> None:
        super().__init__(name, sentence)
        self.name, self.sentence = name, sentence


class FakeService:
    """Owns a name; `answers` maps a member to a function of its arguments that gives (signature, body)."""

    def __init__(self, address: str, name: str, answers: dict[str, Callable[..., Answer]] | None = None) -> None:
        """`answers` are those that it has from its first call on."""
        self._connection: DBusConnection = open_dbus_connection(address, enable_fds=True)
        self._connection.send_and_get_reply(message_bus.RequestName(name))
        self.answers = answers or {}
        self.calls: list[tuple[Any, ...]] = []
        self.flags: list[MessageFlag] = []
        """Of each call in `calls`."""
        self.turn = threading.RLock()
        """Held from a call to its answer: what is said of its own accord meanwhile comes after that."""
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    @property
    def interactive(self) -> list[bool]:
        """Of each call, whether it allows interactive authorisation."""
        return [bool(flags & MessageFlag.allow_interactive_authorization) for flags in self.flags]

    def fail(self, member: str, name: str, sentence: str) -> None:
        """`member` answers with an error."""

        def answer(*_: object) -> Answer:
            raise FakeError(name, sentence)

        self.answers[member] = answer

    def _serve(self) -> None:
        while True:
            try:
                message = self._connection.receive()
                if message.header.message_type == MessageType.method_call:
                    with self.turn:
                        self._connection.send(self._answer(message))
            except (OSError, EOFError):
                return

    def _answer(self, message: Message) -> Message:
        fields = message.header.fields
        member = fields[HeaderFields.member]
        self.calls.append((member, *message.body))
        self.flags.append(message.header.flags)
        answer = self.answers.get(member)
        if answer is None:
            return new_error(message, "org.freedesktop.DBus.Error.UnknownMethod", "s", (f"no {member}",))
        try:
            signature, body = answer(*message.body)
        except FakeError as error:
            return new_error(message, error.name, "s", (error.sentence,))
        return new_method_return(message, signature or None, body)

    def close(self) -> None:
        self._connection.sock.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._connection.close()


@pytest.fixture(scope="session")
def bus_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    daemon = shutil.which("dbus-daemon")
    assert daemon, "dbus-daemon is missing; install the package dbus"
    directory: Path = tmp_path_factory.mktemp("bus")
    (directory / "bus.conf").write_text(CONFIGURATION.format(socket=directory / "socket"))
    command = [daemon, "--nofork", "--print-address", f"--config-file={directory}/bus.conf"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline().startswith("unix:")
    yield f"unix:path={directory}/socket"
    process.terminate()
    process.communicate()


@pytest.fixture
def system_bus(bus_address: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The private bus in the place of the system's."""
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", bus_address)
    return bus_address


@pytest.fixture
def caged(system_bus: str) -> Iterator[FakeService]:
    service = FakeService(system_bus, "org.cageruntime.Core1")
    yield service
    service.close()


@pytest.fixture
def mediator(system_bus: str) -> Iterator[FakeService]:
    service = FakeService(system_bus, "org.cageruntime.Files1")
    yield service
    service.close()


@pytest.fixture
def fake_service() -> type[FakeService]:
    return FakeService


@pytest.fixture
def fake_error() -> type[FakeError]:
    return FakeError
