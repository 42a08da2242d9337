# SPDX-License-Identifier: LGPL-2.1-or-later
"""The relay of a session against a fake cage-init, which is this test at the other end of the channel.

The relay is a process of its own, because descriptors 0, 1 and 2 and its signals are what it is about.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import termios
import threading
import tty
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

TOP = Path(__file__).parents[4]
RELAY = """
import sys
from cage_runtime.cli.session import Session
with Session(int(sys.argv[1]), terminal=sys.argv[2] == "terminal", program="cagectl") as session:
    sys.exit(session.wait_started() if sys.argv[2] == "detached" else session.run())
"""
READY = """
class Ready(Session):
    def _relay(self):
        sys.stdout.write("r")
        sys.stdout.flush()
        return super()._relay()
"""
"""A session that tells when it has begun to catch signals."""
SHELL = """
import fcntl, os, signal, subprocess, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
signal.signal(signal.SIGTTOU, signal.SIG_IGN)
relay = subprocess.Popen(sys.argv[2:], pass_fds=[int(sys.argv[1])], process_group=0)
assert os.WIFSTOPPED(os.waitpid(relay.pid, os.WUNTRACED)[1])
os.tcsetpgrp(0, relay.pid)
os.killpg(relay.pid, signal.SIGCONT)
status = relay.wait()
os.tcsetpgrp(0, os.getpid())
sys.exit(status)
"""
"""A shell that starts the relay with `&` and, once that has been stopped for it, says `fg`."""
MEGABYTES = 8


class FakeInit:
    """cage-init's end of a channel, and the near ends that it would keep for the command."""

    def __init__(self) -> None:
        self.channel, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.channel.settimeout(20)
        self.stdin = self.stdout = self.stderr = -1

    def tell(self, message: object, descriptors: Sequence[int] = ()) -> None:
        data = message if isinstance(message, bytes) else json.dumps(message).encode()
        socket.send_fds(self.channel, [data], list(descriptors))

    def start_pipes(self) -> None:
        self.stdin, inward = os.pipe()
        output, self.stdout = os.pipe()
        errors, self.stderr = os.pipe()
        self.tell({"event": "started"}, (inward, output, errors))
        for descriptor in (inward, output, errors):
            os.close(descriptor)

    def heard(self) -> dict[str, int]:
        message: dict[str, int] = json.loads(self.channel.recv(4096))
        return message

    def exit(self, status: int) -> None:
        self.tell({"event": "exit", "status": status})

    def close(self, *names: str) -> None:
        for name in names or ("stdin", "stdout", "stderr"):
            if (descriptor := getattr(self, name)) >= 0:
                os.close(descriptor)
                setattr(self, name, -1)


@pytest.fixture
def init() -> Iterator[FakeInit]:
    fake = FakeInit()
    yield fake
    fake.close()
    fake.channel.close()
    fake.theirs.close()


def relay(init: FakeInit, kind: str = "pipes", **streams: object) -> subprocess.Popen[bytes]:
    number = init.theirs.fileno()
    options: dict[str, object] = {
        "stdin": subprocess.DEVNULL,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
        **streams,
    }
    command = [sys.executable, "-c", RELAY, str(number), kind]
    process: subprocess.Popen[bytes] = subprocess.Popen(command, cwd=TOP, pass_fds=[number], **options)  # type: ignore[call-overload]
    init.theirs.close()
    return process


def write_for_ever(descriptor: int) -> None:
    while True:
        os.write(descriptor, b"y\n" * 2048)


def read_all(descriptor: int) -> bytes:
    with open(descriptor, "rb", closefd=False) as file:
        return file.read()


def test_the_status_is_the_commands_own_and_nothing_is_said(init: FakeInit) -> None:
    process = relay(init)
    init.start_pipes()
    assert read_all(init.stdin) == b""
    os.write(init.stdout, b"out")
    os.write(init.stderr, b"err")
    init.exit(42)
    assert process.communicate(timeout=20) == (b"out", b"err")
    assert process.returncode == 42


