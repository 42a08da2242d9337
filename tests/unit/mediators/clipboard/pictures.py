# SPDX-License-Identifier: LGPL-2.1-or-later
"""PNGs, put together by hand so that each part of one can be wrong."""

from __future__ import annotations

import random
import struct
import zlib

SIGNATURE = b"\x89PNG\r\n\x1a\n"
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def chunk(kind: bytes, content: bytes = b"") -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def header(width: int, height: int, depth: int = 8, colour: int = 6, interlaced: int = 0, *, compression: int = 0,
           filters: int = 0) -> bytes:
    return chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, compression, filters, interlaced))


def rows(width: int, height: int, depth: int = 8, colour: int = 6, interlaced: int = 0) -> list[bytes]:
    """Pixels of any colour, their rows with any filter."""
    chance = random.Random(f"{width} {height} {depth} {colour} {interlaced}")
    made = []
    for left, top, across, down in PASSES if interlaced else ((0, 0, 1, 1),):
        columns = len(range(left, width, across))
        for _ in range(top, height, down) if columns else ():
            row = chance.randbytes((columns * depth * CHANNELS[colour] + 7) // 8)
            made.append(bytes([chance.randrange(5)]) + row)
    return made


def png(width: int, height: int, depth: int = 8, colour: int = 6, interlaced: int = 0, *, before: bytes = b"",
        after: bytes = b"", pixels: bytes | None = None) -> bytes:
    """`before` goes between the header and the pixels, `after` between them and the end."""
    raw = b"".join(rows(width, height, depth, colour, interlaced)) if pixels is None else pixels
    if colour == 3 and not before:
        before = palette(1 << depth)
    return b"".join([SIGNATURE, header(width, height, depth, colour, interlaced), before,
                     chunk(b"IDAT", zlib.compress(raw)), after, chunk(b"IEND")])


def palette(colours: int) -> bytes:
    return chunk(b"PLTE", bytes(range(256)) * 3 if colours == 256 else bytes(range(3 * colours)))


def chunks(image: bytes) -> list[tuple[bytes, bytes]]:
    """The parts of a PNG of which all else is known to be right."""
    found, offset = [], len(SIGNATURE)
    while offset < len(image):
        (length,) = struct.unpack_from(">I", image, offset)
        found.append((image[offset + 4 : offset + 8], image[offset + 8 : offset + 8 + length]))
        offset += length + 12
    return found
