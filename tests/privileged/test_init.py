# SPDX-License-Identifier: LGPL-2.1-or-later
"""cage-init against what its cage and its askers may do to it: PID 1 that ends takes the cage with it."""

from __future__ import annotations

import json
import os
import select
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from cage_runtime.model import LOG_BYTES
from cage_runtime.spawner import wire
from cage_runtime.spawner.spec import Insight, Inspect, Logs, Terminal
from tests.privileged.runtime import arguments_of, processes, wait_gone
from tests.privileged.without_caged import Cage, Spawner, event, is_of, living

pytestmark = pytest.mark.privileged


@pytest.fixture
def cage(spawner: Spawner) -> Iterator[Cage]:
    with living(spawner) as made:
        yield made


def test_a_client_that_leaves_as_its_command_ends(cage: Cage) -> None:
    for _ in range(200):
        with cage.spawn("true") as channel:
            assert event(channel)["event"] == "started"


def test_clients_that_leave_at_once(cage: Cage) -> None:
    for _ in range(100):
        cage.spawn("true", terminal=Terminal(term="dumb", rows=1, columns=1)).close()


@pytest.mark.parametrize("noise", [
    b"{", b"[]", b'{"signal": 99999999999999999999}', b'{"signal": -1}', b'{"signal": "9"}',
    b'{"rows": 0, "columns": -7}', b'{"rows": 9999999999, "columns": 1}', b"\xff" * 100, b"[" * 4000,
    b'{"signal": 0}', b"x" * 100_000,
])
def test_noise_on_a_channel_ends_that_session_at_most(cage: Cage, noise: bytes) -> None:
    with cage.spawn("cat", terminal=Terminal(term="dumb", rows=1, columns=1)) as channel:
        assert event(channel)["event"] == "started"
        channel.send(noise)


@pytest.mark.parametrize("content", ["\\000", "\\377", '"', "\\033", "\\\\"])
def test_whatever_a_cage_prints_its_log_can_be_had(cage: Cage, content: str) -> None:
    script = f"yes \"$(printf '{content}')\" | head -c 200000; echo; printf 'the end'; exec sleep 1000"
    with cage.spawn("sh", "-c", script, detached=True) as channel:
        assert event(channel)["event"] == "started"
    log = b""
    while not log.endswith(b"the end"):
        log = cage.spawner.ask(Logs(id=0, uuid=cage.uuid)).log
    assert len(log) == LOG_BYTES


def test_a_name_of_any_length_is_told_in_bounds(cage: Cage) -> None:
    with cage.spawn("/" + "x" * 60_000) as channel:
        told = event(channel)
    assert (told["event"], told["status"]) == ("refused", 126)
    assert len(str(told["sentence"])) < 400


@pytest.mark.parametrize("name", ["", "x\ty", "x\n", "\x1b[31m", "\x7f\x85", "\u202e", "\U000e0001", "/tmp/\r"])
def test_a_name_that_cannot_be_shown_as_it_is(cage: Cage, name: str) -> None:
    """What tells of it must not need anything that Python loads when it is first used."""
    with cage.spawn(name) as channel:
        told = event(channel)
    assert (told["event"], told["status"]) == ("refused", 127)
    assert str(told["sentence"]).isprintable()


STOPPER = """
import contextlib, os, signal
while True:
    with contextlib.suppress(ProcessLookupError):
        os.kill(-1, signal.SIGSTOP)
"""


def test_what_stops_every_process_of_the_cage_stops_no_cage_init(cage: Cage) -> None:
    """Between its setuid(2) and its execve(2) a command is the user's already."""
    with cage.spawn("python3", "-c", STOPPER) as stopper:
        assert event(stopper)["event"] == "started"
        channels = [cage.spawn("true") for _ in range(100)]
        assert cage.spawner.ask(Logs(id=0, uuid=cage.uuid)).fault is None
        stopper.send(json.dumps({"signal": signal.SIGKILL.value}).encode())
        assert event(stopper) == {"event": "exit", "status": 137}
        for channel in channels:
            channel.close()


def kept_from_starting(cage: Cage) -> bool:
    """Whether a process of the cage stands still that is still what cage-init was when it forked it."""
    init = cage.init()
    title = arguments_of(init)
    return any(arguments_of(pid) == title and stat_of(pid) == "T" for pid in processes()
               if pid != init and is_of(pid, cage.uuid))


def stat_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


