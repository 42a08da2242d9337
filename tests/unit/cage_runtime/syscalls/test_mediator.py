# SPDX-License-Identifier: LGPL-2.1-or-later
"""Answers in turn, on real calls: one of each cage, no more than its allowance, and counted."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import select
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cage_runtime.spawner import otherwise
from cage_runtime.spawner.filters import Filter
from cage_runtime.syscalls import mediator as module
from cage_runtime.syscalls.answers import Facts
from cage_runtime.syscalls.mediator import ANSWERS, Mediator
from cage_runtime.syscalls.spec import Counted
from tests.unit.cage_runtime.syscalls import listeners
from tests.unit.cage_runtime.syscalls.listeners import Caller, sysinfo

ONE, TWO = "1" * 32, "2" * 32
SECONDS = 20.0


class Bench:
    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.told: list[Counted] = []
        self.mediator = Mediator("/proc", self.told.append)
        self._ends = select.epoll()
        self.mediator.watch(self._ends.fileno(), lambda: None)

    def add(self, uuid: str, caller: Caller) -> None:
        cgroup = os.open(self._directory, os.O_PATH | os.O_DIRECTORY)
        self.mediator.add(uuid, caller.given(), Facts(cgroup=cgroup, born=0.0, memory=1 << 30))

    def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + SECONDS
        while not condition():
            assert time.monotonic() < deadline
            self.mediator.turn()

    def status(self, caller: Caller) -> int:
        """Of a caller, which is answered until its end."""
        pidfd = os.pidfd_open(caller.pid)
        self._ends.register(pidfd, select.EPOLLIN)
        self.until(lambda: bool(self._ends.poll(0)))
        self._ends.unregister(pidfd)
        os.close(pidfd)
        return caller.status()

    def until_gone(self, uuid: str) -> None:
        """Until it is seen that nobody is left who could call."""
        self.until(lambda: all(cage.uuid != uuid for cage in self.mediator._cages.values()))

    def counts(self) -> dict[str, dict[str, int]]:
        return {cage.uuid: cage.counts for cage in self.mediator._cages.values()}


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    before = len(os.listdir("/proc/self/fd"))
    yield bench
    for uuid in (ONE, TWO):
        bench.mediator.forget(uuid)
    assert len(os.listdir("/proc/self/fd")) == before, "every descriptor is closed"


def often(times: int) -> Callable[[], int]:
    return lambda: max(listeners.into_buffer() for _ in range(times))


def looks_at_it() -> int:
    buffer = ctypes.create_string_buffer(b"\xff" * 128, 128)
    if sysinfo(ctypes.addressof(buffer)):
        return 254
    total, unit = struct.unpack_from("=Q", buffer, 32)[0], struct.unpack_from("=I", buffer, 104)[0]
    return 0 if (total, unit, buffer[112:]) == (1 << 30, 1, b"\xff" * 16) else 253


def test_the_caller_has_the_answer(bench: Bench) -> None:
    with Caller(looks_at_it) as caller:
        bench.add(ONE, caller)
        assert bench.status(caller) == 0


def test_what_cannot_be_written_is_a_fault(bench: Bench) -> None:
    with Caller(lambda: sysinfo(8)) as caller:
        bench.add(ONE, caller)
        assert bench.status(caller) == errno.EFAULT


def test_whose_memory_is_not_for_us_is_told_that_there_is_no_such_call(bench: Bench, tmp_path: Path) -> None:
    with Caller() as caller:
        bench.mediator._proc = str(tmp_path)
        bench.add(ONE, caller)
        assert bench.status(caller) == errno.ENOSYS


def test_a_call_that_we_do_not_know_is_none(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    getppid = {"x86_64": 110, "aarch64": 173}[platform.machine()]
    monkeypatch.setattr(listeners, "FILTER", Filter(programs=(), unknown=(), mediated=otherwise.notifying([getppid])))

    def refused() -> int:
        return 0 if listeners.LIBC.syscall(getppid) == -1 and ctypes.get_errno() == errno.ENOSYS else 1

    with Caller(refused) as caller:
        bench.add(ONE, caller)
        assert bench.status(caller) == 0
    assert bench.told == [Counted(uuid=ONE, calls={"other": 1})]


def many() -> int:
    """Eight processes that ask at once."""
    for _ in range(3):
        os.fork()
    return listeners.into_buffer()


def test_one_of_each_is_answered_in_turn(bench: Bench) -> None:
    with Caller(many) as loud, Caller() as other:
        for caller in (loud, other):
            poll = select.poll()
            poll.register(caller.listener, select.POLLIN)
            assert poll.poll(SECONDS * 1000)
        bench.add(ONE, loud)
        bench.add(TWO, other)
        bench.mediator.turn()
        assert bench.counts() == {ONE: {"sysinfo": 1}, TWO: {"sysinfo": 1}}
        assert (bench.status(loud), bench.status(other)) == (0, 0)


def test_a_cage_has_an_allowance(bench: Bench) -> None:
    with Caller(often(3 * ANSWERS)) as caller:
        bench.add(ONE, caller)
        begin = time.monotonic()
        bench.until(lambda: bench.counts()[ONE].get("sysinfo", 0) >= 2 * ANSWERS + 1)
        assert time.monotonic() - begin >= module.ANSWERS_SECONDS, "two renewals in less than one's time"
        assert bench.status(caller) == 0


def test_it_is_told_at_once_and_then_not_each_time(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TELL_SECONDS", 1000.0)
    with Caller(often(50)) as caller:
        bench.add(ONE, caller)
        assert bench.status(caller) == 0
    assert bench.told == [Counted(uuid=ONE, calls={"sysinfo": 1})]


def test_what_was_counted_is_told_later(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TELL_SECONDS", 0.05)
    read, write = os.pipe()

    def some() -> int:
        status = often(50)()
        os.close(write)
        os.read(read, 1)
        return status

    with Caller(some) as caller:
        os.close(read)
        bench.add(ONE, caller)
        bench.until(lambda: bench.told[-1:] == [Counted(uuid=ONE, calls={"sysinfo": 50})])
        os.close(write)
        assert bench.status(caller) == 0


def test_a_caller_that_is_gone_is_no_fault(bench: Bench) -> None:
    with Caller() as gone, Caller() as there:
        listener = gone.listener
        bench.add(ONE, gone)
        gone.kill()
        bench.add(TWO, there)
        assert bench.status(there) == 0
        bench.until_gone(ONE)
    assert listener not in bench.mediator._cages


def test_a_cage_that_is_told_of_again_replaces_itself(bench: Bench) -> None:
    with Caller() as first, Caller() as second:
        listener = first.listener
        bench.add(ONE, first)
        bench.add(ONE, second)
        assert list(bench.mediator._cages) != [listener]
        with pytest.raises(OSError):
            os.fstat(listener)
        assert bench.status(second) == 0
