# SPDX-License-Identifier: LGPL-2.1-or-later
"""The life of real cages, driven as a person would: cagectl in, statuses, sentences and documents out."""

from __future__ import annotations

import hashlib
import os
import pty
import select
import signal
import subprocess
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.privileged.conftest import MakeCage
from tests.privileged.runtime import SECONDS, Cage, Changes, Runtime, wait_readable

ID_RANGE = 65536
FORK_BOMB = """
import os, signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
os.write(1, b"ready")
while True:
    try:
        os.fork()
    except OSError:
        continue
"""
WAIT_FOR_SIZE = """
import os, signal
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGWINCH])
print("on", flush=True)
signal.sigwait([signal.SIGWINCH])
print(os.get_terminal_size().lines, os.get_terminal_size().columns)
raise SystemExit(6)
"""


@pytest.fixture(scope="module")
def work(shared_cage: MakeCage) -> Cage:
    """A cage for what changes nothing in it."""
    return shared_cage("life", "--level", "internal", "--compartment", "finance")


# --- states ------------------------------------------------------------------------------------------------------
def test_what_was_created_is_listed_and_shown(runtime: Runtime, work: Cage) -> None:
    listed = next(cage for cage in runtime.json("list") if cage["name"] == "life")
    assert (listed["state"], listed["level"], listed["compartments"]) == ("running", "internal", ["finance"])
    assert work.status["home"] == "persistent"
    assert 'level = "internal"' in runtime.ok("show", "life")
    assert "life" in runtime.ok("list")


def test_a_cage_goes_through_its_states(runtime: Runtime, cage: MakeCage) -> None:
    states = cage("states", "--no-start")
    assert states.status["state"] == "stopped"
    for verb, state in (("start", "running"), ("pause", "paused"), ("resume", "running"), ("stop", "stopped"),
                        ("start", "running"), ("kill", "stopped"), ("start", "running")):
        runtime.ok(verb, "states")
        assert states.status["state"] == state, verb
    assert states.sh("echo here") == "here\n"
    runtime.ok("destroy", "states", "--yes")
    assert runtime.state_of("states") is None
    assert "there is no cage" in runtime.cagectl("status", "states").stderr.decode()


@pytest.mark.parametrize(("state", "verb", "help_"), [
    ("stopped", "pause", b"start it with: cagectl start wrong"),
    ("stopped", "resume", b"start it with: cagectl start wrong"),
    ("stopped", "enter", b"start it with: cagectl start wrong"),
    ("paused", "enter", b"resume it with: cagectl resume wrong"),
    ("paused", "start", b"resume it with: cagectl resume wrong"),
])
def test_what_the_state_does_not_allow_says_what_would_help(
    runtime: Runtime, cage: MakeCage, state: str, verb: str, help_: bytes
) -> None:
    wrong = cage("wrong", *(["--no-start"] if state == "stopped" else []))
    if state == "paused":
        runtime.ok("pause", "wrong")
    ended = runtime.cagectl(verb, "wrong", *(["--", "true"] if verb == "enter" else []))
    assert (ended.returncode, help_ in ended.stderr) == (1, True), ended.stderr
    assert wrong.status["state"] == state


def test_what_is_so_already_is_no_error(runtime: Runtime, cage: MakeCage) -> None:
    steady = cage("steady")
    with steady.popen("sh", "-c", "read line; echo $line", stdin=subprocess.PIPE, stdout=subprocess.PIPE) as shell:
        runtime.ok("start", "steady")
        assert shell.communicate(b"still here\n", timeout=SECONDS)[0] == b"still here\n"
    for verb, state in (("pause", "paused"), ("resume", "running"), ("stop", "stopped")):
        for _ in range(2):
            runtime.ok(verb, "steady")
            assert steady.status["state"] == state


def test_a_paused_cage_stands_still(runtime: Runtime, cage: MakeCage) -> None:
    paused = cage("still")
    with paused.popen("sh", "-c", "while read line; do echo $line; done", stdin=subprocess.PIPE,
                      stdout=subprocess.PIPE) as shell:
        assert shell.stdin is not None
        assert shell.stdout is not None
        shell.stdin.write(b"one\n")
        shell.stdin.flush()
        assert shell.stdout.readline() == b"one\n"
        runtime.ok("pause", "still")
        assert "frozen 1" in (runtime.cgroups()[paused.uuid] / "cgroup.events").read_text()
        shell.stdin.write(b"two\n")
        shell.stdin.flush()
        assert not select.select([shell.stdout], [], [], 0)[0]
        runtime.ok("resume", "still")
        assert shell.stdout.readline() == b"two\n"
        shell.stdin.close()
        assert shell.wait(SECONDS) == 0


