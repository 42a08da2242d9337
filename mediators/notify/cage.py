# SPDX-License-Identifier: LGPL-2.1-or-later
"""The cage half: passes on what can be shown."""

from __future__ import annotations

from cage_runtime.bus import Call
from mediators import cagehalf
from mediators.notify import protocol


def _show(call: Call) -> None:
    protocol.read(call)


def _wait(call: Call) -> None:
    protocol.ids(call)


def run(arguments: list[str]) -> int:
    """`cage-mediator notify --cage`."""
    return cagehalf.run("notify", arguments, checks={"Show": _show, "Wait": _wait})
