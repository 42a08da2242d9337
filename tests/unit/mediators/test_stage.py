# SPDX-License-Identifier: LGPL-2.1-or-later
"""Staging against every descriptor of M30 and the lies of M25: refused for its reason, or survived."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import hashlib
import os
import socket
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cage_runtime import packing
from cage_runtime.errors import PolicyRefused, RuntimeFailure, TransferFailed
from cage_runtime.model import TRANSFER_BYTES_MAX
from mediators import reading, stage
from mediators.reading import Copy, copy
from mediators.sniff import Sniffer
from mediators.stage import Staged, Stager
from tests.unit.mediators.files.trees import DIGEST, TREE, stream

CONTENT = b"quarterly figures\n" * 100_000
WORK, VAULT = "1" * 32, "2" * 32


def staged(
    tmp_path: Path, descriptor: int, *, copier: Copy = copy, seconds: float = 20.0, policy_max: int = 0
) -> Staged:
    async def run() -> Staged:
        return await Stager(tmp_path / "staging", copier=copier, seconds=seconds).stage(descriptor, WORK, policy_max)

    return asyncio.run(run())


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "figures.txt"
    path.write_bytes(CONTENT)
    return path


def test_a_file_is_copied_whole(tmp_path: Path, file: Path) -> None:
    descriptor = os.open(file, os.O_RDONLY)
    os.lseek(descriptor, 1000, os.SEEK_SET)
    copied = staged(tmp_path, descriptor)
    assert os.pread(copied.descriptor, len(CONTENT) + 1, 0) == CONTENT
    assert (copied.size, copied.sha256) == (len(CONTENT), hashlib.sha256(CONTENT).hexdigest())
    assert list((tmp_path / "staging").iterdir()) == []


def test_the_copy_cannot_be_written_through_and_has_no_name(tmp_path: Path, file: Path) -> None:
    copied = staged(tmp_path, os.open(file, os.O_RDONLY))
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.write(copied.descriptor, b"x")
    status = os.fstat(copied.descriptor)
    assert (status.st_nlink, status.st_mode & 0o777) == (0, 0o600)
    assert not os.get_inheritable(copied.descriptor)
    with pytest.raises(FileNotFoundError):
        os.link(f"/proc/self/fd/{copied.descriptor}", tmp_path / "name", follow_symlinks=True, src_dir_fd=0)


def memfd(content: bytes) -> int:
    descriptor = os.memfd_create("m")
    os.write(descriptor, content)
    return descriptor


def pipe_end(_file: Path) -> int:
    return os.pipe()[0]


def half_of_a_socket(_file: Path) -> int:
    return socket.socketpair()[0].detach()


REFUSED: dict[str, tuple[Callable[[Path], int], str]] = {
    "directory": (lambda file: os.open(file.parent, os.O_RDONLY), "is a directory, not a regular file"),
    "pipe": (pipe_end, "is a pipe, not a regular file"),
    "socket": (half_of_a_socket, "is a socket, not a regular file"),
    "device": (lambda _file: os.open("/dev/zero", os.O_RDONLY), "is a device, not a regular file"),
    "eventfd": (lambda _file: os.eventfd(1), "is not a regular file"),
    "path": (lambda file: os.open(file, os.O_PATH), "was not opened for reading"),
    "link": (lambda file: os.open(link(file), os.O_PATH | os.O_NOFOLLOW), "was not opened for reading"),
    "write-only": (lambda file: os.open(file, os.O_WRONLY), "was not opened for reading"),
    "memory": (lambda _file: os.open("/proc/self/mem", os.O_RDONLY), "is empty; there is nothing to send"),
    "empty": (lambda _file: memfd(b""), "is empty; there is nothing to send"),
    "sparse": (lambda file: sparse(file, 1 << 40), "is larger than the 64G that a transfer takes"),
}


def link(file: Path) -> Path:
    name = file.parent / "link"
    name.symlink_to(file)
    return name


def sparse(file: Path, size: int) -> int:
    descriptor = os.open(file.parent / "sparse", os.O_RDWR | os.O_CREAT)
    os.ftruncate(descriptor, size)
    return descriptor


@pytest.mark.parametrize("kind", REFUSED)
def test_a_descriptor_that_is_no_plain_file_is_refused_for_its_reason(tmp_path: Path, file: Path, kind: str) -> None:
    make, reason = REFUSED[kind]
    with pytest.raises(TransferFailed) as refused:
        staged(tmp_path, make(file))
    assert refused.value.sentence == reason


def test_the_largest_transfer_is_the_models() -> None:
    assert f"{TRANSFER_BYTES_MAX >> 30}G" == "64G"


def test_the_bound_of_a_rule_is_a_refusal(tmp_path: Path, file: Path) -> None:
    with pytest.raises(PolicyRefused, match="is larger than the 10 bytes that the policy lets through at once"):
        staged(tmp_path, os.open(file, os.O_RDONLY), policy_max=10)
    assert staged(tmp_path, os.open(file, os.O_RDONLY), policy_max=len(CONTENT)).size == len(CONTENT)


def while_copying(act: Callable[[], object]) -> Copy:
    """A copier before whose second read `act` happens, as another process would do it."""

    def copier(source: int, target: int, size: int) -> tuple[int, str]:
        preadv, calls = os.preadv, [0]

        def acting_preadv(descriptor: int, buffers: Sequence[memoryview], offset: int) -> int:
            calls[0] += 1
            if calls[0] == 2:
                act()
            return preadv(descriptor, buffers, offset)

        os.preadv = acting_preadv  # type: ignore[assignment]  # in the worker process alone
        return copy(source, target, size)

    return copier


def test_an_unsealed_memfd_that_shrinks_is_survived(tmp_path: Path) -> None:
    descriptor = memfd(CONTENT)
    with pytest.raises(TransferFailed, match="changed while it was read"):
        staged(tmp_path, descriptor, copier=while_copying(lambda: os.ftruncate(descriptor, 10)))


def test_an_unsealed_memfd_that_stays_is_sent(tmp_path: Path) -> None:
    assert staged(tmp_path, memfd(CONTENT)).size == len(CONTENT)


def test_a_file_that_grows_while_it_is_read_is_refused(tmp_path: Path, file: Path) -> None:
    descriptor = os.open(file, os.O_RDWR | os.O_APPEND)
    with pytest.raises(TransferFailed, match="changed while it was read"):
        staged(tmp_path, descriptor, copier=while_copying(lambda: os.write(descriptor, b"more")))


def test_a_file_that_is_written_in_place_while_it_is_read_is_refused(tmp_path: Path, file: Path) -> None:
    descriptor = os.open(file, os.O_RDWR)
    os.utime(descriptor, ns=(1, 1))
    with pytest.raises(TransferFailed, match="changed while it was read"):
        staged(tmp_path, descriptor, copier=while_copying(lambda: os.pwrite(descriptor, b"x", 0)))


def hang(_source: int, _target: int, _size: int) -> tuple[int, str]:
    ctypes.CDLL(None).pause()
    return 1, ""


def test_a_file_that_never_answers_is_given_up_at_the_deadline(tmp_path: Path, file: Path) -> None:
    before = children()

    async def run() -> None:
        with pytest.raises(TransferFailed, match="could not be read within 0 s"):
            await Stager(tmp_path / "staging", copier=hang, seconds=0.1).stage(os.open(file, os.O_RDONLY), WORK)
        while children() - before:  # its reader is killed, and reaped when it has gone
            await asyncio.sleep(0)

    asyncio.run(run())


def children() -> set[str]:
    """The pids of this process's children; other tests may have left some."""
    return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())



