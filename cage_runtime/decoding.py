# SPDX-License-Identifier: LGPL-2.1-or-later
"""JSON that somebody else wrote, or half wrote: it fits, or there is one exception to expect.

The library raises three: its own, that of a text which is not UTF-8, and that of values nested too deeply.
"""

from __future__ import annotations

from typing import TypeVar

import msgspec

T = TypeVar("T")


def decode(untrusted: bytes, decoder: msgspec.json.Decoder[T]) -> T:
    """What `decoder` makes of it; msgspec.DecodeError, of which a validation error is one, where that is nothing."""
    try:
        return decoder.decode(untrusted)
    except (UnicodeDecodeError, RecursionError) as error:
        raise msgspec.DecodeError(str(error)) from error