SAVES = "trap 'sleep 0.3; echo saved > Documents/last; exit' TERM; echo > ready; while :; do sleep 0.05; done"
"""Takes its time for what is in hand, as an editor does that writes a document down."""
DETACHED = 'setsid sh -c "$0" > /dev/null 2>&1 & until [ -e ready ]; do sleep 0.05; done'


def test_what_nobody_waits_for_has_its_time_to_end_too(cage: MakeCage) -> None:
    left = cage("left-behind")
    left.enter("sh", "-c", DETACHED, SAVES)
    left.runtime.ok("stop", "left-behind")
    left.runtime.ok("start", "left-behind")
    assert left.sh("cat Documents/last") == "saved\n"


def test_a_cage_is_stopped_or_destroyed_while_it_is_paused(runtime: Runtime, cage: MakeCage) -> None:
    paused = cage("frozen")
    runtime.ok("pause", "frozen")
    runtime.ok("stop", "frozen")
    assert paused.status["state"] == "stopped"
    runtime.ok("start", "frozen")
    runtime.ok("pause", "frozen")
    uuid = paused.uuid
    paused.destroy()
    assert uuid not in runtime.cgroups()


def test_a_command_ends_with_its_cage(runtime: Runtime, cage: MakeCage) -> None:
    cage("short")
    with runtime.popen("enter", "short", "--", "sh", "-c", "trap '' TERM HUP; echo on; read x",
                       stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as command:
        assert command.stdout is not None
        assert command.stdout.readline() == b"on\n"
        runtime.ok("kill", "short")
        assert command.wait(SECONDS) == 137
        assert command.stderr is not None
        assert b"the cage stopped" in command.stderr.read()


# --- documents ---------------------------------------------------------------------------------------------------
def test_documents_persist(runtime: Runtime, cage: MakeCage) -> None:
    kept = cage("kept")
    kept.sh("echo figures > Documents/figures.txt; echo gone > /tmp/file; echo gone > /dev/shm/file")
    runtime.ok("stop", "kept")
    runtime.ok("start", "kept")
    assert kept.sh("cat Documents/figures.txt") == "figures\n"
    assert kept.enter("ls", "/tmp/file", "/dev/shm/file").returncode == 2


def test_an_ephemeral_home_vanishes(runtime: Runtime, cage: MakeCage) -> None:
    forgetful = cage("forgetful", "--ephemeral")
    assert forgetful.status["home"] == "in memory"
    forgetful.sh("echo figures > Documents/figures.txt")
    runtime.ok("stop", "forgetful")
    runtime.ok("start", "forgetful")
    assert forgetful.enter("cat", "Documents/figures.txt").returncode == 1
    assert not (runtime.storage / forgetful.uuid).exists()


# --- enter -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("command", "status", "said"), [
    (("true",), 0, b""),
    (("sh", "-c", "exit 3"), 3, b""),
    (("sh", "-c", "exit 255"), 255, b""),
    (("no-such-command",), 127, b'there is no command "no-such-command" in the cage'),
    (("/no/such/command",), 127, b'there is no command "/no/such/command" in the cage'),
    (("/etc/passwd",), 126, b'"/etc/passwd" in the cage cannot be executed'),
    (("/home",), 126, b'"/home" in the cage cannot be executed'),
    (("sh", "-c", "kill -TERM $$"), 128 + signal.SIGTERM, b""),
    (("sh", "-c", "kill -KILL $$"), 128 + signal.SIGKILL, b""),
])
def test_enter_ends_as_its_command_does(work: Cage, command: tuple[str, ...], status: int, said: bytes) -> None:
    ended = work.enter(*command)
    assert (ended.returncode, ended.stdout) == (status, b"")
    assert said in ended.stderr if said else ended.stderr == b""


def test_ten_megabytes_go_in_and_come_out(work: Cage) -> None:
    content = os.urandom(10 << 20)
    ended = work.enter("cat", input=content)
    assert ended.returncode == 0
    assert hashlib.sha256(ended.stdout).digest() == hashlib.sha256(content).digest()


def test_output_and_errors_stay_apart(work: Cage) -> None:
    ended = work.enter("sh", "-c", "echo out; echo err >&2")
    assert (ended.stdout, ended.stderr) == (b"out\n", b"err\n")


def test_a_command_that_does_not_read_ends_all_the_same(work: Cage) -> None:
    assert work.enter("true", input=b"x" * (1 << 20)).returncode == 0


def test_a_child_in_the_background_holds_nobody_up(work: Cage) -> None:
    begun = time.monotonic()
    ended = work.enter("sh", "-c", "sleep 1000 & echo $!")
    assert (ended.returncode, time.monotonic() - begun < 10) == (0, True)
    work.sh(f"kill {ended.stdout.decode()}")


