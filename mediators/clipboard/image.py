# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a clip of an image is made into before anybody pastes it: a PNG that is ours, with the pixels of the cage's.

Law of this room: it runs in a sealed worker alone.  Nothing of what came is passed on but numbers that were checked and
compressed pixels that were decompressed and compressed again, exactly as many as the header says: no chunk that is not
needed to see it, nothing behind the end, and nothing that whoever decodes it has to believe.  Pixels are never
interpreted, so no decoder of images runs in the core; zlib is the only library that meets them.

The format: W3C, Portable Network Graphics (PNG) Specification.
"""

from __future__ import annotations

import hashlib
import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from cage_runtime.model import IMAGE_BYTES_MAX, IMAGE_PIXELS_MAX, IMAGE_RAW_BYTES_MAX, IMAGE_SIDE_MAX
from mediators.reading import Unfit

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_HEADER = struct.Struct(">IIBBBBB")
_CHUNK_HEAD = struct.Struct(">I4s")
_CRC_BYTES = 4
GREY, COLOURS, PALETTE, GREY_ALPHA, COLOURS_ALPHA = 0, 2, 3, 4, 6
_CHANNELS = {GREY: 1, COLOURS: 3, PALETTE: 1, GREY_ALPHA: 2, COLOURS_ALPHA: 4}
_DEPTHS = {GREY: (1, 2, 4, 8, 16), COLOURS: (8, 16), PALETTE: (1, 2, 4, 8), GREY_ALPHA: (8, 16), COLOURS_ALPHA: (8, 16)}
_FILTERS = 5
"""Of a row of pixels; its first byte says which."""
_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
"""Of an interlaced image: the first column and row of each, and how far the next ones are."""
_PIECE, _IDAT_BYTES = 16 * 1024, 64 * 1024
_LEVEL = 4
"""Of compression: 6 makes what is usual no smaller, and what is made to take long takes five times as long."""
_ANCILLARY = 0x20
"""Set in the first letter of a chunk that an image can do without."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Header:
    """What an image says of itself, each value one that there can be, all of it together within our bounds."""

    width: int
    height: int
    depth: int
    colour: int
    interlaced: bool

    def rows(self) -> Iterator[int]:
        """The bytes of each row as it is compressed, with the one that names its filter."""
        for left, top, across, down in _PASSES if self.interlaced else ((0, 0, 1, 1),):
            columns, lines = -(-(self.width - left) // across), -(-(self.height - top) // down)
            if columns > 0:
                for _ in range(max(0, lines)):
                    yield 1 + (columns * self.depth * _CHANNELS[self.colour] + 7) // 8

    def packed(self) -> bytes:
        return _HEADER.pack(self.width, self.height, self.depth, self.colour, 0, 0, int(self.interlaced))


@dataclass(kw_only=True, slots=True)
class _Found:
    """The parts of an image that are kept."""

    header: Header
    palette: bytes = b""
    transparency: bytes = b""


def copy(source: int, target: int, size: int) -> tuple[int, str]:
    """Stager's Copy: writes to `target` what is made of the image of `size` bytes; Unfit, worded to follow "the clip",
    where it is none, or more than we take."""
    untrusted = b""
    while len(untrusted) < size and (piece := os.pread(source, size - len(untrusted), len(untrusted))):
        untrusted += piece
    made = reencoded(untrusted)
    rest = memoryview(made)
    while rest:
        rest = rest[os.write(target, rest):]
    return len(made), hashlib.sha256(made).hexdigest()


def size_of(image: bytes | bytearray) -> tuple[int, int]:
    """Width and height of what `reencoded` has made."""
    width, height = struct.unpack_from(">II", image, len(SIGNATURE) + _CHUNK_HEAD.size)
    return width, height


def reencoded(untrusted: bytes) -> bytes:
    """The PNG made anew; Unfit says what is wrong with it."""
    if not untrusted.startswith(SIGNATURE):
        raise Unfit("is no PNG")
    chunks = _chunks(untrusted)
    kind, untrusted_header = next(chunks)
    if kind != b"IHDR":
        raise Unfit("is a PNG without a header")
    found = _Found(header=read_header(untrusted_header))
    first = _until_pixels(found, chunks)
    pixels = _pixels(found.header, first, chunks)
    pieces = [SIGNATURE, _chunk(b"IHDR", found.header.packed())]
    if found.palette:
        pieces.append(_chunk(b"PLTE", found.palette))
    if found.transparency:
        pieces.append(_chunk(b"tRNS", found.transparency))
    made = b"".join([*pieces, *pixels, _chunk(b"IEND", b"")])
    if len(made) > IMAGE_BYTES_MAX:
        raise Unfit(f"is an image of more than {IMAGE_BYTES_MAX} bytes once it is compressed again")
    return made


def read_header(untrusted_header: bytes) -> Header:
    """The header, where there can be such an image and we take it; else Unfit."""
    if len(untrusted_header) != _HEADER.size:
        raise Unfit("is a PNG with a header of another size")
    width, height, depth, colour, compression, filters, interlaced = _HEADER.unpack(untrusted_header)
    if depth not in _DEPTHS.get(colour, ()) or compression or filters or interlaced > 1 or not width or not height:
        raise Unfit("is a PNG with a header that no image has")
    header = Header(width=width, height=height, depth=depth, colour=colour, interlaced=bool(interlaced))
    raw = height * (1 + (width * depth * _CHANNELS[colour] + 7) // 8)
    too_large = max(width, height) > IMAGE_SIDE_MAX or width * height > IMAGE_PIXELS_MAX or raw > IMAGE_RAW_BYTES_MAX
    if too_large:
        raise Unfit(f"is an image of {width} by {height}, and at most {IMAGE_SIDE_MAX} a side, {IMAGE_PIXELS_MAX} "
                    f"pixels and {IMAGE_RAW_BYTES_MAX >> 20}M of them are taken")
    return header


def _chunks(untrusted: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Each chunk as its type and content, to the one that ends the image; Unfit where it has no end."""
    offset = len(SIGNATURE)
    while offset + _CHUNK_HEAD.size + _CRC_BYTES <= len(untrusted):
        length, kind = _CHUNK_HEAD.unpack_from(untrusted, offset)
        start = offset + _CHUNK_HEAD.size
        content, crc = untrusted[start : start + length], untrusted[start + length : start + length + _CRC_BYTES]
        if len(crc) != _CRC_BYTES:
            break
        if zlib.crc32(content, zlib.crc32(kind)) != int.from_bytes(crc, "big"):
            raise Unfit("is a PNG that is damaged")
        yield kind, content
        if kind == b"IEND":
            return
        offset = start + length + _CRC_BYTES
    raise Unfit("is a PNG that is cut off")


def _until_pixels(found: _Found, chunks: Iterator[tuple[bytes, bytes]]) -> bytes:
    """Take what is needed from before the first chunk of pixels, which is returned."""
    while True:
        kind, content = next(chunks)  # one that ends the image is none that it can do without
        if kind == b"IDAT":
            if found.header.colour == PALETTE and not found.palette:
                raise Unfit("is a PNG without the palette that its pixels are of")
            return content
        if kind == b"PLTE":
            found.palette = _palette(found, content)
        elif kind == b"tRNS":
            found.transparency = _transparency(found, content)
        elif not kind[0] & _ANCILLARY:
            raise Unfit("is a PNG with a part that is not known, or out of place")


def _palette(found: _Found, content: bytes) -> bytes:
    """With as many colours as a pixel can name, so that none names one that is not there; of other images, which may
    suggest one, none."""
    entries, most = len(content) // 3, 1 << found.header.depth
    if found.header.colour in (GREY, GREY_ALPHA) or found.palette or len(content) % 3 or not 1 <= entries <= 256:
        raise Unfit("is a PNG with a palette that it cannot have")
    if found.header.colour != PALETTE:
        return b""
    if entries > most:
        raise Unfit("is a PNG with a palette that it cannot have")
    return content.ljust(3 * most, b"\0")


def _transparency(found: _Found, content: bytes) -> bytes:
    """Of a palette the opacity of each colour, otherwise the one colour that is transparent."""
    colour = found.header.colour
    if colour == PALETTE:
        fits = 1 <= len(content) <= len(found.palette) // 3
    else:
        fits = len(content) == 2 * _CHANNELS[colour] and colour in (GREY, COLOURS)
    if not fits or found.transparency:
        raise Unfit("is a PNG with a transparency that it cannot have")
    if colour == PALETTE:
        return content
    mask = (1 << found.header.depth) - 1
    return b"".join(struct.pack(">H", sample & mask) for (sample,) in struct.iter_unpack(">H", content))


def _pixels(header: Header, first: bytes, chunks: Iterator[tuple[bytes, bytes]]) -> list[bytes]:
    """The chunks of pixels, compressed anew; the rest of the image is read, to its end, and left out."""
    rows, packer = _Rows(header), zlib.compressobj(_LEVEL)
    made: list[bytes] = []
    taken, packed = 0, bytearray()
    for raw in _inflated(_compressed(first, chunks)):
        rows.see(raw)
        packed += packer.compress(raw)
        if len(packed) >= _IDAT_BYTES:
            taken += len(packed)
            made.append(_chunk(b"IDAT", bytes(packed)))
            packed.clear()
        if taken > IMAGE_BYTES_MAX:
            raise Unfit(f"is an image of more than {IMAGE_BYTES_MAX} bytes once it is compressed again")
    rows.end()
    packed += packer.flush()
    return [*made, _chunk(b"IDAT", bytes(packed))]


def _compressed(first: bytes, chunks: Iterator[tuple[bytes, bytes]]) -> Iterator[bytes]:
    """The content of all chunks of pixels, which follow one another, in small pieces."""
    kind, content = b"IDAT", first
    while kind == b"IDAT":
        for offset in range(0, len(content), _PIECE):
            yield content[offset : offset + _PIECE]
        kind, content = next(chunks)
    while kind != b"IEND":
        if not kind[0] & _ANCILLARY:
            raise Unfit("is a PNG with a part that is not known, or out of place")
        kind, content = next(chunks)


def _inflated(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """What was compressed, in pieces of at most _IDAT_BYTES however much it is; what follows its end is left out."""
    unpacker = zlib.decompressobj()
    try:
        for piece in pieces:
            while piece and not unpacker.eof:
                yield unpacker.decompress(piece, _IDAT_BYTES)
                piece = unpacker.unconsumed_tail
        while not unpacker.eof:
            if not (rest := unpacker.decompress(b"", _IDAT_BYTES)):
                raise Unfit("is a PNG whose pixels are cut off")
            yield rest
    except zlib.error as error:
        raise Unfit("is a PNG whose pixels cannot be decompressed") from error


class _Rows:
    """Watches that what is decompressed is the rows of an image: each begins with a filter that there is, and all of
    them are there and nothing else."""

    def __init__(self, header: Header) -> None:
        self._rows = header.rows()
        self._next = 0
        """Bytes before the next row begins."""

    def see(self, raw: bytes) -> None:
        while self._next < len(raw):
            if raw[self._next] >= _FILTERS:
                raise Unfit("is a PNG whose pixels cannot be decoded")
            row = next(self._rows, 0)
            if not row:
                raise Unfit("is a PNG with more pixels than its header says")
            self._next += row
        self._next -= len(raw)

    def end(self) -> None:
        if self._next or next(self._rows, 0):
            raise Unfit("is a PNG with fewer pixels than its header says")


def _chunk(kind: bytes, content: bytes) -> bytes:
    crc = zlib.crc32(content, zlib.crc32(kind))
    return _CHUNK_HEAD.pack(len(content), kind) + content + crc.to_bytes(_CRC_BYTES, "big")
