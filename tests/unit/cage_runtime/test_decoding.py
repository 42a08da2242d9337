# SPDX-License-Identifier: LGPL-2.1-or-later
"""JSON of others: whatever is wrong with it, it is one exception."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cage_runtime.decoding import decode


class Thing(msgspec.Struct, tag="thing"):
    name: str


THINGS = msgspec.json.Decoder(Thing)


def test_what_fits_is_read() -> None:
    assert decode(b'{"type":"thing","name":"a"}', THINGS) == Thing(name="a")


@pytest.mark.parametrize("content", [
    b"", b"[", b'{"type":"other"}', b'{"type":"thing","name":1}', b'{"type":"\x80"}', b'{"name":"\x80","type":"thing"}',
    b'{"x":' + b"[" * 3000, b'{"type":"thing","x":' + b'{"a":' * 3000])
def test_what_does_not_is_one_exception(content: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        decode(content, THINGS)


@given(st.binary(max_size=60), st.booleans())
def test_any_bytes_are_read_or_that_exception(content: bytes, inside: bool) -> None:
    try:
        decode(b'{"type":"thing","name":"' + content + b'"}' if inside else content, THINGS)
    except msgspec.DecodeError:
        return
    assert inside
