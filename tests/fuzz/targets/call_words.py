# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a cage says of a call: service, argument and target; what caged says to a delivery half; the status of it."""

from __future__ import annotations

import json

from cage_runtime.errors import InvalidName, UsageError
from cage_runtime.outcome import parse_outcome
from mediators import wire
from mediators.call import protocol
from tests.fuzz.values import Taken

MAY_RAISE = (UsageError, InvalidName)


def run(untrusted: bytes) -> None:
    taken = Taken(untrusted)
    match taken.byte() % 4:
        case 0:
            outcome = parse_outcome(taken.rest())
            if outcome is not None:
                assert 0 <= outcome.status <= 255
                assert json.loads(outcome.line())["status"] == outcome.status
        case 1:
            delivery = protocol.parse_delivery(taken.words())
            again = protocol.parse_delivery(delivery.arguments())
            assert again.arguments() == delivery.arguments()
        case 2:
            name, argument = protocol.split(taken.rest().decode("utf-8", "surrogateescape"))
            assert name.isascii()
            assert argument.isascii()
            assert protocol.split(f"{name}+{argument}" if argument else name) == (name, argument)
        case _:
            call = taken.call("Call", "sssa{sv}")
            protocol.check_service(call.arguments[0])
            protocol.check_argument(call.arguments[1])
            wire.check_target(call.arguments[2])
            wire.no_options(call.arguments[3])
