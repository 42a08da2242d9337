# SPDX-License-Identifier: LGPL-2.1-or-later
"""The cage half: passes a call on, and the core's pipes back."""

from __future__ import annotations

from cage_runtime.bus import Call
from mediators import cagehalf, wire
from mediators.call import protocol


def run(arguments: list[str]) -> int:
    """`cage-mediator call --cage`."""
    return cagehalf.run("call", arguments, checks={protocol.CALL: _check})


def _check(call: Call) -> None:
    service, argument, target, _options = call.arguments
    protocol.check_service(service)
    protocol.check_argument(argument)
    wire.check_target(target)