def test_a_full_core_says_so(tmp_path: Path, file: Path) -> None:
    def full(_source: int, _target: int, _size: int) -> tuple[int, str]:
        raise OSError(errno.EDQUOT, "quota")

    with pytest.raises(TransferFailed, match="the core has no space left for it"):
        staged(tmp_path, os.open(file, os.O_RDONLY), copier=full)


class Room:
    """What statvfs(3) says of a disk of 100 blocks of a megabyte, of which so many are free."""

    f_blocks, f_frsize = 100, 1 << 20

    def __init__(self, f_bavail: int) -> None:
        self.f_bavail = f_bavail


def memfds(*sizes: int) -> list[int]:
    return [memfd(os.urandom(size)) for size in sizes]


def test_the_reserve_of_the_disk_is_left_by_all_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two copies that have been granted, and of which nothing is on the disk yet, count: 15 MiB less 5 % are 10 MiB."""
    monkeypatch.setattr(os, "statvfs", lambda _path: Room(15))

    async def run() -> None:
        stager = Stager(tmp_path / "staging", copier=hang)
        stagings = [asyncio.ensure_future(stager.stage(descriptor, owner))
                    for descriptor, owner in zip(memfds(6 << 20, 3 << 20), (WORK, VAULT), strict=True)]
        while sorted(staged.size for staged in stager._under_way) != [3 << 20, 6 << 20]:
            await asyncio.sleep(0)
        with pytest.raises(TransferFailed, match="the core has no space left for it"):
            await stager.stage(*memfds((1 << 20) + 1), WORK)
        for staging in stagings:
            staging.cancel()
        await asyncio.gather(*stagings, return_exceptions=True)
        stager = Stager(tmp_path / "staging")
        (await stager.stage(*memfds(10 << 20), WORK)).discard()

    asyncio.run(run())


def test_a_copy_that_is_on_the_disk_counts_there_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "statvfs", lambda _path: Room(15))

    async def run() -> None:
        stager = Stager(tmp_path / "staging")
        for staged in [await stager.stage(*memfds(9 << 20), WORK), await stager.stage(*memfds(9 << 20), WORK)]:
            staged.discard()

    asyncio.run(run())


def test_what_a_cage_has_under_way_is_bounded_and_no_other_cage_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "STAGED_BYTES_PER_CAGE", 3000)

    async def run() -> None:
        stager = Stager(tmp_path / "staging")
        first = await stager.stage(*memfds(2000), WORK)
        with pytest.raises(TransferFailed, match="cannot be sent while others are"):
            await stager.stage(*memfds(1001), WORK)
        others = [await stager.stage(*memfds(1000), WORK), await stager.stage(*memfds(3000), VAULT)]
        first.discard()
        for staged in [*others, await stager.stage(*memfds(2000), WORK)]:
            staged.discard()

    asyncio.run(run())


def test_a_copy_that_is_given_up_takes_no_space_whoever_holds_it(tmp_path: Path, file: Path) -> None:
    """As a target that stops its delivery half and keeps the descriptor."""
    before = set(os.listdir("/proc/self/fd"))
    with open(file, "rb") as source:
        copied = staged(tmp_path, source.fileno())
    kept = os.dup(copied.descriptor)
    assert os.fstat(kept).st_blocks * 512 >= len(CONTENT)
    copied.discard()
    assert (os.fstat(kept).st_size, os.fstat(kept).st_blocks) == (0, 0)
    os.close(kept)
    assert set(os.listdir("/proc/self/fd")) == before


def test_a_sparse_file_is_refused(tmp_path: Path, file: Path) -> None:
    descriptor = sparse(file, 64 << 20)
    os.pwrite(descriptor, b"x" * (1 << 20), 8 << 20)
    os.lseek(descriptor, 4711, os.SEEK_SET)
    with pytest.raises(TransferFailed) as refused:
        staged(tmp_path, descriptor)
    assert refused.value.sentence == f"is sparse: {64 << 20} bytes, of which {1 << 20} are there; " \
        "copy it without holes first"
    assert os.lseek(descriptor, 0, os.SEEK_CUR) == 4711


def test_a_sparse_file_in_memory_is_refused(tmp_path: Path) -> None:
    descriptor = memfd(b"x")
    os.ftruncate(descriptor, 64 << 20)
    with pytest.raises(TransferFailed, match="is sparse: 67108864 bytes, of which 4096 are there"):
        staged(tmp_path, descriptor)


@pytest.mark.parametrize(("size", "there"), [((1 << 20) + 4096, 4096), (64 << 20, 32 << 20)])
def test_a_few_holes_do_not_matter(tmp_path: Path, file: Path, size: int, there: int) -> None:
    descriptor = sparse(file, size)
    os.pwrite(descriptor, b"x" * there, 0)
    copied = staged(tmp_path, descriptor)
    assert copied.size == size
    copied.discard()


def test_what_a_file_system_compresses_is_not_sparse(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has fewer blocks than bytes, and no hole."""
    descriptor = os.open(file, os.O_RDWR)
    os.ftruncate(descriptor, 0)
    os.write(descriptor, b"x" * (8 << 20))
    real = os.fstat(descriptor)
    values = {name: getattr(real, name) for name in ("st_mode", "st_size")} | {"st_blocks": 8}
    monkeypatch.setattr(os, "fstat", lambda _descriptor: SimpleNamespace(**values))
    assert reading.measure(descriptor) == 8 << 20


