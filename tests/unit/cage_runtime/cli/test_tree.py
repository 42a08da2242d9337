# SPDX-License-Identifier: LGPL-2.1-or-later
"""A directory on its way out: what is in the stream, what is refused, what is removed and what is kept (M21, M31)."""

from __future__ import annotations

import hashlib
import os
import socket
from pathlib import Path

import pytest

from cage_runtime import packing
from cage_runtime.cli.tree import Listing, remove, write
from cage_runtime.errors import CageError, InvalidName
from cage_runtime.intree import Manifest, Tree, read_header
from tests.unit.mediators.files.trees import TREE, stream


@pytest.fixture
def top(tmp_path: Path) -> Path:
    top = tmp_path / "papers"
    (top / "sub/deep").mkdir(parents=True)
    (top / "a.txt").write_bytes(b"first\n")
    (top / "sub/run").write_bytes(b"#!/bin/sh\n")
    (top / "sub/run").chmod(0o4755)
    (top / "sub/none").touch()
    (top / "z").write_bytes(b"last" * 1000)
    return top


def listed(top: Path) -> tuple[int, Listing]:
    descriptor = os.open(top, os.O_RDONLY | os.O_DIRECTORY)
    return descriptor, Listing.of(descriptor, "papers")


def written(top: Path, tmp_path: Path) -> bytes:
    descriptor, listing = listed(top)
    out = tmp_path / "out"
    into = os.open(out, os.O_WRONLY | os.O_CREAT)
    write(into, descriptor, listing)
    return out.read_bytes()


def test_the_stream_is_what_the_mediator_reads(top: Path, tmp_path: Path) -> None:
    """By name, with what is in a directory after it."""
    sub = [(packing.DIRECTORY, b"sub", b""), (packing.DIRECTORY, b"deep", b""), (packing.LEAVE, b"", b""),
           (packing.FILE, b"none", b""), (packing.PROGRAM, b"run", b"#!/bin/sh\n"), (packing.LEAVE, b"", b"")]
    assert written(top, tmp_path) == stream([TREE[0], *sub, TREE[-1]])


def odd(top: Path, kind: str) -> None:
    place = top / "sub/odd"
    if kind == "link":
        place.symlink_to("/etc/passwd")
    elif kind == "fifo":
        os.mkfifo(place)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(os.path.relpath(place))
    else:
        place.joinpath(*["d"] * packing.DEPTH_MAX).mkdir(parents=True)


@pytest.mark.parametrize(
    ("kind", "says"),
    [("link", '"papers/sub/odd" is a symbolic link'), ("fifo", '"papers/sub/odd" is neither a file nor a directory'),
     ("socket", '"papers/sub/odd" is neither'), ("depth", '"papers" has more than 64 directories in one another')],
)
def test_what_is_neither_file_nor_directory_is_named(
    top: Path, kind: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """M21."""
    monkeypatch.chdir(top)
    odd(top, kind)
    with pytest.raises(CageError, match=says):
        listed(top)


def test_hard_links_are_files(top: Path, tmp_path: Path) -> None:
    os.link(top / "a.txt", top / "b.txt")
    assert written(top, tmp_path).count(b"first\n") == 2


@pytest.mark.parametrize("change", ["longer", "shorter", "other", "link"])
def test_what_changes_between_the_looks_ends_the_whole(top: Path, tmp_path: Path, change: str) -> None:
    descriptor, listing = listed(top)
    if change == "link":
        (top / "z").unlink()
        (top / "z").symlink_to("/etc/passwd")
    else:
        (top / "z").write_bytes({"longer": b"x" * 5000, "shorter": b"x", "other": b"x" * 4000}[change])
    into = os.open(tmp_path / "out", os.O_WRONLY | os.O_CREAT)
    with pytest.raises(CageError, match=r'"papers/z" (changed while it was read|cannot be read)'):
        write(into, descriptor, listing)


def test_what_is_moved_is_removed(top: Path) -> None:
    descriptor, listing = listed(top)
    assert remove(descriptor, listing) == ""
    assert os.listdir(top) == []


@pytest.mark.parametrize(
    ("change", "kept", "left"),
    [("write", "papers/z", ["z"]), ("new", "papers/sub", ["sub", "sub/new"]),
     ("swap", "papers/sub/none", ["sub", "sub/none"]), ("gone", "papers/z", [])],
)
def test_what_is_not_as_it_was_read_is_kept(top: Path, change: str, kept: str, left: list[str]) -> None:
    """M31."""
    descriptor, listing = listed(top)
    if change == "write":
        (top / "z").write_text("new")
    elif change == "new":
        (top / "sub/new").touch()
    elif change == "swap":
        (top / "sub/none").unlink()
        (top / "sub/none").symlink_to("/etc/passwd")
    else:
        (top / "z").unlink()
    assert remove(descriptor, listing) == kept
    assert sorted(str(path.relative_to(top)) for path in top.rglob("*")) == left
    assert Path("/etc/passwd").exists()


def test_a_directory_that_became_a_link_is_not_followed(top: Path, tmp_path: Path) -> None:
    descriptor, listing = listed(top)
    (top / "sub").rename(tmp_path / "elsewhere")
    (top / "sub").symlink_to(tmp_path / "elsewhere")
    assert remove(descriptor, listing) == "papers/sub"
    assert sorted(os.listdir(tmp_path / "elsewhere")) == ["deep", "none", "run"]


# --- what both sides of a copy say of it ---------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["papers", "papers/z", "papers/sub/none", "papers/sub"])
def test_who_writes_and_who_reads_come_to_the_same_digest(top: Path, tmp_path: Path, name: str) -> None:
    (top / "sub/cafe\u0301").write_bytes(b"in two characters")  # which arrives in one
    above = os.open((tmp_path / name).parent, os.O_RDONLY | os.O_DIRECTORY)
    listing, manifest = Listing.of_entry(above, Path(name).name, name), Manifest()
    into = os.open(tmp_path / "out", os.O_RDWR | os.O_CREAT)
    write(into, above, listing, manifest=manifest)
    os.close(above)
    with open(into, "rb") as out:
        out.seek(0)
        tree = Tree(read_header(out.read(packing.HEADER.size)), out.read)
        for kind, _ in tree.steps():
            if kind in (packing.FILE, packing.PROGRAM):
                list(tree.content())
    assert (manifest.digest, manifest.content) == (tree.manifest.digest, tree.manifest.content)
    assert (tree.digest, manifest.entries) == (manifest.digest, listing.entries)
    if (tmp_path / name).is_file():
        assert manifest.content == hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()


def test_a_name_that_cannot_be_received_is_not_begun_with_where_it_is_to_be_the_same(top: Path, tmp_path: Path) -> None:
    (top / "sub/x\x1b").touch()
    descriptor, listing = listed(top)
    into = os.open(tmp_path / "out", os.O_WRONLY | os.O_CREAT)
    with pytest.raises(InvalidName, match="cannot be seen"):
        write(into, descriptor, listing, manifest=Manifest())
    os.close(into)
    os.close(descriptor)


def test_a_directory_of_a_million_files_is_not_looked_through(top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "ENTRIES_MAX", 3)
    with pytest.raises(CageError, match='"papers" has more than 3 files and directories; send it in parts'):
        listed(top)
