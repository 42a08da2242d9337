# SPDX-License-Identifier: LGPL-2.1-or-later
"""A copy and its digest are of the same bytes, whether there is a thread for the digest or not."""

from __future__ import annotations

import errno
import fcntl
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


# --- to the disk -------------------------------------------------------------------------------------------------
def is_direct(descriptor: int) -> bool:
    return bool(fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT)


@pytest.mark.parametrize("size", SIZES)
def test_what_goes_to_the_disk_at_once_is_the_same(tmp_path: Path, size: int) -> None:
    """/var/tmp is where the page cache can be gone past, as the homes are."""
    content = os.urandom(size)
    source, _ = opened(tmp_path, content)
    target = os.open("/var/tmp", os.O_RDWR | os.O_TMPFILE, 0o600)
    os.posix_fallocate(target, 0, size)
    ways = set[bool]()
    copied = digest.copy(source, target, size, lambda _offset: ways.add(is_direct(target)), to_disk=True)
    assert copied == (size, hashlib.sha256(content).hexdigest())
    assert os.pread(target, size + 1, 0) == content
    assert (True in ways, is_direct(target)) == (size >= digest.LARGE, False)


def test_a_file_system_that_has_no_such_way_is_written_to_all_the_same(tmp_path: Path,
                                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_descriptor: int, _what: int, flags: int = 0) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return 0

    monkeypatch.setattr(fcntl, "fcntl", refuse)
    source, target = opened(tmp_path, b"x" * digest.LARGE)
    assert digest.copy(source, target, digest.LARGE, to_disk=True)[0] == digest.LARGE
    assert (tmp_path / "target").stat().st_size == digest.LARGE


def test_a_disk_of_other_blocks_is_written_to_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some of a chunk is written past the page cache, and the rest cannot be."""
    write, content = os.write, os.urandom(digest.LARGE)

    def some(descriptor: int, chunk: memoryview) -> int:
        if is_direct(descriptor) and len(chunk) < CHUNK:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return write(descriptor, chunk[: digest.BLOCK] if is_direct(descriptor) else chunk)

    monkeypatch.setattr(os, "write", some)
    source, target = opened(tmp_path, content)
    copied = digest.copy(source, target, len(content), to_disk=True)
    assert copied == (len(content), hashlib.sha256(content).hexdigest())
    assert (tmp_path / "target").read_bytes() == content


def test_a_full_disk_is_an_error_that_way_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, _chunk: memoryview) -> int:
        assert is_direct(descriptor)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    source, target = opened(tmp_path, b"x" * digest.LARGE)
    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space left"):
        digest.copy(source, target, digest.LARGE, to_disk=True)
    assert not is_direct(target)
