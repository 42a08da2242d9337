# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a cage-init says to the spawner, and what caged asks of it: root reads both."""

from __future__ import annotations

import msgspec

from cage_runtime.spawner import spec

MAY_RAISE = (msgspec.DecodeError,)


def run(untrusted: bytes) -> None:
    way, message = untrusted[:1], untrusted[1:]
    read = {b"i": spec.decode_from_init, b"r": spec.decode_request}.get(way, spec.decode_reply)
    said = read(message)
    assert read(spec.encode(said)) == said
