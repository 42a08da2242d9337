# SPDX-License-Identifier: LGPL-2.1-or-later
"""What is said of something that opens elsewhere: its target, the delivery half's command line, and what comes back."""

from __future__ import annotations

from cage_runtime.errors import InvalidName, TransferFailed, UsageError
from mediators.open import protocol
from tests.fuzz.values import Taken

MAY_RAISE = (UsageError, InvalidName, TransferFailed)


def run(untrusted: bytes) -> None:
    taken = Taken(untrusted)
    match taken.byte() % 3:
        case 0:
            target = protocol.check_target(taken.rest().decode("utf-8", "surrogateescape"))
            assert target.isascii()
            assert len(target) <= len(protocol.DISPOSABLE) + 1 + protocol.CAGE_NAME_MAX
        case 1:
            delivery = protocol.parse_delivery(taken.words())
            again = protocol.parse_delivery(delivery.arguments())
            assert again.arguments() == delivery.arguments()
        case _:
            found = protocol.parse_header(taken.rest(), protocol.EDITED_BYTES_MAX)
            assert found is None or 0 < found[0] <= protocol.EDITED_BYTES_MAX
