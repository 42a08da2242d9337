# SPDX-License-Identifier: LGPL-2.1-or-later
"""What is said of a transfer: its options, the delivery half's command line and what it answers."""

from __future__ import annotations

from cage_runtime.errors import InvalidName, TransferFailed, UsageError
from mediators.files import protocol
from tests.fuzz.values import Taken

MAY_RAISE = (UsageError, InvalidName, TransferFailed)


def run(untrusted: bytes) -> None:
    taken = Taken(untrusted)
    match taken.byte() % 3:
        case 0:
            call = taken.call("Send", "a{sv}s")
            options = protocol.Options.read(call.arguments[0])
            assert options.conflict in protocol.CONFLICTS
            assert isinstance(options.move, bool)
            protocol.check_target(call.arguments[1])
        case 1:
            delivery = protocol.parse_delivery(taken.words())
            again = protocol.parse_delivery(delivery.arguments())
            assert again.arguments() == delivery.arguments()
        case _:
            conflict = taken.one_of(protocol.CONFLICTS)
            delivery = protocol.Delivery(source="work", name="a.txt", size=1, sha256="0" * 64, conflict=conflict)
            arrived = protocol.parse_arrived(taken.rest(), delivery)
            assert arrived == "" or (arrived.startswith("a") and arrived.endswith(".txt"))
