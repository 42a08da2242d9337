# SPDX-License-Identifier: LGPL-2.1-or-later
"""An agent of a person's, which is told of what cages ask and show."""

from __future__ import annotations

from typing import Any

from jeepney import DBusAddress, MessageType, new_method_call
from jeepney.io.blocking import open_dbus_connection

from tests.privileged.runtime import SECONDS, Runtime

CORE = DBusAddress("/org/cageruntime/Core1", "org.cageruntime.Core1", "org.cageruntime.Core1.Manager")


class Desktop:
    """An agent of root's: what it is told, and what it clicks."""

    def __init__(self, runtime: Runtime) -> None:
        self._bus = open_dbus_connection(runtime.address)
        self._ask("RegisterAgent", "a{sv}", {})

    def __enter__(self) -> Desktop:
        return self

    def __exit__(self, *_: object) -> None:
        self._bus.close()

    def _ask(self, member: str, signature: str, *values: Any) -> Any:
        reply = self._bus.send_and_get_reply(new_method_call(CORE, member, signature, values), timeout=SECONDS)
        assert reply.header.message_type is MessageType.method_return, reply.body
        return reply.body

    def told(self) -> dict[str, Any]:
        """The next thing that wants no answer."""
        while True:
            message = self._bus.receive(timeout=SECONDS)
            if message.header.message_type is MessageType.signal and message.header.fields.get(3) == "Notified":
                return {key: value for key, (_signature, value) in message.body[0].items()}

    def shown(self) -> dict[str, Any]:
        """The next notification, which is not about the end of one."""
        while "closed" in (told := self.told()):
            pass
        return told

    def click(self, number: int, action: str) -> None:
        """AssertionError where caged does not take it."""
        self._ask("NotificationAction", "usa{sv}", number, action, {})
