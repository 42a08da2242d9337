# SPDX-License-Identifier: LGPL-2.1-or-later
"""A clip of an image is its pixels and nothing else, in a PNG of the core's making (M44)."""

from __future__ import annotations

import os
import struct
import zlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cage_runtime.model import IMAGE_BYTES_MAX, IMAGE_SIDE_MAX
from mediators.clipboard.image import SIGNATURE, copy, reencoded, size_of
from mediators.reading import Unfit
from tests.unit.mediators.clipboard.pictures import chunk, chunks, header, palette, png, rows

KINDS = [(depth, colour, interlaced) for colour, depths in (
    (0, (1, 2, 4, 8, 16)), (2, (8, 16)), (3, (1, 2, 4, 8)), (4, (8, 16)), (6, (8, 16)))
    for depth in depths for interlaced in (0, 1)]
SECRET = b"the diary of whoever made it"
MORE = {
    "tEXt": chunk(b"tEXt", b"Comment\0" + SECRET), "iTXt": chunk(b"iTXt", b"x\0\0\0\0\0" + SECRET),
    "eXIf": chunk(b"eXIf", SECRET), "iCCP": chunk(b"iCCP", b"p\0\0" + zlib.compress(SECRET)),
    "tIME": chunk(b"tIME", bytes(7)), "an application's": chunk(b"abCd", SECRET), "fdAT": chunk(b"fdAT", SECRET),
}


def unfit(content: bytes) -> str:
    with pytest.raises(Unfit) as refused:
        reencoded(content)
    return str(refused.value)


def pixels(image: bytes) -> Any:
    """As a decoder that is not ours has them."""
    import gi

    gi.require_version("GdkPixbuf", "2.0")
    from gi.repository import GdkPixbuf

    from cage_runtime.desktop.toolkit import GLib

    loader = GdkPixbuf.PixbufLoader.new_with_type("png")
    try:
        loader.write(image)
        loader.close()
    except GLib.Error as error:
        return error.message
    found = loader.get_pixbuf()
    return found.get_width(), found.get_height(), found.get_pixels()


@pytest.mark.parametrize(("depth", "colour", "interlaced"), KINDS)
@pytest.mark.parametrize(("width", "height"), [(1, 1), (3, 2), (13, 9), (64, 33)])
def test_the_pixels_stay_and_all_else_is_ours(
    width: int, height: int, depth: int, colour: int, interlaced: int
) -> None:
    image = png(width, height, depth, colour, interlaced)
    made = reencoded(image)
    assert size_of(made) == (width, height)
    assert pixels(made) == pixels(image)
    raw = zlib.decompress(b"".join(content for kind, content in chunks(made) if kind == b"IDAT"))
    assert raw == b"".join(rows(width, height, depth, colour, interlaced))
    assert reencoded(made) == made


@pytest.mark.parametrize("more", MORE.values(), ids=MORE)
def test_what_is_not_seen_is_stripped(more: bytes) -> None:
    plain = reencoded(png(8, 8))
    assert reencoded(png(8, 8, before=more)) == plain
    assert reencoded(png(8, 8, after=more)) == plain
    assert reencoded(png(8, 8) + more) == plain
    assert {kind for kind, _ in chunks(plain)} == {b"IHDR", b"IDAT", b"IEND"}


@pytest.mark.parametrize("behind", [b"PK\x03\x04", b"<html>", bytes(100)])
def test_what_is_behind_the_end_is_stripped(behind: bytes) -> None:
    """Nothing is an image and something else."""
    assert reencoded(png(8, 8) + behind) == reencoded(png(8, 8))
    hidden = SIGNATURE + header(8, 8) + chunk(b"IDAT", zlib.compress(b"".join(rows(8, 8))) + behind) + chunk(b"IEND")
    assert reencoded(hidden) == reencoded(png(8, 8))


def test_pixels_in_many_parts_are_one_image() -> None:
    packed = zlib.compress(b"".join(rows(8, 8)))
    parts = b"".join(chunk(b"IDAT", packed[at : at + 1]) + chunk(b"IDAT") for at in range(len(packed)))
    assert reencoded(SIGNATURE + header(8, 8) + parts + chunk(b"IEND")) == reencoded(png(8, 8))