def test_a_command_that_is_kept_from_starting_is_refused_in_time(cage: Cage) -> None:
    for _ in range(20):
        with cage.spawn("python3", "-c", STOPPER) as stopper:
            assert event(stopper)["event"] == "started"
            channels = [cage.spawn("true") for _ in range(100)]
            caught = kept_from_starting(cage)
            told = [event(channel) for channel in channels] if caught else []
            stopper.send(json.dumps({"signal": signal.SIGKILL.value}).encode())
            assert event(stopper) == {"event": "exit", "status": 137}
        for channel in channels:
            channel.close()
        if caught:
            break
    refused = [entry for entry in told if entry["event"] == "refused"]
    assert {(entry["status"], entry["sentence"]) for entry in refused} == {
        (125, "something in the cage keeps the command from starting")}


SIGNALLER = """
import ctypes, os, signal, struct
libc = ctypes.CDLL(None, use_errno=True)
for number in (signal.SIGTERM, signal.SIGRTMIN + 4):
    os.kill(1, number)
    with os.fdopen(os.pidfd_open(1)) as init:
        signal.pidfd_send_signal(init.fileno(), number)
    # struct siginfo: what is queued says of itself that it comes from pid 0, and with which code
    for code in (-1, -6, -60, 0, 0x80):
        siginfo = struct.pack("=iiiiiI", number, 0, code, 0, 0, 0).ljust(128, b"\\0")
        print(libc.syscall(129, 1, number, siginfo), end=" ")
"""
"""rt_sigqueueinfo(2) of x86-64."""


def test_root_in_a_cage_cannot_have_it_ended_in_the_host_s_name(cage: Cage) -> None:
    """The fixture sees to it that the cage goes on."""
    with cage.spawn("python3", "-c", SIGNALLER, user="root") as channel:
        received = wire.receive(channel)
        assert received is not None
        assert json.loads(received[0]) == {"event": "started"}
        standard = received[1]
        with open(standard[1]) as output, open(standard[2]) as errors:
            assert (output.read(), errors.read()) == ("0 -1 0 -1 -1 " * 2, "")
        os.close(standard[0])
        assert event(channel) == {"event": "exit", "status": 0}


STUBBORN = "import signal\nsignal.signal(signal.SIGHUP, signal.SIG_IGN)\nwhile True: signal.pause()"


def ignores(pid: int, number: signal.Signals) -> bool:
    words = Path(f"/proc/{pid}/status").read_text().split()
    return bool(int(words[words.index("SigIgn:") + 1], 16) >> (number - 1) & 1)


def test_a_delivery_half_does_not_outlive_its_core_half(cage: Cage) -> None:
    """It holds a file of the core's; its cage's user can stop it, and it may not want to go."""
    argv = ("python3", "-c", STUBBORN)
    with open(os.devnull, "rb") as staged, cage.spawn(*argv, delivery=staged.fileno()) as channel:
        assert event(channel)["event"] == "started"
        pid = cage.pid_of(*argv)
        while not ignores(pid, signal.SIGHUP):
            assert not select.select([channel], [], [], 0)[0], "it has ended"
        os.kill(pid, signal.SIGSTOP)
    wait_gone(pid)


def test_what_is_in_a_cage_is_told_without_asking_it(cage: Cage) -> None:
    before = cage.spawner.ask(Inspect(id=0, uuid=cage.uuid)).insight
    assert before is not None
    with cage.spawn("sleep", "1000") as channel:
        assert event(channel)["event"] == "started"
        os.kill(cage.init(), signal.SIGSTOP)
        during = cage.spawner.ask(Inspect(id=0, uuid=cage.uuid)).insight
        os.kill(cage.init(), signal.SIGCONT)
        channel.send(json.dumps({"signal": signal.SIGKILL.value}).encode())
    assert during == Insight(processes=before.processes + 1, documents=True)


def test_too_many_commands_are_refused_and_the_rest_go_on(cage: Cage) -> None:
    channels = [cage.spawn("sleep", "1000") for _ in range(256)]
    told = [event(channel) for channel in channels]
    assert {entry["event"] for entry in told} <= {"started", "refused"}
    assert told[0]["event"] == "started"
    with cage.spawn("sleep", "1000") as one_more:
        assert event(one_more)["event"] == "refused"
    for channel, entry in zip(channels, told, strict=True):
        if entry["event"] == "started":
            channel.send(json.dumps({"signal": signal.SIGKILL.value}).encode())
            assert event(channel) == {"event": "exit", "status": 137}
        channel.close()
