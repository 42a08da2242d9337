# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a copy out of a cage may become here: whatever the half there sends, it is whole and bounded, or not there."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from cage_runtime import packing
from cage_runtime.errors import CageError, NameTaken, TransferFailed
from cage_runtime.filenames import HIDDEN, TRANSFER_BYTES_MAX
from cage_runtime.packing import DIRECTORY, END, ENTRIES_MAX, FILE, LEAVE, PROGRAM, entry
from cage_runtime.placing import Placed, open_place, place


def stream(*entries: bytes, files: int | None = None, content: int | None = None, length: int | None = None,
           end: bool = True) -> bytes:
    """A stream of these, which says of itself what is true, or what is given."""
    body = b"".join(entries) + (entry(END) if end else b"")
    whole = packing.HEADER.size + len(body) if length is None else length
    return packing.header(len(entries) if files is None else files, content or 0, whole) + body


def of_file(name: str, content: bytes, kind: int = FILE, size: int | None = None) -> bytes:
    return entry(kind, name.encode(), len(content) if size is None else size) + content


def put(untrusted: bytes, directory: Path, name: str = "got", conflict: str = "fail") -> tuple[Placed, list[str]]:
    """What `place` says, and the digest that it passed with."""
    descriptor, passed = os.open(directory, os.O_RDONLY | os.O_DIRECTORY), list[str]()
    try:
        placed = place(io.BytesIO(untrusted).read, descriptor, name, conflict,
                       lambda whole: passed.append(whole.sha256))
    finally:
        os.close(descriptor)
    return placed, passed


def test_a_file_is_known_by_its_own_digest_and_a_tree_by_its_manifests(tmp_path: Path) -> None:
    placed, passed = put(stream(of_file("x", b"1"), content=1), tmp_path, "one")
    assert (placed.name, placed.size, placed.entries, [placed.sha256]) == ("one", 1, 1, passed)
    assert passed == [hashlib.sha256(b"1").hexdigest()]
    tree = stream(entry(DIRECTORY, b"t"), of_file("run", b"1", PROGRAM), entry(LEAVE), files=2, content=1)
    placed, passed = put(tree, tmp_path, "tree")
    lines = f"d 0 - t\nx 1 {hashlib.sha256(b'1').hexdigest()} t/run\n"
    assert passed == [hashlib.sha256(lines.encode()).hexdigest()]
    assert (tmp_path / "tree/run").stat().st_mode & 0o777 == 0o755
    assert sorted(os.listdir(tmp_path)) == ["one", "tree"]


ONE = of_file("x", b"1")
HOSTILE = {
    "nothing": b"",
    "half a header": packing.MAGIC,
    "another magic": b"x" * packing.HEADER.size,
    "no entry": stream(files=0),
    "another name above": stream(of_file("../x", b"1"), content=1),
    "a dot": stream(of_file("..", b"1"), content=1),
    "an absolute name": stream(of_file("/etc/x", b"1"), content=1),
    "an escape": stream(of_file("x\x1b[2J", b"1"), content=1),
    "no UTF-8": stream(entry(FILE, b"\xff", 1) + b"1", files=1, content=1),
    "a hidden name within": stream(entry(DIRECTORY, b"t"), of_file(".incoming-x", b"1"), entry(LEAVE), files=2,
                                   content=1),
    "two tops": stream(ONE, of_file("y", b"1"), content=2),
    "two of one name": stream(entry(DIRECTORY, b"t"), ONE, ONE, entry(LEAVE), files=3, content=2),
    "a kind that there is not": stream(entry(9, b"x", 0)),
    "a device, by another number": stream(entry(5, b"x", 0)),
    "a directory that is left twice": stream(entry(DIRECTORY, b"t"), entry(LEAVE), entry(LEAVE), files=1),
    "a directory that is not left": stream(entry(DIRECTORY, b"t"), files=1),
    "more than it says": stream(of_file("x", b"11"), content=1),
    "less than it says": stream(ONE, content=2),
    "more files than it says": stream(entry(DIRECTORY, b"t"), ONE, entry(LEAVE), files=1, content=1),
    "more after its end": stream(ONE, content=1) + b"more",
    "an end in between": stream(ONE, entry(END), files=1, content=1),
    "no end": stream(ONE, content=1, end=False),
    "cut off": stream(of_file("x", b"1" * 4096), content=4096)[:-100],
    "all bytes of the world": stream(of_file("x", b"1", size=2**63), content=2**63, length=2**63 + 50),
    "one byte more than goes": packing.header(1, TRANSFER_BYTES_MAX, TRANSFER_BYTES_MAX + 1),
    "a million files": packing.header(10**6, 0, 10**8),
    "a directory more than may be in one another": stream(
        *(entry(DIRECTORY, b"d") for _ in range(packing.DEPTH_MAX + 1)),
        *(entry(LEAVE) for _ in range(packing.DEPTH_MAX + 1)), files=packing.DEPTH_MAX + 1),
}


@pytest.mark.parametrize("untrusted", HOSTILE.values(), ids=HOSTILE)
def test_what_a_hostile_half_sends_is_not_there(tmp_path: Path, untrusted: bytes) -> None:
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(TransferFailed):
        put(untrusted, tmp_path)
    assert os.listdir(tmp_path) == []
    assert set(os.listdir("/proc/self/fd")) == before