def test_no_pixel_names_a_colour_that_is_not_there() -> None:
    made = dict(chunks(reencoded(png(4, 4, 4, 3, before=palette(3) + chunk(b"tRNS", b"\1\2")))))
    assert made[b"PLTE"] == bytes(range(9)) + bytes(3 * 13)
    assert made[b"tRNS"] == b"\1\2"


def test_a_transparent_colour_is_one_of_the_images() -> None:
    made = dict(chunks(reencoded(png(4, 4, 2, 0, before=chunk(b"tRNS", b"\xff\xfe")))))
    assert made[b"tRNS"] == b"\0\2"


HEADERS = [
    # width, height, depth, colour, interlaced
    (65_535, 65_535, 8, 6, 0), (65_535, 65_535, 1, 0, 0), (2**31 - 1, 1, 1, 0, 0), (2**32 - 1, 2**32 - 1, 16, 6, 1),
    (IMAGE_SIDE_MAX + 1, 1, 1, 0, 0), (1, IMAGE_SIDE_MAX + 1, 1, 0, 0), (IMAGE_SIDE_MAX, 1025, 1, 0, 0),
    (4096, 4096, 16, 6, 0),
]


@pytest.mark.parametrize("wrong", HEADERS)
def test_m44_an_image_that_is_too_large_is_refused_by_its_header(wrong: tuple[int, ...]) -> None:
    """Before anything is decompressed: there is nothing to decompress."""
    said = unfit(SIGNATURE + header(*wrong) + chunk(b"IDAT") + chunk(b"IEND"))
    assert said.startswith(f"is an image of {wrong[0]} by {wrong[1]}, and at most 16384 a side")


@pytest.mark.parametrize(("width", "height", "depth", "colour"), [(4096, 4096, 8, 6), (IMAGE_SIDE_MAX, 1024, 8, 6),
                                                                  (1024, IMAGE_SIDE_MAX, 8, 6), (2048, 4096, 16, 6)])
