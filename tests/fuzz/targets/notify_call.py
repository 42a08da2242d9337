# SPDX-License-Identifier: LGPL-2.1-or-later
"""A notification of a cage's: every line that is left of it can be seen, and is short."""

from __future__ import annotations

from dataclasses import replace

from cage_runtime.errors import UsageError
from cage_runtime.model import NOTIFICATION_ACTIONS_MAX, NOTIFICATION_LINE_MAX, NOTIFICATION_LINES_MAX
from cage_runtime.text import is_visible
from mediators.notify import protocol
from tests.fuzz.values import Taken

MAY_RAISE = (UsageError,)


def run(untrusted: bytes) -> None:
    taken = Taken(untrusted)
    if taken.byte() & 1:
        assert protocol.ids(taken.call("Wait", "au"))
        return
    call = taken.call("Show", "a{sv}ss")
    options, summary, body = call.arguments
    notification = protocol.read(replace(call, arguments=[summary, body, options]))
    shown = (notification.summary, *notification.lines, *(label for _, label in notification.actions))
    assert all(map(is_visible, shown))
    assert max(map(len, shown)) <= len(r"\U000e0001") * NOTIFICATION_LINE_MAX + 1
    assert len(notification.lines) <= NOTIFICATION_LINES_MAX + 1
    assert len(notification.actions) <= NOTIFICATION_ACTIONS_MAX
    assert notification.urgency in protocol.URGENCIES
    assert 0 <= notification.replaces < 1 << 32
    assert notification.variants()
