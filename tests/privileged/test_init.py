# SPDX-License-Identifier: LGPL-2.1-or-later
"""cage-init against what its cage and its askers may do to it: PID 1 that ends takes the cage with it.

A spawner of this file's own, without caged: what caged would check first arrives here as it is.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import socket
import subprocess
import tempfile
import uuid as uuids
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import msgspec
import pytest

from cage_runtime.model import LOG_BYTES, SPAWNER_MESSAGE_MAX
from cage_runtime.spawner import wire
from cage_runtime.spawner.spec import (
    AnyRequest,
    Birth,
    Describe,
    Ended,
    Insight,
    Inspect,
    Limits,
    Logs,
    MakeStorage,
    Remove,
    Reply,
    Spawn,
    Standing,
    Stop,
    Terminal,
    decode_reply,
    encode,
)
from tests.privileged.runtime import CAGED_CONFIGURATION, PREFIX, SECONDS, arguments_of, processes, wait_gone

pytestmark = pytest.mark.privileged


class Spawner:
    """cage-spawner, and the one connection to it."""

    def __init__(self, top: Path) -> None:
        self._top = top
        config = top / "caged.conf"
        config.write_text(CAGED_CONFIGURATION.format(top=top, prefix=PREFIX, cgroup=f"cage-runtime-{top.name}"))
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready:
            ready.bind(str(top / "ready"))
            ready.settimeout(SECONDS)
            self._process = subprocess.Popen([PREFIX / "bin/cage-spawner", "--config", config],
                                             env={"NOTIFY_SOCKET": str(top / "ready")})
            assert ready.recv(64) == b"READY=1"
        self._number = 0
        self.connection = self.connect()

    def connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        connection.settimeout(SECONDS)
        connection.connect(str(self._top / "run/spawner.sock"))
        return connection

    def ask(self, request: AnyRequest, *descriptors: int) -> Reply:
        self._number += 1
        wire.send(self.connection, encode(msgspec.structs.replace(request, id=self._number)), descriptors)
        while True:
            received = wire.receive(self.connection)
            assert received is not None, "the spawner hung up"
            reply = decode_reply(received[0])
            if isinstance(reply, Reply) and reply.id == self._number:
                return reply

    def stop(self) -> None:
        self.connection.close()
        self._process.terminate()
        assert self._process.wait(SECONDS) == 0


class Cage:
    def __init__(self, spawner: Spawner, disposable: float = 0.0) -> None:
        self.spawner, self.uuid = spawner, uuids.uuid4().hex
        self._done(MakeStorage(id=0, uuid=self.uuid, ephemeral=True))
        self._done(Birth(
            id=0, uuid=self.uuid, name="tough", level="public", compartments=[], exec_home=False, limits=Limits(),
            processes=256, home_bytes=1 << 22, home_files=256, disposable=disposable,
        ))

    def _done(self, request: AnyRequest) -> None:
        reply = self.spawner.ask(request)
        assert reply.fault is None, reply.fault

    def spawn(self, *argv: str, terminal: Terminal | None = None, detached: bool = False,
              delivery: int | None = None, user: Literal["user", "root"] = "user") -> socket.socket:
        """The near end of the command's channel; with `delivery`, as a delivery half with that as standard input."""
        near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        near.settimeout(SECONDS)
        with far:
            own_input = delivery is not None
            request = Spawn(id=0, uuid=self.uuid, argv=list(argv), terminal=terminal, detached=detached, user=user,
                            own_input=own_input, profile="delivery" if own_input else "session")
            reply = self.spawner.ask(request, far.fileno(), *([] if delivery is None else [delivery]))
            assert reply.fault is None, reply.fault
        return near

    def init(self) -> int:
        return min(pid for pid in processes() if _is_of(pid, self.uuid))

    def pid_of(self, *argv: str) -> int:
        """On the host, of a command that runs in the cage."""
        return next(pid for pid in processes() if arguments_of(pid) == list(argv) and _is_of(pid, self.uuid))

    def destroy(self) -> None:
        self._done(Stop(id=0, uuid=self.uuid, seconds=0))
        self._done(Remove(id=0, uuid=self.uuid))


def _is_of(pid: int, uuid: str) -> bool:
    try:
        return uuid in Path(f"/proc/{pid}/cgroup").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def event(channel: socket.socket) -> dict[str, object]:
    received = wire.receive(channel)
    assert received is not None
    wire.close_all(received[1])
    told = json.loads(received[0])
    assert isinstance(told, dict)
    return told