@pytest.mark.parametrize("act", [
    lambda descriptor: os.write(descriptor, b"more"),
    lambda descriptor: (os.ftruncate(descriptor, 0), os.ftruncate(descriptor, len(CONTENT))),
], ids=["grows", "loses its content"])
def test_a_file_that_changes_once_it_was_measured_is_refused(
    tmp_path: Path, file: Path, act: Callable[[int], object]
) -> None:
    descriptor = os.open(file, os.O_RDWR | os.O_APPEND)
    os.utime(descriptor, ns=(1, 1))

    def changed(source: int, target: int, size: int) -> tuple[int, str]:
        act(descriptor)
        return copy(source, target, size)

    with pytest.raises(TransferFailed, match="changed while it was read"):
        staged(tmp_path, descriptor, copier=changed)


def test_a_worker_that_dies_is_a_failure_of_the_runtime(tmp_path: Path, file: Path) -> None:
    def crash(_source: int, _target: int, _size: int) -> tuple[int, str]:
        os.kill(os.getpid(), 11)
        return 1, ""

    with pytest.raises(RuntimeFailure, match="the process that copied it failed"):
        staged(tmp_path, os.open(file, os.O_RDONLY), copier=crash)


def is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def test_a_worker_can_open_nothing(tmp_path: Path, file: Path) -> None:
    """Not what the core half can, nor what /proc has of it: what a cage has made is parsed there."""
    parent = os.getpid()

    def look(_source: int, _target: int, _size: int) -> tuple[int, str]:
        refused = 0
        for path in (str(file), str(tmp_path), f"/proc/{parent}/mem", f"/proc/{parent}/fd", "/etc/passwd"):
            try:
                os.open(path, os.O_RDONLY)
            except PermissionError:
                refused += 1
        return refused, "0"

    assert staged(tmp_path, os.open(file, os.O_RDONLY), copier=look).size == 5


