# SPDX-License-Identifier: LGPL-2.1-or-later
"""How a call of another cage's service ended: a line on a pipe, which the core half writes and `incage call` reads."""

from __future__ import annotations

import json

STATUS_BYTES_MAX = 1024
"""Bytes of the line, which a pipe takes at once (PIPE_BUF)."""


class Outcome:
    """How a call ended: the status for whoever called, and a sentence where the status is not the service's own."""

    __slots__ = ("sentence", "status")

    def __init__(self, status: int, sentence: str = "") -> None:
        self.status, self.sentence = status, sentence

    def line(self) -> bytes:
        """What goes on the status pipe."""
        about = {"status": self.status} | ({"sentence": self.sentence} if self.sentence else {})
        return json.dumps(about).encode() + b"\n"


def parse_outcome(untrusted_line: bytes) -> Outcome | None:
    """The outcome that a status pipe had, None where it was closed without one."""
    if not untrusted_line.endswith(b"\n") or len(untrusted_line) > STATUS_BYTES_MAX:
        return None
    try:
        about = json.loads(untrusted_line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(about, dict):
        return None
    status, sentence = about.get("status"), about.get("sentence", "")
    if type(status) is not int or not 0 <= status <= 255 or not isinstance(sentence, str):
        return None
    return Outcome(status, sentence)