@pytest.fixture(scope="module")
def spawner() -> Iterator[Spawner]:
    top = Path(tempfile.mkdtemp(prefix="init-"))
    try:
        spawner = Spawner(top)
        yield spawner
        spawner.stop()
    finally:
        shutil.rmtree(top)


@pytest.fixture
def cage(spawner: Spawner) -> Iterator[Cage]:
    cage = Cage(spawner)
    yield cage
    with cage.spawn("true") as channel:
        assert [event(channel)["event"], event(channel)] == ["started", {"event": "exit", "status": 0}], "it has ended"
    cage.destroy()


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
               if pid != init and _is_of(pid, cage.uuid))


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


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGRTMIN + 4])
def test_the_host_s_administrator_ends_a_cage_by_a_signal(spawner: Spawner, number: int) -> None:
    """As systemd does, which sends it to the others as well: what they do on their end is done."""
    cage = Cage(spawner)
    with cage.spawn("sh", "-c", "trap 'exit 3' TERM; while :; do sleep 1 & wait; done") as channel:
        assert event(channel)["event"] == "started"
        init = cage.init()
        while not catches(cage, signal.SIGTERM):
            assert not select.select([channel], [], [], 0)[0], "it has ended"
        os.kill(init, number)
        assert event(channel) == {"event": "exit", "status": 3}
    wait_gone(init)
    received = wire.receive(spawner.connection)
    assert received is not None
    assert decode_reply(received[0]) == Ended(uuid=cage.uuid)
    cage.destroy()


def catches(cage: Cage, number: signal.Signals) -> bool:
    """Whether a command of the cage, which is a shell, has its trap set."""
    for pid in processes():
        if _is_of(pid, cage.uuid) and arguments_of(pid)[:1] == ["sh"]:
            words = Path(f"/proc/{pid}/status").read_text().split()
            return bool(int(words[words.index("SigCgt:") + 1], 16) >> (number - 1) & 1)
    return False


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


def test_a_request_without_its_channel_is_a_fault(cage: Cage) -> None:
    reply = cage.spawner.ask(Spawn(id=0, uuid=cage.uuid, argv=["true"]))
    assert reply.fault is not None
    assert "without its channel" in reply.fault.sentence


def test_an_answer_goes_to_whoever_asked_and_an_end_to_everybody(spawner: Spawner) -> None:
    """A caged that is killed while a cage stops: the next one numbers its requests from 1 again."""
    cage = Cage(spawner)
    with cage.spawn("sh", "-c", "trap '' TERM; echo; while :; do sleep 1; done") as channel:
        assert event(channel)["event"] == "started"
        spawner.connection.send(encode(Stop(id=1, uuid=cage.uuid, seconds=0.5)))
        spawner.connection.close()
        spawner.connection = spawner.connect()
        received = wire.receive(spawner.connection)
    assert received is not None
    assert decode_reply(received[0]) == Ended(uuid=cage.uuid)
    assert spawner.ask(Remove(id=0, uuid=cage.uuid)).fault is None


def wait_ended(cage: Cage) -> None:
    """Until the spawner says that the cage has ended by itself, and nothing of it is left."""
    cage.spawner.connection.settimeout(SECONDS)
    received = wire.receive(cage.spawner.connection)
    assert received is not None
    ended = decode_reply(received[0])
    assert isinstance(ended, Ended)
    assert ended.uuid == cage.uuid
    assert cage.spawner.ask(Remove(id=0, uuid=cage.uuid)).fault is None
    assert [pid for pid in processes() if _is_of(pid, cage.uuid)] == []


def is_running(cage: Cage) -> bool:
    standings = cage.spawner.ask(Standing(id=0)).standings
    return standings is not None and cage.uuid in standings.running


def test_a_disposable_cage_ends_with_its_last_command(spawner: Spawner) -> None:
    cage = Cage(spawner, 600.0)
    first, last = cage.spawn("sleep", "1001"), cage.spawn("sleep", "1002")
    for channel in (first, last):
        assert event(channel)["event"] == "started"
    first.send(json.dumps({"signal": signal.SIGKILL.value}).encode())
    assert event(first) == {"event": "exit", "status": 137}
    assert is_running(cage)
    last.send(json.dumps({"signal": signal.SIGKILL.value}).encode())
    assert event(last) == {"event": "exit", "status": 137}
    wait_ended(cage)
    first.close()
    last.close()