def test_much_data_goes_both_ways_at_once(init: FakeInit) -> None:
    """The fake command is cat: neither side can finish unless the relay moves both directions together."""
    sent = os.urandom(1024 * 1024) * MEGABYTES
    process = relay(init, stdin=subprocess.PIPE)
    init.start_pipes()

    def cat() -> None:
        while data := os.read(init.stdin, 65536):
            while data:
                data = data[os.write(init.stdout, data) :]
        init.close("stdout")
        init.exit(0)

    thread = threading.Thread(target=cat)
    thread.start()
    received, complaints = process.communicate(sent, timeout=60)
    thread.join()
    assert hashlib.sha256(received).digest() == hashlib.sha256(sent).digest()
    assert (complaints, process.returncode) == (b"", 0)


def test_output_of_an_exited_command_is_not_lost(init: FakeInit) -> None:
    process = relay(init)
    init.start_pipes()
    data = os.urandom(60_000)
    os.write(init.stdout, data)
    init.exit(3)
    assert process.communicate(timeout=20)[0] == data
    assert process.returncode == 3


def test_a_background_child_that_holds_the_pipes_does_not_hold_us(init: FakeInit) -> None:
    process = relay(init)
    init.start_pipes()
    os.write(init.stdout, b"done\n")
    init.exit(0)
    # init.stdout stays open here until the relay has gone.
    assert process.wait(timeout=20) == 0
    assert process.communicate(timeout=20)[0] == b"done\n"


def test_a_background_child_that_writes_for_ever_does_not_hold_us(init: FakeInit) -> None:
    process = relay(init)
    init.start_pipes()

    def yes() -> None:
        with contextlib.suppress(BrokenPipeError):
            write_for_ever(init.stdout)

    thread = threading.Thread(target=yes)
    thread.start()
    init.exit(0)
    process.communicate(timeout=20)
    thread.join(timeout=20)
    assert process.returncode == 0
    assert not thread.is_alive()


def test_a_command_that_does_not_read_does_not_hold_us(init: FakeInit) -> None:
    process = relay(init, stdin=subprocess.PIPE)
    init.start_pipes()
    init.close("stdin")
    init.exit(7)
    assert process.wait(timeout=20) == 7
    process.communicate(timeout=20)


def test_when_our_reader_goes_the_command_gets_a_broken_pipe(init: FakeInit) -> None:
    read, write = os.pipe()
    process = relay(init, stdout=write)
    os.close(write)
    os.close(read)
    init.start_pipes()
    with pytest.raises(BrokenPipeError):
        write_for_ever(init.stdout)
    init.exit(128 + signal.SIGPIPE)
    assert process.communicate(timeout=20)[1] == b""
    assert process.returncode == 141


def test_output_that_cannot_be_written_is_a_failure(init: FakeInit) -> None:
    with open("/dev/full", "wb") as full:
        process = relay(init, stdout=full)
    init.start_pipes()
    os.write(init.stdout, b"figures")
    init.exit(0)
    errors = process.communicate(timeout=20)[1]
    assert errors == b"cagectl: output of the command was lost: No space left on device\n"
    assert process.returncode == 1


def test_non_blocking_output_of_ours_is_waited_for(init: FakeInit) -> None:
    read, write = os.pipe()
    os.set_blocking(write, False)
    process = relay(init, stdout=write)
    os.close(write)
    init.start_pipes()
    data = os.urandom(300_000)

    def command() -> None:
        rest = data
        while rest:
            rest = rest[os.write(init.stdout, rest) :]
        init.exit(0)

    thread = threading.Thread(target=command)
    thread.start()
    received = read_all(read)
    thread.join()
    os.close(read)
    assert received == data
    assert process.communicate(timeout=20)[1] == b""
    assert process.returncode == 0


def test_our_descriptors_stay_blocking(init: FakeInit) -> None:
    read, write = os.pipe()
    process = relay(init, stdin=read, stdout=write)
    init.start_pipes()
    init.exit(0)
    process.communicate(timeout=20)
    assert os.get_blocking(read)
    assert os.get_blocking(write)
    os.close(read)
    os.close(write)