def test_enter_as_the_cages_root(work: Cage) -> None:
    ended = work.enter("sh", "-c", "id -u; pwd; echo $HOME", root=True)
    assert ended.stdout == b"0\n/root\n/root\n"


@pytest.mark.parametrize(("directory", "status", "said"), [
    ("/usr/share", 0, b""),
    ("/home/user/Documents", 0, b""),
    ("Documents", 0, b""),
    ("/no/such", 1, b'the directory "/no/such" cannot be entered in the cage: No such file or directory'),
    ("/root", 0, b""),
    ("/etc/passwd", 1, b'the directory "/etc/passwd" cannot be entered in the cage: Not a directory'),
    ("/proc/self/fd/7", 1, b'the directory "/proc/self/fd/7" cannot be entered in the cage: No such file or directory'),
    ("/run/cage/gate", 1, b'the directory "/run/cage/gate" cannot be entered in the cage: Permission denied'),
])
def test_enter_begins_where_it_is_told(
    runtime: Runtime, work: Cage, directory: str, status: int, said: bytes
) -> None:
    ended = runtime.cagectl("enter", work.name, "--cwd", directory, "--", "/bin/pwd")
    assert (ended.returncode, said in ended.stderr) == (status, True), ended.stderr
    assert ended.stdout.decode().strip() == ("" if status else os.path.join("/home/user", directory))


def test_incage_is_found_in_a_login_shell(work: Cage) -> None:
    """Which sets PATH anew, from /etc/profile."""
    ended = work.enter("bash", "--login", "-c", "command -v incage")
    assert ended.stdout == b"/opt/cage-runtime/bin/incage\n"


# --- enter on a terminal -----------------------------------------------------------------------------------------
@contextmanager
def on_terminal(work: Cage, *command: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """cagectl enter on a terminal of 30 by 100; the process, and the terminal's master."""
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (30, 100))
    environment = {**work.runtime.environment(), "TERM": "xterm"}
    with work.runtime.popen("enter", work.name, *(["--", *command] if command else []), env=environment,
                            stdin=slave, stdout=slave, stderr=slave, start_new_session=True) as process:
        os.close(slave)
        try:
            yield process, master
        finally:
            process.kill()
            os.close(master)


def read_until(master: int, wanted: bytes) -> bytes:
    seen = b""
    while wanted not in seen:
        wait_readable(master, f"{wanted!r} on the terminal after {seen!r}")
        seen += os.read(master, 4096)
    return seen


def test_a_terminal_is_one_in_the_cage(work: Cage) -> None:
    script = 'tty; stty size; echo "TERM=$TERM"; read word; echo "read <$word>"; exit 5'
    with on_terminal(work, "sh", "-c", script) as (process, master):
        seen = read_until(master, b"TERM=xterm")
        assert b"/dev/pts/" in seen
        assert b"30 100" in seen
        os.write(master, b"quarterly\r")
        assert b"read <quarterly>" in read_until(master, b">")
        assert process.wait(SECONDS) == 5


def test_a_terminals_size_and_keys_go_through(work: Cage) -> None:
    with on_terminal(work, "python3", "-c", WAIT_FOR_SIZE) as (process, master):
        read_until(master, b"on")
        termios.tcsetwinsize(master, (41, 111))
        os.kill(process.pid, signal.SIGWINCH)
        assert b"41 111" in read_until(master, b"111")
        assert process.wait(SECONDS) == 6
    with on_terminal(work, "sh", "-c", "echo on; read x") as (process, master):
        read_until(master, b"on")
        os.write(master, b"\x03")
        assert process.wait(SECONDS) == 128 + signal.SIGINT


def test_without_a_command_there_is_a_login_shell(work: Cage) -> None:
    with on_terminal(work) as (process, master):
        os.write(master, b"shopt -q login_shell && echo it is a lo'gin' shell\r")
        read_until(master, b"it is a login shell")
        os.write(master, b"exit 4\r")
        assert process.wait(SECONDS) == 4


def test_what_ran_on_a_terminal_that_is_closed_is_told(runtime: Runtime, work: Cage) -> None:
    with on_terminal(work, "sh", "-c", "trap 'echo > Documents/told; exit' HUP; echo on; while :; do read x; done") as (
        process, master,
    ):
        read_until(master, b"on")
        documents = runtime.storage / work.uuid / "home/Documents"
        with Changes(documents) as changes:
            process.send_signal(signal.SIGHUP)
            changes.until((documents / "told").exists, "the hang-up")
    work.sh("rm Documents/told")