TYPES = {
    "application/pdf": b"%PDF-1.5\n%\xb5\xed\n", "image/png": b"\x89PNG\r\n\x1a\n" + b"\0\0\0\rIHDR" + b"\0" * 17,
    "text/plain": b"hello\nworld\n", "text/x-shellscript": b"#!/bin/sh\necho\n",
}


@pytest.mark.parametrize("kind", TYPES)
def test_a_file_is_what_is_in_it(tmp_path: Path, kind: str) -> None:
    """Whatever it is called."""
    path = tmp_path / "picture.gif"
    path.write_bytes(TYPES[kind])

    async def run() -> Staged:
        stager = Stager(tmp_path / "staging", sniffer=Sniffer())
        return await stager.stage(os.open(path, os.O_RDONLY), WORK, typed=True)

    assert asyncio.run(run()).types == (kind,)


def test_where_nobody_can_tell_what_a_file_is_none_passes(tmp_path: Path, file: Path) -> None:
    async def run() -> None:
        await Stager(tmp_path / "staging").stage(os.open(file, os.O_RDONLY), WORK, typed=True)

    with pytest.raises(RuntimeFailure, match="has no libmagic"):
        asyncio.run(run())


def test_a_tree_has_the_types_of_all_its_files(tmp_path: Path) -> None:
    steps = [(packing.FILE, b"%d" % number, content) for number, content in enumerate(TYPES.values())]
    copied = staged_tree(tmp_path, stream(steps), typed=True)
    assert copied.types == tuple(sorted(TYPES))


@settings(max_examples=50)
@given(start=st.binary(max_size=200))
def test_any_bytes_have_a_type_that_can_be_told(start: bytes) -> None:
    found = Sniffer().type_of(start)
    assert found.count("/") == 1
    assert found.isascii()
    assert found.isprintable()


