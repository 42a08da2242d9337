# SPDX-License-Identifier: LGPL-2.1-or-later
"""The cage half: passes on what is asked of the keys of other cages."""

from __future__ import annotations

from cage_runtime.bus import Call
from mediators import cagehalf, wire
from mediators.keys import protocol


def run(arguments: list[str]) -> int:
    """`cage-mediator keys --cage`."""
    return cagehalf.run("keys", arguments, checks={protocol.LIST: _check_list, protocol.SIGN: _check_sign,
                                                 protocol.SECRET: _check_secret})


def _check_list(call: Call) -> None:
    wire.check_target(call.arguments[0])


def _check_sign(call: Call) -> None:
    target, name, key, data, flags, _options = call.arguments
    wire.check_target(target)
    protocol.about(protocol.check_key_name(name), key, data)
    protocol.algorithm(key, flags)


def _check_secret(call: Call) -> None:
    wire.check_target(call.arguments[0])
    protocol.check_application(call.arguments[1])
