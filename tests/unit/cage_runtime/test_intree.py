# SPDX-License-Identifier: LGPL-2.1-or-later
"""Streams that somebody hostile may have made: all of one fits, or none of it is a tree (M20, M25, M26, M27)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cage_runtime.intree import Misfit, Tree, read_header
from cage_runtime.packing import (
    DEPTH_MAX,
    DIRECTORY,
    END,
    ENTRIES_MAX,
    FILE,
    HEADER,
    LEAVE,
    PATH_BYTES_MAX,
    PROGRAM,
    entry,
    header,
)
from mediators.files import protocol
from tests.unit.mediators.files.trees import DIGEST, TREE, Step, bare, body, stream

NO_TREE = "did not come as a tree comes"
CHANGED = "changed while it was read"


def read(raw: bytes, *, at_once: int = 1 << 20) -> tuple[list[tuple[int, str, bytes]], str]:
    """All that the reader gives for the stream, and the digest."""
    announced = read_header(raw[: HEADER.size])
    rest = raw[HEADER.size :]

    def source(most: int) -> bytes:
        nonlocal rest
        assert most <= announced.length - HEADER.size
        taken, rest = rest[: min(most, at_once)], rest[min(most, at_once) :]
        return taken

    tree = Tree(announced, source)
    steps = [(kind, name, b"".join(map(bytes, tree.content())) if kind in (FILE, PROGRAM) else b"")
             for kind, name in tree.steps()]
    return steps, tree.digest


@pytest.mark.parametrize("at_once", [1, 7, 4096, 1 << 20])
def test_what_was_written_is_read(at_once: int) -> None:
    steps, digest = read(stream(TREE), at_once=at_once)
    assert [(kind, name.encode(), content) for kind, name, content in steps] == TREE
    assert digest == DIGEST


def test_an_empty_directory_is_a_tree() -> None:
    assert read(stream([]))[0] == []


BAD_NAMES = {
    "up": b"..", "here": b".", "empty": b"", "absolute": b"/etc", "a path": b"a/../../b", "a double slash": b"a//b",
    "a slash at the end": b"a/", "option": b"-rf", "escape": b"\x1b[2J", "newline": b"a\nb", "NUL": b"a\0b",
    "bidi": "a\u202etxt.exe".encode(), "invisible": "a\u200bb".encode(), "space": b"a ", "dot": b"a.",
    "twin of Latin": "p\u0430ypal".encode(), "not UTF-8": b"\xff\xfe", "surrogate": b"\xed\xa0\x80",
    "256 bytes after NFC": ("\u0344" * 100).encode(), "on its way": b".incoming-0123",
}


@pytest.mark.parametrize("name", BAD_NAMES)
@pytest.mark.parametrize("kind", [DIRECTORY, FILE])
def test_a_name_is_one_component_that_can_be_seen(kind: int, name: str) -> None:
    """M20, M26: an entry goes where its directory is, and nowhere else."""
    with pytest.raises(Misfit, match=r"cannot be (a file's name|sent)|not UTF-8"):
        read(stream([(kind, BAD_NAMES[name], b""), *([(LEAVE, b"", b"")] if kind == DIRECTORY else [])]))


@pytest.mark.parametrize(
    ("first", "second"), [(b"a", b"a"), ("\u00e9".encode(), "e\u0301".encode()), ("\u212b".encode(), "\u00c5".encode())]
)
@pytest.mark.parametrize("kinds", [(FILE, FILE), (DIRECTORY, FILE), (FILE, DIRECTORY)])
def test_two_entries_of_one_name_are_none(first: bytes, second: bytes, kinds: tuple[int, int]) -> None:
    """M26: so are those that Unicode takes for the same."""
    steps: list[Step] = []
    for kind, name in zip(kinds, (first, second), strict=True):
        steps += [(kind, name, b""), *([(LEAVE, b"", b"")] if kind == DIRECTORY else [])]
    with pytest.raises(Misfit, match="has two entries"):
        read(stream(steps))


def test_a_directory_that_was_left_is_not_entered_again() -> None:
    again = [(DIRECTORY, b"a", b""), (LEAVE, b"", b"")]
    with pytest.raises(Misfit, match='two entries "a"'):
        read(stream(again * 2))


def nested(depth: int, name: bytes = b"d") -> list[Step]:
    return [(DIRECTORY, name, b"")] * depth + [(LEAVE, b"", b"")] * depth


def test_depth_has_a_bound() -> None:
    read(stream(nested(DEPTH_MAX - 1)))
    with pytest.raises(Misfit, match=f"more than {DEPTH_MAX} directories in one another"):
        read(stream(nested(DEPTH_MAX)))


def test_a_path_has_a_bound() -> None:
    """M20: of 16 385 bytes as of one too many."""
    fits = PATH_BYTES_MAX // 256
    read(stream(nested(fits, b"d" * 255)))
    with pytest.raises(Misfit, match=f"a path longer than {PATH_BYTES_MAX} bytes"):
        read(stream(nested(fits + 1, b"d" * 255)))


def test_a_million_files_are_refused_before_the_first() -> None:
    """M27: by what is announced; and where less is announced than comes, by that."""
    with pytest.raises(Misfit, match=f"has 1000000 files and directories, and a tree may have {ENTRIES_MAX}"):
        read_header(header(1_000_000, 0, 1 << 30))
    with pytest.raises(Misfit, match=CHANGED):
        read(stream([(FILE, b"%d" % number, b"") for number in range(1000)], entries=999))


@pytest.mark.parametrize(
    "raw", [b"", b"cagetree", b"x" * HEADER.size, header(0, 0, 0), header(1, 0, HEADER.size), header(1, 1 << 40, 99),
            header(0, 0, 1 << 20), header(2**32 - 1, 2**64 - 1, 2**64 - 1)[: HEADER.size - 1]],
)
def test_a_header_that_cannot_be_is_none(raw: bytes) -> None:
    with pytest.raises(Misfit, match=NO_TREE):
        read_header(raw)


def test_more_bytes_than_a_transfer_has_are_refused_by_the_header() -> None:
    size = protocol.TRANSFER_BYTES_MAX
    with pytest.raises(Misfit, match="is larger than the 64G"):
        read_header(header(1, size, size + 100))


LIES = {
    "more entries than came": (stream(TREE, entries=99), CHANGED),
    "fewer bytes than came": (stream(TREE, content=10), NO_TREE + "|" + CHANGED),
    "shorter than it is": (stream(TREE, length=len(stream(TREE)) - 1), CHANGED),
    "longer than it is": (stream(TREE, length=len(stream(TREE)) + 1), NO_TREE),
    "cut off": (stream(TREE)[:-5], "did not come whole"),
    "nothing but a header": (stream(TREE)[: HEADER.size], "did not come whole"),
    "a file larger than all": (header(1, 5, HEADER.size + 30) + bare(FILE, b"a", 1 << 60) + b"x" * 19, CHANGED),
    "no end": (stream(TREE, end=b""), CHANGED),
    "an end within": (stream([(DIRECTORY, b"a", b"")]), NO_TREE),
    "an end too early": (stream([(FILE, b"a", b""), (END, b"", b""), (FILE, b"b", b"")]), NO_TREE),
    "one leave too many": (stream([(LEAVE, b"", b"")]), NO_TREE),
    "a kind that is none": (stream([(9, b"a", b"")], entries=1, length=HEADER.size + 10 + 1 + 10), NO_TREE),
    "a directory with content": (stream([(DIRECTORY, b"a", b"x"), (LEAVE, b"", b"")]), NO_TREE),
    "a leave with a name": (stream([(DIRECTORY, b"a", b""), (LEAVE, b"x", b"")]), NO_TREE),
    "bytes after the end": (stream(TREE, end=entry(END) + b"x"), NO_TREE),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_stream_that_lies_is_no_tree(lie: str) -> None:
    raw, says = LIES[lie]
    with pytest.raises(Misfit, match=says):
        read(raw)


@given(st.binary(max_size=300), st.integers(0, 5), st.integers(0, 400))
def test_any_bytes_are_a_tree_or_a_misfit(tail: bytes, entries: int, content: int) -> None:
    raw = header(entries, content, HEADER.size + len(tail)) + tail
    try:
        steps, digest = read(raw)
    except Misfit:
        return
    rebuilt = stream([(kind, name.encode(), of) for kind, name, of in steps])
    assert read(rebuilt) == (steps, digest)


@given(st.data())
def test_a_tree_with_a_byte_changed_is_another_or_a_misfit(data: st.DataObject) -> None:
    raw = bytearray(stream(TREE))
    where = data.draw(st.integers(0, len(raw) - 1))
    raw[where] ^= data.draw(st.integers(1, 255))
    try:
        _, digest = read(bytes(raw))
    except Misfit:
        return
    assert digest != DIGEST


def test_the_steps_of_the_streams_in_these_tests_are_what_is_sent() -> None:
    assert body(TREE) + entry(END) == stream(TREE)[HEADER.size :]
