# SPDX-License-Identifier: LGPL-2.1-or-later
"""A person's agent, as a program of its own: says "registered", and then each notification and each question as a line
of JSON: the signal's name, and what is in it.
"""

from __future__ import annotations

import asyncio
import json
import sys

from dbus_next import BusType, Message, MessageType, Variant
from dbus_next.aio import MessageBus

NAME, PATH, INTERFACE = "org.cageruntime.Core1", "/org/cageruntime/Core1", "org.cageruntime.Core1.Manager"


def plain(value: object) -> object:
    """Without the wrapping of variants."""
    if isinstance(value, Variant):
        return plain(value.value)
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    return value


def heard(message: Message) -> bool:
    if message.message_type is not MessageType.SIGNAL or message.member not in ("Notified", "PromptAdded"):
        return False
    say(json.dumps([message.member, plain(message.body[0])]))
    return True


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


async def main() -> None:
    bus = await MessageBus(bus_type=BusType.SYSTEM).connect()
    bus.add_message_handler(heard)
    answer = await bus.call(Message(destination=NAME, path=PATH, interface=INTERFACE, member="RegisterAgent",
                                    signature="a{sv}", body=[{}]))
    assert answer is not None
    assert answer.message_type is MessageType.METHOD_RETURN, answer.body
    say("registered")
    await bus.wait_for_disconnect()


if __name__ == "__main__":
    asyncio.run(main())
