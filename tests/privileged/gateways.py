# SPDX-License-Identifier: LGPL-2.1-or-later
"""A hostile cage half: whoever is at a cage's gateway, by a D-Bus library that shares no code with ours.

The gateway's bus knows a cage half by nothing but the socket through which it came, and so this is one to it.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from jeepney import DBusAddress, HeaderFields, MessageType, message_bus, new_method_call
from jeepney.io.blocking import DBusConnection

from tests.privileged.rules import until
from tests.privileged.runtime import SECONDS, Cage, Runtime


@contextmanager
def gateway(runtime: Runtime, cage: Cage) -> Iterator[DBusConnection]:
    """A connection to the gateway of a cage, of which something has used it already."""
    with socket.socket(socket.AF_UNIX) as connected:
        connected.settimeout(SECONDS)
        connected.connect(f"{runtime.run}/gateways/{cage.uuid}/bus")
        for said, answer in ((b"\0AUTH ANONYMOUS", b"OK "), (b"NEGOTIATE_UNIX_FD", b"AGREE_UNIX_FD")):
            connected.sendall(said + b"\r\n")
            assert connected.recv(4096).startswith(answer)
        connected.sendall(b"BEGIN\r\n")
        connected.settimeout(None)
        yield DBusConnection(connected, enable_fds=True)


def ask(connection: DBusConnection, name: str, member: str, signature: str, *values: Any,
        interface: str | None = None) -> tuple[str, Any]:
    """What the mediator's core half says: "" and the values, or the error's name and its sentence."""
    address = DBusAddress(f"/org/cageruntime/{name}", f"org.cageruntime.{name}", interface or f"org.cageruntime.{name}")
    reply = connection.send_and_get_reply(new_method_call(address, member, signature, values), timeout=SECONDS)
    if reply.header.message_type is MessageType.error:
        return reply.header.fields[HeaderFields.error_name].rpartition(".")[2], reply.body[0]
    return "", reply.body


def await_core_half(connection: DBusConnection, name: str) -> None:
    """Until the mediator's core half is on this gateway, to which it comes some time after the gateway stands, and
    again some time after it has closed the channel."""
    asked = message_bus.NameHasOwner(f"org.cageruntime.{name}")
    until(lambda: connection.send_and_get_reply(asked, timeout=SECONDS).body[0], f"{name} on the gateway")