def test_closed_standard_streams_are_empty_ones(init: FakeInit) -> None:
    number = init.theirs.fileno()
    command = ["sh", "-c", 'exec "$@" <&- >&-', "sh", sys.executable, "-c", "import cage_runtime.cli.command as c;"
               "c._open_standard_streams()\n" + RELAY, str(number), "pipes"]  # fmt: skip
    process = subprocess.Popen(command, cwd=TOP, pass_fds=[number], stderr=subprocess.PIPE)
    init.theirs.close()
    init.start_pipes()
    assert read_all(init.stdin) == b""
    os.write(init.stdout, b"nobody reads this")
    init.exit(5)
    assert process.communicate(timeout=20)[1] == b""
    assert process.returncode == 5


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
def test_signals_go_to_the_command(init: FakeInit, number: signal.Signals) -> None:
    process = relay(init, stdin=subprocess.PIPE)
    init.start_pipes()
    # Reading what was written proves that the relay has begun.
    assert process.stdin
    process.stdin.write(b"x")
    process.stdin.flush()
    assert os.read(init.stdin, 1) == b"x"
    process.send_signal(number)
    assert init.heard() == {"signal": number}
    init.exit(128 + number)
    assert process.wait(timeout=20) == 128 + number
    process.communicate(timeout=20)


def test_a_signal_before_the_command_has_started_ends_the_wait(init: FakeInit) -> None:
    tells = RELAY.replace("with Session(", READY + "with Ready(")
    command = [sys.executable, "-c", tells, str(init.theirs.fileno()), "pipes"]
    process = subprocess.Popen(command, cwd=TOP, pass_fds=[init.theirs.fileno()], stdout=subprocess.PIPE)
    init.theirs.close()
    assert process.stdout
    assert process.stdout.read(1) == b"r"
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=20) == 130
    process.communicate(timeout=20)


def test_ignored_signals_stay_ignored(init: FakeInit) -> None:
    """As with nohup: what our parent ignores does not reach the command."""
    ignore = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
    number = init.theirs.fileno()
    command = [sys.executable, "-c", ignore + RELAY, str(number), "pipes"]
    process = subprocess.Popen(command, cwd=TOP, pass_fds=[number], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    init.theirs.close()
    init.start_pipes()
    assert process.stdin
    process.stdin.write(b"x")
    process.stdin.flush()
    assert os.read(init.stdin, 1) == b"x"
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGTERM)
    assert init.heard() == {"signal": signal.SIGTERM}
    init.exit(0)
    process.communicate(timeout=20)


@pytest.mark.parametrize("status", [125, 127])
def test_a_refusal_is_shown_escaped_with_its_status(init: FakeInit, status: int) -> None:
    process = relay(init)
    init.tell({"event": "refused", "status": status, "sentence": "there is no command \033[2J\nls"})
    assert process.communicate(timeout=20) == (b"", b"cagectl: there is no command \\x1b[2J\\nls\n")
    assert process.returncode == status


def test_the_end_of_the_cage_is_said(init: FakeInit) -> None:
    process = relay(init)
    init.start_pipes()
    os.write(init.stdout, b"half a li")
    init.channel.close()
    assert process.communicate(timeout=20) == (b"half a li", b"cagectl: the cage stopped\n")
    assert process.returncode == 137


def test_the_end_of_the_cage_before_the_start_is_said(init: FakeInit) -> None:
    process = relay(init)
    init.channel.close()
    assert process.communicate(timeout=20)[1] == b"cagectl: the cage stopped before the command started\n"
    assert process.returncode == 137


def a_file(tmp_path: Path) -> int:
    return os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)


HOSTILE_MESSAGES: tuple[object, ...] = (
    b"not json",
    b"[" * 4000,
    b"[]",
    b'"started"',
    b"\xff\xfe\xfd",
    b"x" * 5000,
    {"event": "started"},
    {"event": "exit", "status": 0},
    {"event": "exit", "status": "0"},
    {"event": {"started": 1}},
    {"event": "refused", "status": 256, "sentence": "x"},
    {"event": "refused", "status": True, "sentence": "x"},
    {"event": "unknown"},
    {},
)