# --- ids and names -----------------------------------------------------------------------------------------------
def test_ranges_are_disjoint_recorded_and_not_handed_out_twice(runtime: Runtime, cage: MakeCage) -> None:
    seen: dict[str, int] = {}
    for number in range(4):
        made = cage(f"range-{number}", *(["--ephemeral"] if number % 2 else []))
        seen[made.uuid] = made.base
        line = made.sh("cat /proc/self/uid_map").split()
        assert line == ["0", str(made.base), str(ID_RANGE)]
        assert {os.stat(f"/proc/{pid}").st_uid // ID_RANGE for pid in runtime.cage_processes(made.uuid)} == {
            made.base // ID_RANGE}
        if number == 1:
            Cage(runtime, "range-0").destroy()
    standing = runtime.ranges()
    assert len(set(standing.values())) == len(standing)
    assert {uuid: base for uuid, base in seen.items() if uuid in standing} == {
        uuid: number * ID_RANGE for uuid, number in standing.items() if uuid in seen}


@pytest.mark.parametrize(("name", "status", "said"), [
    ("", 2, b"cannot be a cage's name"),
    ("Work", 2, b"cannot be a cage's name"),
    ("1st", 2, b"cannot be a cage's name"),
    ("a" * 32, 2, b"cannot be a cage's name"),
    ("../etc", 2, b"cannot be a cage's name"),
    ("a b", 2, b"cannot be a cage's name"),
    ("a\n", 2, b"cannot be a cage's name"),
    ("core", 2, b'"core" is reserved'),
    ("host", 2, b'"host" is reserved'),
    ("all", 2, b'"all" is reserved'),
    ("life", 1, b'there is a cage "life" already'),
])
@pytest.mark.usefixtures("work")
def test_a_name_that_cannot_be_is_refused(runtime: Runtime, name: str, status: int, said: bytes) -> None:
    before = runtime.json("list"), runtime.ranges()
    ended = runtime.cagectl("create", name)
    assert (ended.returncode, said in ended.stderr) == (status, True), ended.stderr
    assert (runtime.json("list"), runtime.ranges()) == before


@pytest.mark.parametrize(("options", "status", "said"), [
    (("--level", "cosmic"), 2, b'there is no level "cosmic"; this host has public, internal, secret'),
    (("--compartment", "aliens"), 2, b'there is no compartment "aliens"'),
    (("--template", "none-such"), 2, b'there is no template "none-such"'),
    (("--disk", "10G"), 125, b"the limit cannot be enforced; leave it out"),
    (("--disk", "much"), 2, b"disk:"),
    (("--network", "nat"), 2, b'network "nat" is not offered'),
])
def test_a_definition_that_cannot_be_kept_is_refused(
    runtime: Runtime, options: tuple[str, ...], status: int, said: bytes
) -> None:
    before = runtime.json("list"), runtime.ranges()
    ended = runtime.cagectl("create", "refused", *options)
    assert (ended.returncode, said in ended.stderr) == (status, True), ended.stderr
    assert (runtime.json("list"), runtime.ranges()) == before


# --- the end -----------------------------------------------------------------------------------------------------
def test_destroy_leaves_nothing(runtime: Runtime, cage: MakeCage) -> None:
    doomed = cage("doomed")
    uuid = doomed.uuid
    doomed.sh("mkdir -p Documents/deep/er; ln -s / Documents/away; echo x > Documents/deep/file; sleep 1000 &")
    pids = runtime.cage_processes(uuid)
    assert pids
    doomed.destroy()
    assert not any(uuid in path.name for path in runtime.top.rglob("*"))
    assert uuid not in runtime.cgroups()
    assert not [pid for pid in pids if Path(f"/proc/{pid}/ns/mnt").exists() and uuid in _cgroup(pid)]
    assert os.path.isdir("/etc")


def _cgroup(pid: int) -> str:
    return Path(f"/proc/{pid}/cgroup").read_text()


def test_a_fork_bomb_is_bounded_and_destroyed_at_once(runtime: Runtime, cage: MakeCage, tmp_path: Path) -> None:
    definition = tmp_path / "bomb.toml"
    definition.write_text('[limits]\ntasks = 200\non-missing = "warn"\n')
    bombed = cage("bombed", "--from", str(definition))
    uuid = bombed.uuid
    with bombed.popen("python3", "-c", FORK_BOMB, stdout=subprocess.PIPE) as bomb:
        assert bomb.stdout is not None
        assert bomb.stdout.read(5) == b"ready"
        while (count := len(runtime.cage_processes(uuid))) < 150:
            assert bomb.poll() is None
        assert count <= 210
        begun = time.monotonic()
        bombed.destroy()
        took = time.monotonic() - begun
        assert bomb.wait(SECONDS) == 137
    assert took < 5
    assert uuid not in runtime.cgroups()
    assert not any(uuid in path.name for path in runtime.top.rglob("*"))
