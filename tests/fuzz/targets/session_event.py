# SPDX-License-Identifier: LGPL-2.1-or-later
"""What cage-init, and so perhaps a cage, says on the channel of a program that a mediator has started there."""

from __future__ import annotations

import asyncio
import contextlib
import socket

from cage_runtime.attached import next_event
from cage_runtime.errors import TransferFailed
from cage_runtime.spawner.channel import MESSAGE_MAX

MAY_RAISE = (TransferFailed,)
LOOP = asyncio.new_event_loop()


def run(untrusted: bytes) -> None:
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with near, far, contextlib.ExitStack() as held:
        near.setblocking(False)
        far.send(untrusted[: 2 * MESSAGE_MAX] or b"{}")
        event, descriptors = LOOP.run_until_complete(next_event(near, held))
    assert event.event in ("started", "exit", "refused")
    assert 0 <= event.status <= 255
    assert not descriptors