@pytest.mark.parametrize("message", HOSTILE_MESSAGES, ids=lambda message: str(message)[:30])
def test_a_message_that_makes_no_sense_ends_the_session(init: FakeInit, message: object) -> None:
    process = relay(init)
    init.tell(message)
    errors = process.communicate(timeout=20)[1]
    assert b"RuntimeFailure: the cage" in errors
    assert process.returncode != 0


def test_a_refusal_without_a_sentence_still_fails(init: FakeInit) -> None:
    process = relay(init)
    init.tell({"event": "refused", "status": 0, "sentence": ["x"]})
    assert process.communicate(timeout=20)[1] == b"cagectl: the cage refused\n"
    assert process.returncode == 125


def test_descriptors_of_the_wrong_kind_are_not_used(init: FakeInit, tmp_path: Path) -> None:
    process = relay(init)
    file = a_file(tmp_path)
    init.tell({"event": "started"}, (file, file, file))
    os.close(file)
    assert b"did not hand over three pipes" in process.communicate(timeout=20)[1]
    assert (tmp_path / "file").read_bytes() == b""


def test_pipes_of_the_wrong_direction_are_not_used(init: FakeInit) -> None:
    process = relay(init)
    read, write = os.pipe()
    init.tell({"event": "started"}, (read, write, write))
    os.close(read)
    os.close(write)
    assert b"did not hand over three pipes" in process.communicate(timeout=20)[1]


def test_too_many_descriptors_end_the_session(init: FakeInit) -> None:
    process = relay(init)
    read, write = os.pipe()
    init.tell({"event": "started"}, (write, *[read] * 60))
    os.close(read)
    os.close(write)
    assert b"RuntimeFailure: the cage" in process.communicate(timeout=20)[1]


def test_a_detached_command_is_waited_for_until_it_has_started(init: FakeInit) -> None:
    process = relay(init, "detached")
    init.tell({"event": "started"})
    init.channel.close()
    assert process.communicate(timeout=20) == (b"", b"")
    assert process.returncode == 0


def test_a_detached_command_that_is_refused_says_so(init: FakeInit) -> None:
    process = relay(init, "detached")
    init.tell({"event": "refused", "status": 127, "sentence": "no such application"})
    assert process.communicate(timeout=20) == (b"", b"cagectl: no such application\n")
    assert process.returncode == 127


# --- on a terminal -------------------------------------------------------------------------------------------


class Terminal:
    """The person's terminal: `outer` is where the person is."""

    def __init__(self) -> None:
        self.outer, self.inner = os.openpty()
        self.before = termios.tcgetattr(self.inner)
        termios.tcsetwinsize(self.inner, (24, 80))

    def read_until(self, end: bytes) -> bytes:
        shown = b""
        while end not in shown:
            shown += os.read(self.outer, 1024)
        return shown


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    person = Terminal()
    yield person
    os.close(person.outer)
    os.close(person.inner)


@pytest.fixture
def command_terminal() -> Iterator[tuple[int, int]]:
    master, slave = os.openpty()
    # The command's own terminal, as a full-screen program sets it.
    tty.setraw(slave)
    yield master, slave
    os.close(master)
    os.close(slave)


def on_terminal(init: FakeInit, terminal: Terminal, master: int) -> subprocess.Popen[bytes]:
    inner = terminal.inner
    process = relay(init, "terminal", stdin=inner, stdout=inner, stderr=inner, start_new_session=True)
    init.tell({"event": "started"}, [master])
    assert init.heard() == {"rows": 24, "columns": 80}
    return process


