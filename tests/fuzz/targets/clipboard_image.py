# SPDX-License-Identifier: LGPL-2.1-or-later
"""The image of a clip: what is made of it is a PNG of the parts that one needs, and is made of itself again.

Each input is tried as it is, and with checksums that fit, or hardly any would come further than to them.
"""

from __future__ import annotations

import contextlib
import zlib

from mediators.clipboard.image import SIGNATURE, reencoded, size_of
from mediators.reading import Unfit

MAY_RAISE = (Unfit,)


def run(untrusted: bytes) -> None:
    fitting = _fitting(untrusted)
    if fitting != untrusted:
        with contextlib.suppress(Unfit):
            _attempt(fitting)
    _attempt(untrusted)


def _attempt(untrusted: bytes) -> None:
    made = reencoded(untrusted)
    assert made.startswith(SIGNATURE)
    assert min(size_of(made)) >= 1
    assert reencoded(made) == made


def _fitting(untrusted: bytes) -> bytes:
    image, offset = bytearray(untrusted), len(SIGNATURE)
    while offset + 12 <= len(image):
        end = offset + 8 + int.from_bytes(image[offset : offset + 4], "big")
        if end + 4 > len(image):
            break
        image[end : end + 4] = zlib.crc32(image[offset + 4 : end]).to_bytes(4, "big")
        offset = end + 4
    return bytes(image)