def test_what_a_command_left_behind_keeps_a_disposable_cage_and_its_bus_does_not(spawner: Spawner) -> None:
    cage = Cage(spawner, 600.0)
    script = ("dbus-send --session --print-reply --dest=org.freedesktop.DBus / org.freedesktop.DBus.GetId >/dev/null"
              " && setsid --fork sh -c 'echo; exec sleep 4711' && exit 0")
    with cage.spawn("sh", "-c", script) as channel:
        received = wire.receive(channel)
        assert received is not None
        os.read(received[1][1], 1)
        while not any(arguments_of(pid) == ["sleep", "4711"] for pid in processes()):
            os.sched_yield()
        wire.close_all(received[1])
        assert event(channel) == {"event": "exit", "status": 0}
    assert is_running(cage)
    left = cage.pid_of("sleep", "4711")
    assert any("dbus-daemon" in arguments_of(pid)[0] for pid in processes() if _is_of(pid, cage.uuid)
               and arguments_of(pid))
    os.kill(left, signal.SIGKILL)
    wait_ended(cage)


@pytest.mark.parametrize("argv", [("/nonexistent",), ("true",)])
def test_a_disposable_cage_ends_with_a_command_that_did_not_last(spawner: Spawner, argv: tuple[str, ...]) -> None:
    cage = Cage(spawner, 600.0)
    with cage.spawn(*argv) as channel:
        assert event(channel)["event"] in ("started", "refused")
    wait_ended(cage)


def test_a_disposable_cage_in_which_nothing_is_started_ends(spawner: Spawner) -> None:
    wait_ended(Cage(spawner, 0.3))


def test_one_that_is_used_outlives_the_time_in_which_it_had_to_be(spawner: Spawner) -> None:
    cage = Cage(spawner, 0.5)
    with cage.spawn("sh", "-c", "sleep 1; echo; exec cat") as channel:
        received = wire.receive(channel)
        assert received is not None
        output = received[1][1]
        os.read(output, 1)  # after the time
        assert is_running(cage)
        wire.close_all(received[1])
    wait_ended(cage)


def test_answers_wait_for_a_caged_that_does_not_read(spawner: Spawner) -> None:
    for number in range(900):
        spawner.connection.send(encode(Describe(id=10_000 + number)))
    answered = [decode_reply(received[0]) for _ in range(900) if (received := wire.receive(spawner.connection))]
    assert [reply.id for reply in answered if isinstance(reply, Reply)] == list(range(10_000, 10_900))


def test_a_message_longer_than_can_be_passed_on_ends_nobody(spawner: Spawner, cage: Cage) -> None:
    """The spawner's own number may have more digits than that of whoever asked."""
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with near, far:
        request = Spawn(id=1, uuid=cage.uuid, argv=["true", ""])
        filling = SPAWNER_MESSAGE_MAX - len(encode(request))
        parts, rest = divmod(filling, 60_000)
        argv = ["true", *["x" * (60_000 - 3)] * parts, "x" * rest]
        for _ in range(20):  # until its numbers have two digits
            spawner.ask(Logs(id=0, uuid=cage.uuid))
        wire.send(spawner.connection, encode(msgspec.structs.replace(request, argv=argv)), [far.fileno()])
        received = wire.receive(spawner.connection)
    assert received is not None
    reply = decode_reply(received[0])
    assert isinstance(reply, Reply)
    assert reply.fault is not None
    assert reply.fault.sentence == "the request is longer than a cage takes"


@pytest.mark.parametrize("message", [b"{}", b"\0", b'{"op":"reboot","id":1}', b"x" * 100_000])
def test_the_spawner_hangs_up_on_noise_and_serves_the_next(spawner: Spawner, message: bytes) -> None:
    spawner.connection.send(message)
    assert spawner.connection.recv(1) == b""
    spawner.connection.close()
    spawner.connection = spawner.connect()
    assert spawner.ask(Standing(id=0)).standings is not None


def test_nobody_else_is_served(spawner: Spawner) -> None:
    path = spawner.connection.getpeername()
    script = f"import socket; s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET); s.connect({path!r})"
    ended = subprocess.run(["/usr/bin/python3", "-c", script], user=65534, group=65534, extra_groups=[],
                           capture_output=True, text=True, check=False, timeout=SECONDS)
    assert "PermissionError" in ended.stderr
    assert os.path.exists(path)
