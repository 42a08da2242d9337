# SPDX-License-Identifier: LGPL-2.1-or-later
"""The spawner's end of cage-syscalls, with a program in its place that does as each test wants it to."""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cage_runtime.spawner import calls as module
from cage_runtime.spawner import wire
from cage_runtime.spawner.calls import Calls
from cage_runtime.spawner.loop import Loop
from cage_runtime.spawner.lsm.contexts import CORE
from cage_runtime.spawner.security import Label
from tests.unit.cage_runtime.syscalls import listeners
from tests.unit.cage_runtime.syscalls.listeners import Caller

UUID, OTHER = "1" * 32, "2" * 32
PROGRAM = """#!{python} -IS
import array, fcntl, json, os, socket, struct, sys
RECEIVE, SEND = 0xC0502100, 0xC0182101
spawner = socket.socket(fileno=3)
open("{starts}", "a").write("started\\n")
count = 0
while True:
    message, ancillary, _, _ = spawner.recvmsg(4096, 1024)
    if not message:
        break
    asked = json.loads(message)
    if asked["type"] != "mediate":
        open("{starts}", "a").write("forget\\n")
        continue
    listener, cgroup = array.array("i", ancillary[0][2])
    {answer}
"""
ANSWER = """buffer = bytearray(80)
    fcntl.ioctl(listener, RECEIVE, buffer, True)
    count += 1
    spawner.send(json.dumps({{"type": "counted", "uuid": asked["uuid"], "calls": {{"sysinfo": count}}}}).encode())
    fcntl.ioctl(listener, SEND, struct.pack("=QqiI", struct.unpack_from("=Q", buffer)[0], 0, 0, 0))"""
ANSWERS = {
    "answers": ANSWER, "answers and ends": ANSWER + "\n    sys.exit(0)", "ends": "sys.exit(3)",
    "babbles": "spawner.send(b'{{}}')",
}
SECONDS = 20.0


class Bench:
    def __init__(self, directory: Path) -> None:
        self.directory, self.loop = directory, Loop()
        self.calls = Calls(self.loop, (str(directory / "program"),), Label(contexts=None, xid=CORE))

    def program(self, answer: str) -> None:
        file = self.directory / "program"
        text = ANSWERS[answer].replace("{{", "{").replace("}}", "}")
        file.write_text(PROGRAM.format(python=sys.executable, starts=self.directory / "starts", answer=text))
        file.chmod(0o755)

    @property
    def starts(self) -> list[str]:
        file = self.directory / "starts"
        return file.read_text().split() if file.exists() else []

    def add(self, caller: Caller, uuid: str = UUID) -> None:
        self.calls.add(uuid, caller.given(), 1.0, self.directory)

    def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + SECONDS
        while not condition():
            assert time.monotonic() < deadline
            self.loop.after(0.01, lambda: None)
            self.loop.turn()

    def status(self, caller: Caller) -> int:
        """Of a caller, by whoever answers it."""
        pidfd = os.pidfd_open(caller.pid)
        ended: list[bool] = []
        self.loop.watch(pidfd, lambda: ended.append(True))
        self.until(lambda: bool(ended))
        self.loop.forget(pidfd)
        os.close(pidfd)
        return caller.status()


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    bench.calls.end()


def test_it_is_ready_for_the_first_call_and_not_before_a_cage(bench: Bench) -> None:
    bench.program("answers")
    assert bench.starts == []
    with Caller() as caller:
        bench.add(caller)
        assert bench.status(caller) == 0
    bench.until(lambda: bench.calls.counts(UUID) == {"sysinfo": 1})
    assert bench.starts == ["started"]
    assert bench.calls.counts(OTHER) == {}


def test_a_cage_that_has_ended_is_forgotten(bench: Bench) -> None:
    bench.program("answers")
    with Caller() as caller:
        bench.add(caller)
        assert bench.status(caller) == 0
    bench.calls.forget(UUID)
    bench.calls.forget(UUID)
    bench.until(lambda: bench.starts == ["started", "forget"])
    assert bench.calls.counts(UUID) == {}


def test_it_ends_when_nobody_has_needed_it_for_some_time(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LINGER_SECONDS", 0.05)
    bench.program("answers")
    with Caller() as caller:
        bench.add(caller)
        assert bench.status(caller) == 0
    pidfd = os.pidfd_open(bench.calls._pid)
    bench.calls.forget(UUID)
    bench.until(lambda: bench.calls._connection is None)
    with pytest.raises(ProcessLookupError):
        os.pidfd_open(bench.calls._pid)
    os.close(pidfd)


def test_one_that_ends_after_an_answer_is_started_with_the_next_call(bench: Bench) -> None:
    bench.program("answers and ends")
    with Caller(lambda: listeners.into_buffer() or listeners.into_buffer()) as caller:
        bench.add(caller)
        assert bench.status(caller) == 0
    bench.until(lambda: bench.calls.counts(UUID) == {"sysinfo": 2})
    assert bench.starts == ["started", "started"]


@pytest.mark.parametrize("answer", ["ends", "babbles"])
def test_while_it_cannot_run_there_is_no_such_call(bench: Bench, answer: str, caplog: pytest.LogCaptureFixture) -> None:
    bench.program(answer)
    with Caller(lambda: min(listeners.into_buffer() for _ in range(20))) as caller:
        bench.add(caller)
        assert bench.status(caller) == errno.ENOSYS
    assert bench.starts == ["started"], "it is not tried with each call"
    assert "cage-syscalls: " in caplog.text


def test_what_is_not_there_is_said_once(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    with Caller(lambda: min(listeners.into_buffer() for _ in range(20))) as caller:
        bench.add(caller)
        assert bench.status(caller) == errno.ENOSYS
    assert caplog.text.count("cage-syscalls cannot be started, and calls of cages are refused") == 1


def test_it_is_tried_again(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RETRY_SECONDS", 0.05)
    with Caller() as first, Caller() as second:
        bench.add(first)
        assert bench.status(first) == errno.ENOSYS
        bench.program("answers")
        bench.until(lambda: not bench.calls._refuses)
        bench.add(second, OTHER)
        assert bench.status(second) == 0


def test_a_cage_has_one_listener_which_is_one(bench: Bench) -> None:
    read, write = os.pipe()
    with Caller() as caller, Caller() as again:
        bench.program("answers")
        bench.add(caller)
        second = again.given()
        for uuid, wrong in ((UUID, second), (OTHER, read)):
            with pytest.raises(wire.PeerError):
                bench.calls.add(uuid, wrong, 1.0, bench.directory)
            with pytest.raises(OSError):
                os.fstat(wrong)
    os.close(write)


def test_a_listener_that_nobody_calls_any_more_is_left_alone(bench: Bench) -> None:
    bench.program("answers")
    with Caller(lambda: 0) as caller:
        bench.add(caller)
        assert caller.status() == 0
        bench.until(lambda: not bench.calls._cages[UUID].watched)
    assert not bench.calls._cages[UUID].handed_over
