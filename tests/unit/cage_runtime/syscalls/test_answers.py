# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a cage is told, from the files of its cgroup."""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from cage_runtime.syscalls.answers import Facts, sysinfo

HOST = 16 << 30
AGE = 100.0


class Answer(NamedTuple):
    uptime: int
    loads: tuple[int, int, int]
    total: int
    free: int
    swap: int
    free_swap: int
    processes: int
    unit: int


@pytest.fixture
def facts(tmp_path: Path) -> Iterator[Facts]:
    directory = os.open(tmp_path, os.O_PATH | os.O_DIRECTORY)
    yield Facts(cgroup=directory, born=time.clock_gettime(time.CLOCK_BOOTTIME) - AGE, memory=HOST)
    os.close(directory)


def ask(facts: Facts) -> Answer:
    content = sysinfo(facts)
    assert len(content) == 112, "struct sysinfo"
    uptime, one, two, three, total, free, shared, buffers, swap, free_swap, processes, pad, high, free_high, unit = (
        struct.unpack("=q3Q6QHH4x2QI4x", content))
    assert (shared, buffers, pad, high, free_high) == (0, 0, 0, 0, 0)
    return Answer(uptime, (one, two, three), total, free, swap, free_swap, processes, unit)


def write(directory: Path, **files: str) -> None:
    for name, content in files.items():
        (directory / name.replace("_", ".", 2 if name.startswith("memory_swap") else 1)).write_text(f"{content}\n")


def test_without_a_controller_it_has_what_the_host_has(facts: Facts) -> None:
    answer = ask(facts)
    assert answer == Answer(answer.uptime, (0, 0, 0), HOST, HOST, 0, 0, 1, 1)
    assert abs(answer.uptime - AGE) <= 1


def test_a_limit_is_all_the_memory_there_is(facts: Facts, tmp_path: Path) -> None:
    write(tmp_path, memory_max="1073741824", memory_current="73741824", pids_current="17")
    answer = ask(facts)
    assert (answer.total, answer.free, answer.processes) == (1 << 30, (1 << 30) - 73741824, 17)


def test_swap_is_what_it_may_have(facts: Facts, tmp_path: Path) -> None:
    write(tmp_path, memory_swap_max="4096", memory_swap_current="1024")
    assert ask(facts)[4:6] == (4096, 3072)


@pytest.mark.parametrize(("limit", "used", "total", "free"), [
    ("max", "5", HOST, HOST - 5), (str(1 << 60), "5", HOST, HOST - 5), ("4096", "999999", 4096, 0),
    ("", "", HOST, HOST), ("nonsense", "-3", HOST, HOST),
])
def test_what_is_no_limit_or_is_exceeded(facts: Facts, tmp_path: Path, limit: str, used: str, total: int,
                                         free: int) -> None:
    write(tmp_path, memory_max=limit, memory_current=used)
    assert ask(facts)[2:4] == (total, free)


def test_more_processes_than_the_field_holds(facts: Facts, tmp_path: Path) -> None:
    write(tmp_path, pids_current="99999")
    assert ask(facts).processes == 0xFFFF


def test_a_cage_that_the_clock_has_not_reached_is_new(facts: Facts) -> None:
    later = Facts(cgroup=facts.cgroup, born=facts.born + 10 * AGE, memory=HOST)
    assert ask(later).uptime == 0