def test_a_terminal_is_relayed_raw_and_restored(
    init: FakeInit, terminal: Terminal, command_terminal: tuple[int, int]
) -> None:
    master, slave = command_terminal
    process = on_terminal(init, terminal, master)
    # Control characters are the command's, not signals or line editing here.
    os.write(terminal.outer, b"a\x03\x1a\x04\r")
    typed = b""
    while len(typed) < 5:
        typed += os.read(slave, 16)
    assert typed == b"a\x03\x1a\x04\r"
    os.write(slave, b"line\nend$")
    assert terminal.read_until(b"$") == b"line\nend$"
    termios.tcsetwinsize(terminal.outer, (50, 132))
    process.send_signal(signal.SIGWINCH)
    assert init.heard() == {"rows": 50, "columns": 132}
    termios.tcsetwinsize(terminal.outer, (50, 20_000))
    process.send_signal(signal.SIGWINCH)
    assert init.heard() == {"rows": 50, "columns": 9999}
    os.write(slave, b"last words")
    init.exit(9)
    assert process.wait(timeout=20) == 9
    assert os.read(terminal.outer, 64) == b"last words"
    assert termios.tcgetattr(terminal.inner) == terminal.before


def test_the_terminal_is_restored_before_anything_is_said(
    init: FakeInit, terminal: Terminal, command_terminal: tuple[int, int]
) -> None:
    process = on_terminal(init, terminal, command_terminal[0])
    init.channel.close()
    assert process.wait(timeout=20) == 137
    # "\r\n" is the restored terminal's doing.
    assert terminal.read_until(b"\n") == b"cagectl: the cage stopped\r\n"
    assert termios.tcgetattr(terminal.inner) == terminal.before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_terminal_session_that_is_told_to_end_restores_the_terminal(
    init: FakeInit, terminal: Terminal, command_terminal: tuple[int, int], number: signal.Signals
) -> None:
    process = on_terminal(init, terminal, command_terminal[0])
    process.send_signal(number)
    assert init.heard() == {"signal": number}
    assert process.wait(timeout=20) == 128 + number
    assert termios.tcgetattr(terminal.inner) == terminal.before


def test_a_terminal_session_takes_no_pipes(init: FakeInit, terminal: Terminal) -> None:
    inner = terminal.inner
    process = relay(init, "terminal", stdin=inner, stdout=inner, start_new_session=True)
    init.start_pipes()
    assert b"did not hand over a terminal" in process.communicate(timeout=20)[1]
    assert termios.tcgetattr(terminal.inner) == terminal.before


def test_a_slave_is_not_taken_for_a_master(
    init: FakeInit, terminal: Terminal, command_terminal: tuple[int, int]
) -> None:
    inner = terminal.inner
    process = relay(init, "terminal", stdin=inner, stdout=inner, start_new_session=True)
    init.tell({"event": "started"}, [command_terminal[1]])
    assert b"did not hand over a terminal" in process.communicate(timeout=20)[1]


def test_a_session_that_began_in_the_background_goes_on_in_the_foreground(
    init: FakeInit, terminal: Terminal, command_terminal: tuple[int, int]
) -> None:
    number, inner = init.theirs.fileno(), terminal.inner
    # The shell ignores SIGTTOU, and what it starts would inherit that.
    default = "import signal; signal.signal(signal.SIGTTOU, signal.SIG_DFL)\n"
    command = [sys.executable, "-c", SHELL, str(number), sys.executable, "-c", default + RELAY, str(number), "terminal"]
    process = subprocess.Popen(command, cwd=TOP, pass_fds=[number], stdin=inner, stdout=inner, stderr=subprocess.PIPE,
                               start_new_session=True)  # fmt: skip
    init.theirs.close()
    init.tell({"event": "started"}, [command_terminal[0]])
    assert init.heard() == {"rows": 24, "columns": 80}
    init.exit(6)
    assert process.communicate(timeout=20)[1] == b""
    assert process.returncode == 6
    assert termios.tcgetattr(terminal.inner) == terminal.before


def test_a_command_that_leaves_its_terminal_is_waited_for(init: FakeInit, terminal: Terminal) -> None:
    """The terminal of the command is gone before its exit is told: the status still comes."""
    master, slave = os.openpty()
    process = on_terminal(init, terminal, master)
    os.close(master)
    os.write(slave, b"bye$")
    os.close(slave)
    assert terminal.read_until(b"$").endswith(b"bye$")
    init.exit(4)
    assert process.wait(timeout=20) == 4
