# SPDX-License-Identifier: LGPL-2.1-or-later
"""A receipt that somebody hands in, and the key of it: each is read as it was written, or is none."""

from __future__ import annotations

import dataclasses

from cage_runtime import receipt
from cage_runtime.receipt import BadReceipt, Receipt
from cage_runtime.text import escape, is_visible
from tests.fuzz.values import Taken

PRIVATE = bytes(range(32))
PUBLIC = receipt.public_key(PRIVATE)
GOOD = Receipt(
    host=receipt.host_of(PUBLIC), time="2026-11-27T09:30:00.000000Z", request="0" * 32, service="files.Send",
    source="work", target="vault", name="a", size="1", files="1", sha256="a" * 64, outcome="arrived", record="b" * 64)
LINE = receipt.sign(GOOD, PRIVATE)
MAY_RAISE = (BadReceipt, ValueError)


def run(untrusted: bytes) -> None:
    taken = Taken(untrusted)
    match taken.byte() % 4:
        case 0:  # nobody has the key but us
            untrusted_line = taken.rest()
            assert receipt.verified(untrusted_line, PUBLIC) == GOOD
            assert untrusted_line == LINE
        case 1:  # as above, from one that is good
            at, instead = taken.number(16) % len(LINE), taken.rest()
            untrusted_line = LINE[:at] + instead + LINE[at + len(instead):]
            assert receipt.verified(untrusted_line, PUBLIC) == GOOD
            assert untrusted_line == LINE
        case 2:
            key = receipt.read_public(untrusted_key := taken.rest())
            assert receipt.write_public(key).encode() == untrusted_key.removesuffix(b"\n")
        case _:  # what a cage can have recorded
            name = escape(taken.rest().decode("utf-8", "surrogateescape"))
            made = dataclasses.replace(GOOD, name=name)
            line = receipt.sign(made, PRIVATE)
            assert receipt.verified(line, PUBLIC) == made
            assert is_visible(line.decode().removesuffix("\n"))
