# SPDX-License-Identifier: LGPL-2.1-or-later
"""The cage half: passes lines on that the core half would take."""

from __future__ import annotations

from cage_runtime.bus import Call
from mediators import cagehalf
from mediators.log import protocol


def check(call: Call) -> None:
    """UsageError for lines that the core half would refuse."""
    protocol.parse(*call.arguments)


def run(arguments: list[str]) -> int:
    """`cage-mediator log --cage`."""
    return cagehalf.run("log", arguments, checks={"Write": check})
