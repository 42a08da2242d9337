# SPDX-License-Identifier: LGPL-2.1-or-later
"""A copy and its digest are of the same bytes, whether there is a thread for the digest or not."""

from __future__ import annotations

import hashlib
import os
import threading
from pathlib import Path

import pytest

from cage_runtime.filenames import CHUNK
from mediators import digest

SIZES = (1, CHUNK - 1, CHUNK, CHUNK + 1, digest.LARGE - 1, digest.LARGE, digest.LARGE + CHUNK + 7)


def opened(folder: Path, content: bytes) -> tuple[int, int]:
    (folder / "source").write_bytes(content)
    return (os.open(folder / "source", os.O_RDONLY), os.open(folder / "target", os.O_RDWR | os.O_CREAT))


@pytest.mark.parametrize("size", SIZES)
def test_what_is_digested_is_what_is_written(tmp_path: Path, size: int) -> None:
    content = os.urandom(size)
    source, target = opened(tmp_path, content)
    seen: list[int] = []
    assert digest.copy(source, target, size, seen.append) == (size, hashlib.sha256(content).hexdigest())
    assert (tmp_path / "target").read_bytes() == content
    assert seen == [*range(CHUNK, size, CHUNK), size]
    assert os.lseek(source, 0, os.SEEK_CUR) == 0


@pytest.mark.parametrize("size", [CHUNK, digest.LARGE])
def test_a_longer_one_is_told_from_a_shorter(tmp_path: Path, size: int) -> None:
    source, target = opened(tmp_path, b"x" * size)
    assert digest.copy(source, target, size - 1) == (size, "")
    os.ftruncate(target, 0)
    os.lseek(target, 0, os.SEEK_SET)
    assert digest.copy(source, target, size + 1)[0] == size


@pytest.mark.parametrize("size", [CHUNK, digest.LARGE])
def test_what_cannot_be_written_leaves_no_thread(tmp_path: Path, size: int) -> None:
    source, target = opened(tmp_path, b"x" * size)
    os.close(target)
    target = os.open(tmp_path / "target", os.O_RDONLY)
    before = threading.active_count()
    with pytest.raises(OSError, match="Bad file descriptor"):
        digest.copy(source, target, size)
    assert threading.active_count() == before


def test_a_large_one_that_changes_is_digested_as_it_was_copied(tmp_path: Path) -> None:
    """The bytes that were written are those of the digest, whatever becomes of the source meanwhile."""
    source, target = opened(tmp_path, os.urandom(digest.LARGE))
    with (tmp_path / "source").open("r+b") as changing:
        def change(offset: int) -> None:
            changing.seek(max(0, offset - CHUNK))
            changing.write(os.urandom(CHUNK))
            changing.flush()

        _, sha256 = digest.copy(source, target, digest.LARGE, change)
    assert sha256 == hashlib.sha256((tmp_path / "target").read_bytes()).hexdigest()
