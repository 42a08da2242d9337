# SPDX-License-Identifier: LGPL-2.1-or-later
"""Calls that are answered in the kernel's stead: what a cage is told, whom it can harm by them, what a death leaves."""

from __future__ import annotations

import errno
import json
import os
import platform
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.privileged.conftest import MakeCage
from tests.privileged.runtime import (
    SECONDS,
    Cage,
    Runtime,
    arguments_of,
    parent_of,
    processes,
    wait_gone,
    wait_readable,
)

SYSINFO = {"x86_64": 99, "aarch64": 179}[platform.machine()]
LOOK = Path(__file__).with_name("look_at_sysinfo.py").read_text()


def command(what: str) -> tuple[str, ...]:
    return ("/usr/bin/python3", "-ISc", LOOK, what)


def told(cage: Cage, what: str, *, root: bool = False) -> Any:
    ended = cage.enter(*command(what), root=root)
    assert ended.returncode == 0, ended.stderr.decode()
    return json.loads(ended.stdout)


@pytest.fixture(scope="module")
def work(shared_cage: MakeCage) -> Cage:
    return shared_cage("work")


@contextmanager
def running(cage: Cage, what: str) -> Iterator[subprocess.Popen[bytes]]:
    """The look in the cage, with a pipe at either end, which has begun."""
    process = cage.popen(*command(what), stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def line(process: subprocess.Popen[bytes]) -> str:
    assert process.stdout is not None
    wait_readable(process.stdout.fileno(), "a line from the cage")
    return process.stdout.readline().decode().strip()


def service_of(runtime: Runtime) -> int:
    """The pid of cage-syscalls, which the spawner has started."""
    spawner = runtime.process("cage-spawner")
    (pid,) = (pid for pid in processes() if parent_of(pid) == spawner
              and any(word.endswith("/bin/cage-syscalls") for word in arguments_of(pid)))
    return pid


# --- what it is told --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("root", [False, True])
def test_a_cage_is_told_of_itself(work: Cage, root: bool) -> None:
    found = told(work, "answer", root=root)
    assert found["error"] == 0
    assert [found[name] for name in ("load1", "load5", "load15", "sharedram", "bufferram", "totalswap")] == [0] * 6
    assert found["unit"] == 1
    assert found["totalram"] >= found["freeram"] > 0
    assert found["behind"] == "ff" * 16, "nothing is written behind the structure"


def test_its_clocks_begin_with_it(work: Cage) -> None:
    found = told(work, "answer")
    host = time.clock_gettime(time.CLOCK_BOOTTIME)
    assert host > 300, "or this says nothing"
    for name in ("uptime", "boottime", "monotonic"):
        assert 0 <= found[name] < 200, name
    assert abs(found["uptime"] - found["boottime"]) < 3
    assert float(work.sh("cat /proc/uptime").split()[0]) < 200


def test_another_thread_and_a_process_that_hides_are_answered_too(work: Cage) -> None:
    assert told(work, "elsewhere") == {"thread": 0, "not dumpable": 0}


@pytest.mark.parametrize("root", [False, True])
def test_nothing_is_written_where_the_caller_could_not(work: Cage, root: bool) -> None:
    found = told(work, "pointers", root=root)
    assert found.pop("over two") == "done"
    assert found.pop("changed") is False
    assert found == dict.fromkeys(found, "EFAULT")
    assert len(found) == 10


def test_a_program_with_a_listener_of_its_own_is_refused(work: Cage) -> None:
    assert told(work, "listener") == {"without": "done", "with a listener": "EBUSY"}


def test_signals_that_come_while_a_call_waits_lose_none(work: Cage) -> None:
    """Where the program has its calls restarted (signal(7)); otherwise a call may be interrupted."""
    assert told(work, "alarmed") == {"restarted": [], "interrupted": []}


def test_what_was_answered_is_counted(runtime: Runtime, cage: MakeCage) -> None:
    counted = cage("counted")
    before = counted.status.get("mediated", {}).get("sysinfo", 0)
    told(counted, "latency")
    deadline = time.monotonic() + SECONDS
    while (now := counted.status["mediated"].get("sysinfo", 0)) < before + 300:
        assert time.monotonic() < deadline, now
    assert "Calls answered" in runtime.ok("status", "counted")
    runtime.ok("stop", "counted")
    answered, = [event["fields"] for event in runtime.json("audit", "tail", "-n", "20")
                 if event["kind"] == "calls-answered" and event["fields"]["cage"] == "counted"]
    assert (answered["operation"], int(answered["count"])) == ("sysinfo", now)


# --- who answers ------------------------------------------------------------------------------------------------------
def test_it_holds_what_it_needs(runtime: Runtime, work: Cage) -> None:
    told(work, "answer")
    pid = service_of(runtime)
    status = dict(entry.split(":\t", 1) for entry in Path(f"/proc/{pid}/status").read_text().splitlines())
    capabilities = f"{1 << 1 | 1 << 19:016x}"  # DAC_OVERRIDE, SYS_PTRACE
    assert {status[name] for name in ("CapPrm", "CapEff")} == {capabilities}
    assert {status[name] for name in ("CapInh", "CapBnd", "CapAmb")} == {"0" * 16}
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    assert "0" not in status["Uid"].split() + status["Gid"].split()
    assert status["Groups"].strip() == ""
    for name in ("mnt", "net", "ipc", "uts"):
        assert os.readlink(f"/proc/{pid}/ns/{name}") != os.readlink(f"/proc/self/ns/{name}"), name
    assert {"self", "uptime", "1"} <= set(os.listdir(f"/proc/{pid}/root")), "its root is proc"
    assert not Path(f"/proc/{pid}/root/etc").exists()


def test_one_cage_that_asks_without_end_takes_no_turn_of_another(work: Cage, cage: MakeCage) -> None:
    told(work, "answer")
    loud = cage("loud")
    with running(loud, "flood") as process:
        for _ in range(8):
            assert line(process) == "ready"
        busy = told(work, "latency")
    assert busy["median"] < 0.05
    assert busy["p99"] < 0.25


# --- deaths -----------------------------------------------------------------------------------------------------------
def test_a_caller_that_is_killed_while_it_waits_is_no_loss(runtime: Runtime, work: Cage) -> None:
    told(work, "answer")
    service = service_of(runtime)
    os.kill(service, signal.SIGSTOP)
    try:
        # The interpreter asks at its own start already; it is killed once the kernel says that it is in this call.
        script = f"""/usr/bin/python3 -ISc 'while True: pass' &
            until read number rest </proc/$!/syscall && [ "$number" = {SYSINFO} ]; do :; done
            kill -9 $!; wait $!; echo "ended $?" """
        assert work.sh(script) == "ended 137\n"
    finally:
        os.kill(service, signal.SIGCONT)
    assert told(work, "answer")["error"] == 0
    assert service_of(runtime) == service


def test_a_service_that_is_killed_is_started_again(runtime: Runtime, work: Cage) -> None:
    told(work, "answer")
    service = service_of(runtime)
    os.kill(service, signal.SIGKILL)
    wait_gone(service)
    assert told(work, "answer")["error"] == 0
    assert service_of(runtime) != service


def test_calls_wait_for_a_spawner_that_comes_back(runtime: Runtime, work: Cage) -> None:
    with running(work, "always") as process:
        assert line(process) == "0"
        runtime.kill_and_wait("cage-spawner")
        assert told(work, "answer")["error"] == 0
        said, _ = process.communicate(timeout=SECONDS)
    assert said == b"", "nothing but answers"


def test_where_no_spawner_comes_back_there_is_no_such_call(runtime: Runtime, work: Cage) -> None:
    with running(work, "always") as process:
        assert line(process) == "0"
        runtime.stop()
        try:
            assert line(process) == str(errno.ENOSYS)
        finally:
            runtime.start()
        assert line(process) == "0", "the next one answers"