def test_what_goes_on_for_ever_is_not_read_for_ever(tmp_path: Path) -> None:
    """A header that says little, and entries that do not end."""
    taken = 0

    def endless(most: int) -> bytes:
        nonlocal taken
        first = packing.header(2, 0, 100) if taken == 0 else b""
        taken += most
        return (first or (entry(FILE, b"x", 0) * most)[:most])[:most]

    descriptor = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    with pytest.raises(TransferFailed):
        place(endless, descriptor, "got", "fail")
    os.close(descriptor)
    assert taken < 1000
    assert os.listdir(tmp_path) == []


def test_a_tree_may_have_so_many_and_no_more(tmp_path: Path) -> None:
    with pytest.raises(TransferFailed, match=f"may have {ENTRIES_MAX}"):
        put(packing.header(ENTRIES_MAX + 1, 0, 2**30), tmp_path)


def test_a_full_disk_is_known_before_anything_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    room = os.statvfs_result((4096, 4096, 100, 1, 0, 10, 10, 10, 0, 255))
    monkeypatch.setattr(os, "fstatvfs", lambda _descriptor: room)
    with pytest.raises(OSError, match="No space left"):
        put(stream(of_file("x", b"1"), content=1), tmp_path)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("tree", [False, True])
def test_what_does_not_pass_gets_no_name(tmp_path: Path, tree: bool) -> None:
    untrusted = stream(entry(DIRECTORY, b"t"), entry(LEAVE), files=1) if tree else stream(ONE, content=1)
    seen: list[str] = []

    def refuse(_whole: Placed) -> None:
        seen.extend(os.listdir(tmp_path))
        raise CageError("not recorded")

    descriptor = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    with pytest.raises(CageError, match="not recorded"):
        place(io.BytesIO(untrusted).read, descriptor, "got", "replace", refuse)
    os.close(descriptor)
    assert [name.startswith(HIDDEN) for name in seen] == [True]
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("tree", [False, True])
def test_each_way_where_the_name_is_taken(tmp_path: Path, tree: bool) -> None:
    untrusted = stream(entry(DIRECTORY, b"t"), of_file("in", b"new"), entry(LEAVE), files=2, content=3) if tree else \
        stream(of_file("x", b"new"), content=3)
    (tmp_path / "got").mkdir()
    (tmp_path / "got/old").touch()
    with pytest.raises(NameTaken):
        put(untrusted, tmp_path)
    assert put(untrusted, tmp_path, conflict="skip")[0].name == ""
    assert os.listdir(tmp_path) == ["got"]
    assert put(untrusted, tmp_path, conflict="rename")[0].name == "got (2)"
    assert put(untrusted, tmp_path, conflict="replace")[0].name == "got"
    assert sorted(os.listdir(tmp_path)) == ["got", "got (2)"]
    there = tmp_path / ("got/in" if tree else "got")
    assert there.read_bytes() == b"new"


@contextlib.contextmanager
def left(directory: Path, name: str) -> Iterator[int]:
    path = directory / f"{HIDDEN}{name}"
    path.write_bytes(b"half")
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def test_what_was_cut_off_is_cleared_and_what_is_on_its_way_is_not(tmp_path: Path) -> None:
    (tmp_path / f"{HIDDEN}tree").mkdir()
    (tmp_path / f"{HIDDEN}tree/x").touch()
    (tmp_path / "outside").mkdir()
    (tmp_path / f"{HIDDEN}link").symlink_to("outside")
    os.mkfifo(tmp_path / f"{HIDDEN}fifo")
    with left(tmp_path, "going") as going, left(tmp_path, "cut"):
        fcntl.flock(going, fcntl.LOCK_EX)
        put(stream(ONE, content=1), tmp_path)
        assert sorted(os.listdir(tmp_path)) == [
            f"{HIDDEN}fifo", f"{HIDDEN}going", f"{HIDDEN}link", "got", "outside"]


@pytest.mark.parametrize(("path", "links", "where", "name"), [
    ("", False, ".", "x"), ("d", False, "d", "x"), ("d/", False, "d", "x"), ("d/new", False, "d", "new"),
    ("./d//new", False, "d", "new"), ("link", True, "d", "x"), ("d/../d", True, "d", "x"),
])
def test_where_a_path_says(tmp_path: Path, path: str, links: bool, where: str, name: str) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "link").symlink_to("d")
    top = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    directory, found = open_place(top, path, "x", links=links)
    assert (os.readlink(f"/proc/self/fd/{directory}"), found) == (str((tmp_path / where).resolve()), name)
    os.close(directory)
    os.close(top)


@pytest.mark.parametrize("path", ["..", "../x", "d/../../x", "link/x", "nothing/x", "nothing/", "file/x"])
def test_no_path_leads_out(tmp_path: Path, path: str) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "link").symlink_to("/etc")
    (tmp_path / "file").touch()
    top = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(CageError):
        open_place(top, path, "x", links=False)
    assert set(os.listdir("/proc/self/fd")) == before
    os.close(top)
