# SPDX-License-Identifier: LGPL-2.1-or-later
"""SSH's wire format in what a cage wants signed, and in what the cage with the keys answers."""

from __future__ import annotations

from cage_runtime.errors import UsageError
from cage_runtime.text import is_visible
from mediators.keys import protocol
from mediators.sshwire import KINDS, packed
from tests.fuzz.values import Taken

MAY_RAISE = (UsageError,)
BLOBS = tuple(packed(kind.encode()) + b"of it" for kind in KINDS)


def run(untrusted: bytes) -> None:
    taken = Taken(untrusted)
    match taken.byte() % 6:
        case 0:
            lines = protocol.about("work", taken.one_of(BLOBS), taken.rest())
            assert all(map(is_visible, lines))
            assert all(len(line) < 4096 for line in lines)
        case 1:
            blob, data, flags = protocol.parse_request(untrusted_request := taken.rest())
            assert protocol.request(blob, data, flags) == untrusted_request
        case 2:
            keys = protocol.parse_listing(untrusted_listing := taken.rest())
            assert len(keys) <= protocol.KEYS_MAX
            assert protocol.listing(keys) == untrusted_listing
        case 3:
            signature = protocol.parse_signature(taken.rest(), "ssh-ed25519")
            assert len(signature) <= protocol.SIGNATURE_MAX
        case 4:
            flags = taken.number(32)
            assert protocol.algorithm(taken.rest(), flags)
        case _:
            name = protocol.check_key_name(taken.rest().decode("utf-8", "surrogateescape"))
            assert name.isascii()
            assert not name.startswith((".", "-"))
