# SPDX-License-Identifier: LGPL-2.1-or-later
"""A polkit that says what a test tells it to, keeps what it was asked, waits where it should, and dies.

python-dbusmock's has no way to tell subjects and cages apart, and test_authorisation.py asks that one too.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from jeepney import DBusAddress, Message, MessageType, message_bus, new_error, new_method_call
from jeepney.io.blocking import DBusConnection, open_dbus_connection
from jeepney.low_level import HeaderFields
from jeepney.wrappers import new_method_return

NAME, PATH = "org.freedesktop.PolicyKit1", "/org/freedesktop/PolicyKit1/Authority"
INTERACTIVE = 1


@dataclass(frozen=True, kw_only=True)
class Asked:
    subject: str
    """The unique name of the connection that polkit was asked about."""
    action: str
    details: dict[str, str] = field(default_factory=dict)
    flags: int
    cancellation: str = ""


Answer = tuple[bool, bool, dict[str, str]]
YES: Answer = (True, False, {})
NO: Answer = (False, False, {})
CHALLENGE: Answer = (False, True, {})
DISMISSED: Answer = (False, False, {"polkit.dismissed": "true"})


class FakePolkit:
    """Serves in a thread of its own; `says` answers each question, and None leaves it open."""

    def __init__(self, address: str, actions: tuple[str, ...] = ()) -> None:
        self._address, self._actions = address, actions
        self.says: Callable[[Asked], Answer | None] = lambda _asked: NO
        self.raw: tuple[str, tuple[Any, ...]] | None = None
        """Signature and body of an answer that is not what polkit's are."""
        self.asked: list[Asked] = []
        self.open: list[Message] = []
        self.cancelled: list[str] = []
        self.changed = threading.Condition()
        """Notified after each call."""
        self._connection: DBusConnection = open_dbus_connection(address)
        self._connection.send_and_get_reply(message_bus.RequestName(NAME))
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def wait_until(self, condition: Callable[[], bool], seconds: float = 20.0) -> None:
        with self.changed:
            if not self.changed.wait_for(condition, seconds):
                raise TimeoutError(f"not within {seconds:.0f} s; asked: {self.asked}")

    def take(self) -> list[Asked]:
        """What was asked since the last time."""
        with self.changed:
            taken, self.asked = self.asked, []
            return taken

    def answer_open(self, answer: Answer) -> None:
        for message in self.open:
            self._connection.send(new_method_return(message, "(bba{ss})", (answer,)))
        self.open.clear()

    def close(self) -> None:
        """End, in whatever is under way: those who wait for an answer hear from the bus that none will come."""
        with contextlib.closing(open_dbus_connection(self._address)) as client:
            client.send(new_method_call(DBusAddress(PATH, self._connection.unique_name, "x.Test"), "Enough"))
            self._thread.join()
        self._connection.close()

    def _serve(self) -> None:
        while True:
            message = self._connection.receive()
            if message.header.message_type is not MessageType.method_call:
                continue
            member = message.header.fields[HeaderFields.member]
            if member == "Enough":
                return
            with self.changed:
                self._answer(message, member)
                self.changed.notify_all()

    def _answer(self, message: Message, member: str) -> None:
        if self.raw is not None:
            self._connection.send(new_method_return(message, *self.raw))
        elif member == "CheckAuthorization":
            (kind, subject), action, details, flags, cancellation = message.body
            assert (kind, subject["name"][0]) == ("system-bus-name", "s")
            asked = Asked(subject=subject["name"][1], action=action, details=details, flags=flags,
                          cancellation=cancellation)
            self.asked.append(asked)
            answer = self.says(asked)
            if answer is None:
                self.open.append(message)
            else:
                self._connection.send(new_method_return(message, "(bba{ss})", (answer,)))
        elif member == "CancelCheckAuthorization":
            self.cancelled.append(message.body[0])
            self._connection.send(new_method_return(message))
            for waiting in self.open:
                self._connection.send(new_error(waiting, f"{NAME}.Error.Cancelled", "s", ("cancelled",)))
            self.open.clear()
        elif member == "EnumerateActions":
            entries = [(action, "", "", "", "", "", 0, 0, 0, {}) for action in self._actions]
            self._connection.send(new_method_return(message, "a(ssssssuuua{ss})", (entries,)))
        else:
            self._connection.send(new_error(message, f"{NAME}.Error.NotSupported", "s", (member,)))
