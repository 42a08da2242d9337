# SPDX-License-Identifier: LGPL-2.1-or-later
"""The lines that a cage writes to the log."""

from __future__ import annotations

from cage_runtime.errors import UsageError
from mediators.log import protocol
from tests.fuzz.values import Taken

MAY_RAISE = (UsageError,)


def run(untrusted: bytes) -> None:
    untrusted_options, untrusted_lines = Taken(untrusted).call("Write", "a{sv}as").arguments
    entries = protocol.parse(untrusted_lines, untrusted_options)
    assert 1 <= len(entries.untrusted_lines) <= protocol.LINES_MAX
    assert entries.size <= 4 * protocol.CALL_CHARACTERS_MAX
    assert 3 <= entries.priority <= 7
    assert entries.tag.isascii()
