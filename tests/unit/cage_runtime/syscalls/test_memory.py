# SPDX-License-Identifier: LGPL-2.1-or-later
"""Writing where a process could write itself, and nowhere else; in this process, by both ways to know its mappings."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
from collections.abc import Iterator

import pytest

from cage_runtime.syscalls import memory
from cage_runtime.syscalls.memory import Memory

LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.mmap.restype = ctypes.c_void_p
LIBC.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
PAGE = mmap.PAGESIZE
READ, WRITE, EXECUTE = 1, 2, 4
CONTENT = b"written" * 16


@pytest.fixture(params=["query", "list"])
def of_ours(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Memory]:
    if request.param == "list":
        # A number that no file has, as before Linux 6.11.
        monkeypatch.setattr(memory, "PROCMAP_QUERY", 0xC06866FF)
    with Memory.of("/proc", os.getpid()) as ours:
        yield ours


def mapped(protection: int, pages: int = 1) -> int:
    address = LIBC.mmap(None, pages * PAGE, READ | WRITE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
    assert address not in (None, ctypes.c_void_p(-1).value)
    LIBC.mprotect(ctypes.c_void_p(address), pages * PAGE, protection)
    return int(address)


def refused(ours: Memory, address: int) -> bool:
    with pytest.raises(OSError) as caught:
        ours.write(address, CONTENT)
    return caught.value.errno == errno.EFAULT


def test_what_can_be_written_is(of_ours: Memory) -> None:
    address = mapped(READ | WRITE)
    of_ours.write(address + 8, CONTENT)
    assert ctypes.string_at(address, 8 + len(CONTENT)) == bytes(8) + CONTENT


@pytest.mark.parametrize("protection", [READ, READ | EXECUTE, EXECUTE])
def test_what_can_only_be_read_or_executed_is_not_written(of_ours: Memory, protection: int) -> None:
    address = mapped(protection)
    assert refused(of_ours, address)
    LIBC.mprotect(ctypes.c_void_p(address), PAGE, READ)
    assert ctypes.string_at(address, len(CONTENT)) == bytes(len(CONTENT))


@pytest.mark.parametrize("address", [0, 1, PAGE, 1 << 47, (1 << 63) - 8, 1 << 63, (1 << 64) - 1, 0xFFFFFFFF81000000])
def test_where_nothing_is_nothing_is_written(of_ours: Memory, address: int) -> None:
    assert refused(of_ours, address)


def test_two_mappings_are_both_looked_at(of_ours: Memory) -> None:
    address = mapped(READ | WRITE, 2)
    LIBC.mprotect(ctypes.c_void_p(address + PAGE), PAGE, READ)
    assert refused(of_ours, address + PAGE - 8)
    assert ctypes.string_at(address + PAGE - 8, 8) == bytes(8), "not the first part either"
    LIBC.mprotect(ctypes.c_void_p(address + PAGE), PAGE, READ | WRITE | EXECUTE)
    of_ours.write(address + PAGE - 8, CONTENT)
    assert ctypes.string_at(address + PAGE - 8, len(CONTENT)) == CONTENT


def test_it_is_a_process_that_is_there_and_ours() -> None:
    with pytest.raises(FileNotFoundError), Memory.of("/proc", 0):
        pass


def test_the_way_that_the_kernel_offers_is_the_one_that_is_taken() -> None:
    release = tuple(int(part) for part in os.uname().release.split(".")[:2])
    query = bytearray(memory._QUERY.pack(memory._QUERY.size, 0, mapped(READ | WRITE), *[0] * 12))
    with open("/proc/self/maps", "rb") as maps:
        known = release >= (6, 11)
        with contextlib.nullcontext() if known else pytest.raises(OSError):
            fcntl.ioctl(maps, memory.PROCMAP_QUERY, query, True)
    assert any(query[24:32]) is known, "the start of the mapping"