def test_a_worker_holds_nothing_but_what_it_copies(tmp_path: Path, file: Path) -> None:
    secret = os.open(file, os.O_RDONLY)

    def count(_source: int, _target: int, _size: int) -> tuple[int, str]:
        return sum(is_open(descriptor) for descriptor in range(1024)), str(secret)

    assert staged(tmp_path, os.open(file, os.O_RDONLY), copier=count).size == 3


def test_a_worker_does_not_outlive_the_core_half(tmp_path: Path, file: Path) -> None:
    """The core half is killed while its worker hangs: the worker's end of a pipe closes."""
    near, far = os.pipe()

    def secluded(parent: int, keep: set[int]) -> None:
        seclude(parent, keep | {far})
        os.write(far, b"started")

    seclude, stage._seclude = stage._seclude, secluded
    pid = os.fork()
    if pid == 0:
        try:
            staged(tmp_path, os.open(file, os.O_RDONLY), copier=hang)
        finally:
            os._exit(1)
    stage._seclude = seclude
    os.close(far)
    assert os.read(near, 7) == b"started"
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    assert os.read(near, 1) == b""
    os.close(near)


# --- trees -------------------------------------------------------------------------------------------------------
def staged_tree(tmp_path: Path, raw: bytes, *, max_size: int = 0, max_files: int = 0, seconds: float = 20.0,
                keep_open: bool = False, typed: bool = False) -> Staged:
    """The stream as it comes through a pipe, whose writing end may stay open."""
    async def run() -> Staged:
        near, far = os.pipe()
        writer = threading.Thread(target=_fill, args=(far, raw, keep_open))
        writer.start()
        try:
            stager = Stager(tmp_path / "staging", seconds=seconds, sniffer=Sniffer())
            return await stager.stage_tree(near, WORK, max_size, max_files, typed=typed)
        finally:
            os.close(near)
            await asyncio.to_thread(writer.join)
            if keep_open:
                os.close(far)

    return asyncio.run(run())


def _fill(far: int, raw: bytes, keep_open: bool) -> None:
    with contextlib.suppress(BrokenPipeError):
        rest = memoryview(raw)
        while rest:
            rest = rest[os.write(far, rest[:4096]) :]
    if not keep_open:
        os.close(far)


def test_a_tree_is_kept_as_it_came(tmp_path: Path) -> None:
    raw = stream(TREE)
    copied = staged_tree(tmp_path, raw)
    assert os.pread(copied.descriptor, len(raw) + 1, 0) == raw
    content = sum(len(of) for _, _, of in TREE)
    assert (copied.size, copied.content, copied.files, copied.sha256) == (len(raw), content, 6, DIGEST)


@pytest.mark.parametrize(
    ("bounds", "says"),
    [({"max_size": 10}, "is larger than the 10 bytes"), ({"max_files": 5}, "has more than the 5 files")],
)
def test_a_tree_beyond_what_policy_lets_through_is_refused_as_announced(
    tmp_path: Path, bounds: dict[str, int], says: str
) -> None:
    """M27: nothing but the header has been read, or has to have come."""
    with pytest.raises(PolicyRefused, match=says):
        staged_tree(tmp_path, stream(TREE)[: packing.HEADER.size], keep_open=True, **bounds)


@pytest.mark.parametrize(
    ("raw", "says"),
    [(b"", "did not come as a tree comes"), (stream(TREE)[:-20], "did not come whole"),
     (stream([(packing.FILE, b"../x", b"1")]), "cannot be a file's name"),
     (packing.header(1_000_000, 0, 1 << 30), "has 1000000 files and directories"),
     (packing.header(1, 1 << 28, (1 << 28) + 50), "did not come whole")],
    ids=["nothing", "cut off", "a name", "a million", "less than announced"],
)
def test_a_stream_that_is_no_tree_is_refused_for_its_reason(tmp_path: Path, raw: bytes, says: str) -> None:
    with pytest.raises(TransferFailed, match=says):
        staged_tree(tmp_path, raw)
    assert list((tmp_path / "staging").iterdir()) == []


def test_a_stream_that_stops_has_its_time_and_no_more(tmp_path: Path) -> None:
    """M25: as a file of a file system that never answers."""
    with pytest.raises(TransferFailed, match="could not be read within"):
        staged_tree(tmp_path, stream(TREE)[:50], keep_open=True, seconds=0.3)