def test_the_largest_there_may_be(width: int, height: int, depth: int, colour: int) -> None:
    row = bytes(1 + width * depth // 8 * 4)
    assert size_of(reencoded(png(width, height, depth, colour, pixels=row * height))) == (width, height)


@pytest.mark.parametrize("wrong", [
    header(0, 1), header(1, 0), header(1, 1, 3, 0), header(1, 1, 16, 3), header(1, 1, 4, 2), header(1, 1, 8, 1),
    header(1, 1, 8, 5), header(1, 1, 8, 7), header(1, 1, 0, 0), header(1, 1, 8, 6, 2), header(1, 1, compression=1),
    header(1, 1, filters=1),
])
def test_a_header_that_no_image_has_is_refused(wrong: bytes) -> None:
    assert unfit(SIGNATURE + wrong + chunk(b"IDAT") + chunk(b"IEND")) == "is a PNG with a header that no image has"


def test_what_decompresses_to_more_or_less_than_the_header_says_is_refused() -> None:
    """As a bomb does: of a hundred times as much nothing is kept."""
    whole = b"".join(rows(8, 8))
    for raw in (whole + b"\0", whole * 100, whole + bytes(32 << 20)):
        assert unfit(png(8, 8, pixels=raw)) == "is a PNG with more pixels than its header says"
    for raw in (b"", whole[:-1], whole[:33]):
        assert unfit(png(8, 8, pixels=raw)) == "is a PNG with fewer pixels than its header says"


def test_an_image_that_is_too_much_once_compressed_again_is_refused() -> None:
    """Whatever it was before: here what is stored is stored."""
    raw = b"".join(b"\0" + os.urandom(4 * 2048) for _ in range(1100))
    assert len(raw) > IMAGE_BYTES_MAX
    assert "once it is compressed again" in unfit(png(2048, 1100, pixels=raw))


BROKEN = [
    (b"", "is no PNG"), (b"\xff\xd8\xff", "is no PNG"), (SIGNATURE, "is a PNG that is cut off"),
    (SIGNATURE + chunk(b"IEND"), "is a PNG without a header"),
    (SIGNATURE + chunk(b"IHDR", bytes(12)) + chunk(b"IEND"), "is a PNG with a header of another size"),
    (SIGNATURE + header(1, 1) + chunk(b"IEND"), "is a PNG with a part that is not known, or out of place"),
    (SIGNATURE + header(1, 1) + header(1, 1) + chunk(b"IEND"), "is a PNG with a part that is not known, or out"),
    (png(1, 1, before=chunk(b"EVIL")), "is a PNG with a part that is not known"),
    (png(1, 1, after=chunk(b"EVIL")), "is a PNG with a part that is not known"),
    (png(1, 1, after=chunk(b"tEXt") + chunk(b"IDAT")), "is a PNG with a part that is not known, or out of place"),
    (png(1, 1)[:-1], "is a PNG that is cut off"), (png(1, 1)[:-12], "is a PNG that is cut off"),
    (png(1, 1).replace(b"IDAT", b"IDaT"), "is a PNG that is damaged"),
    (SIGNATURE + struct.pack(">I", 2**32 - 1) + b"IHDR" + bytes(40), "is a PNG that is cut off"),
    (png(1, 1, pixels=b"\5" + bytes(4)), "is a PNG whose pixels cannot be decoded"),
    (SIGNATURE + header(1, 1) + chunk(b"IDAT", b"nonsense") + chunk(b"IEND"), "is a PNG whose pixels cannot be dec"),
    (SIGNATURE + header(1, 1) + chunk(b"IDAT", zlib.compress(bytes(5))[:-1]) + chunk(b"IEND"),
     "is a PNG whose pixels are cut off"),
    (SIGNATURE + header(1, 1, 8, 3) + chunk(b"IDAT", zlib.compress(bytes(2))) + chunk(b"IEND"), "without the palette"),
    (png(1, 1, 8, 0, before=palette(2)), "a palette that it cannot have"),
    (png(1, 1, 1, 3, before=palette(3)), "a palette that it cannot have"),
    (png(1, 1, 8, 3, before=palette(2) + palette(2)), "a palette that it cannot have"),
    (png(1, 1, 8, 3, before=chunk(b"PLTE", bytes(4))), "a palette that it cannot have"),
    (png(1, 1, 8, 3, before=chunk(b"tRNS", b"\0") + palette(2)), "a transparency that it cannot have"),
    (png(1, 1, 8, 6, before=chunk(b"tRNS", bytes(8))), "a transparency that it cannot have"),
    (png(1, 1, 8, 2, before=chunk(b"tRNS", bytes(2))), "a transparency that it cannot have"),
]


@pytest.mark.parametrize(("content", "says"), BROKEN)
def test_m44_what_is_broken_is_refused(content: bytes, says: str) -> None:
    assert says in unfit(content)


@given(st.data())
def test_whatever_a_part_is_changed_to_it_is_refused_or_the_same_kind_of_thing(data: st.DataObject) -> None:
    """With checksums that fit."""
    image = png(5, 4, 4, 3, data.draw(st.integers(0, 1)), before=palette(7) + chunk(b"tRNS", b"\1\2"))
    parts = [(bytearray(kind), bytearray(content)) for kind, content in chunks(image)]
    for _ in range(data.draw(st.integers(1, 4))):
        part = data.draw(st.sampled_from(data.draw(st.sampled_from(parts))))
        if part:
            part[data.draw(st.integers(0, len(part) - 1))] = data.draw(st.integers(0, 255))
    try:
        made = reencoded(SIGNATURE + b"".join(chunk(bytes(kind), bytes(content)) for kind, content in parts))
    except Unfit:
        return
    assert {kind for kind, _ in chunks(made)} <= {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"}
    assert isinstance(pixels(made), tuple)


def test_it_is_written_whole_and_by_its_offsets() -> None:
    image = png(300, 200, 16, 6)
    source, target = os.memfd_create("source"), os.memfd_create("target")
    try:
        os.write(source, image)
        written, digest = copy(source, target, len(image))
        assert os.pread(target, 1 << 22, 0) == reencoded(image)
        assert (written, len(digest)) == (os.fstat(target).st_size, 64)
        with pytest.raises(Unfit, match="cut off"):
            copy(source, target, len(image) - 20)
    finally:
        os.close(source)
        os.close(target)
