# SPDX-License-Identifier: LGPL-2.1-or-later
"""What becomes a service: a file or socket of the cage's user's own, found by its name, held from the look on."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mediators.call import deliver
from mediators.call.deliver import LINE_MAX, NoService, NotExecutable
from mediators.call.protocol import Delivery

TOP = Path(__file__).parents[4]
HALF = [sys.executable, "-m", "mediators.main", "call", "--deliver"]
TELLS = """#!/bin/sh
echo "$0|$#|$CAGE_SOURCE|$CAGE_SERVICE|$CAGE_ARGUMENT"
cat
exit 7
"""


@pytest.fixture
def services(tmp_path: Path) -> Path:
    directory = tmp_path / ".config/incage/services"
    directory.mkdir(parents=True)
    return directory


def script(path: Path, text: str = TELLS, mode: int = 0o755) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


def called(home: Path, service: str, argument: str = "", content: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    environment = {"HOME": str(home), "PATH": os.environ["PATH"], "PYTHONPATH": str(TOP)}
    return subprocess.run([*HALF, service, argument, "work"], input=content, capture_output=True, env=environment,
                          check=False, timeout=20)


def test_a_script_becomes_the_call(tmp_path: Path, services: Path) -> None:
    script(services / "Tell")
    ended = called(tmp_path, "Tell", "key.1", b"\0bytes\xff")
    first, _, rest = ended.stdout.partition(b"\n")
    place, *told = first.decode().split("|")
    assert told == ["0", "work", "Tell", "key.1"], "no argument vector, and who calls is what the core said"
    assert place.startswith("/proc/self/fd/")
    assert rest == b"\0bytes\xff"
    assert (ended.returncode, ended.stderr) == (7, b"")


def test_the_one_for_the_argument_goes_first(tmp_path: Path, services: Path) -> None:
    script(services / "Tell", "#!/bin/sh\necho any\n")
    script(services / "Tell+this", "#!/bin/sh\necho this\n")
    assert [called(tmp_path, "Tell", argument).stdout for argument in ("", "this", "that")] == [
        b"any\n", b"this\n", b"any\n"]


def test_the_users_goes_before_the_hosts(tmp_path: Path, services: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host = tmp_path / "etc"
    host.mkdir()
    monkeypatch.setattr(deliver, "DIRECTORIES", (*deliver.DIRECTORIES[:1], str(host)))
    script(host / "Tell")
    wanted = Delivery(service="Tell", argument="", source="work")
    path, held = deliver.find(str(tmp_path), wanted)
    os.close(held)
    assert path == str(host / "Tell")
    script(services / "Tell")
    path, held = deliver.find(str(tmp_path), wanted)
    os.close(held)
    assert path == str(services / "Tell")


def test_where_there_is_none_that_is_what_is_said(tmp_path: Path, services: Path) -> None:
    for home in (tmp_path, services):  # and where there is no directory for them at all
        ended = called(home, "Tell")
        assert (ended.returncode, ended.stdout) == (127, b"")
        assert ended.stderr == b"cage-mediator: there is no service Tell here, which work called\n"


def unfit(services: Path) -> dict[str, Path]:
    """What has a service's name and is none, by what is wrong."""
    script(services.parent / "Elsewhere")
    (services / "Link").symlink_to(services.parent / "Elsewhere")
    (services / "Directory").mkdir()
    os.mkfifo(services / "Fifo")
    return {
        "a link is not followed": services / "Link",
        "neither a regular file nor a socket": services / "Directory",
        "neither a regular file nor": services / "Fifo",
        "can be written by others": script(services / "Group", mode=0o775),
        "can be written by": script(services / "Others", mode=0o757),
        "is not executable": script(services / "Text", mode=0o644),
        "is not an absolute path": script(services / "Relative", "#!sh\n"),
        "its first line is longer": script(services / "Long", "#!/bin/sh " + "x" * 300 + "\n"),
        "cannot be executed": script(services / "Nothing", "#!/nowhere/sh\n"),
        "cannot be executed: Exec format": script(services / "Empty", ""),
    }


def test_what_is_no_service_is_not_run(tmp_path: Path, services: Path) -> None:
    for fault, path in unfit(services).items():
        ended = called(tmp_path, path.name)
        assert (ended.returncode, ended.stdout) == (126, b""), path
        assert fault in ended.stderr.decode(), path
        assert ended.stderr.count(b"\n") == 1


def test_somebody_elses_file_is_no_service(
        services: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script(services / "Theirs")
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    with pytest.raises(NotExecutable, match="is not its user's own"):
        deliver.find(str(tmp_path), Delivery(service="Theirs", argument="", source="work"))


def test_what_was_looked_at_is_what_runs(tmp_path: Path, services: Path) -> None:
    """The file is renamed away under the half: by its path it would be another by now."""
    path = script(services / "Tell", "#!/bin/sh\necho first\n")
    found, held = deliver.find(str(tmp_path), Delivery(service="Tell", argument="", source="work"))
    path.unlink()
    script(path, "#!/bin/sh\necho second\n")
    pid = os.fork()
    if pid == 0:
        os.dup2(os.open(tmp_path / "said", os.O_WRONLY | os.O_CREAT), 1)
        deliver._execute(held, found, {})
    os.waitpid(pid, 0)
    os.close(held)
    assert (tmp_path / "said").read_text() == "first\n"


def test_a_socket_is_a_service_too(tmp_path: Path, services: Path) -> None:
    """With ends of its own each way: it answers once it has heard all."""
    content = os.urandom(300_000)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(os.path.relpath(services / "Echo"))
        listening.listen()
        pid = os.fork()
        if pid == 0:
            connection, _ = listening.accept()
            with connection, connection.makefile("rb") as heard:
                connection.sendall(heard.read()[::-1])
            os._exit(0)
        ended = called(tmp_path, "Echo", "", content)
        os.waitpid(pid, 0)
    assert (ended.returncode, ended.stdout == content[::-1], ended.stderr) == (0, True, b"")


def test_a_socket_that_nobody_listens_on_is_said_to_be_one(tmp_path: Path, services: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(os.path.relpath(services / "Dead"))
    ended = called(tmp_path, "Dead")
    assert (ended.returncode, ended.stdout) == (126, b"")
    assert b"cannot be connected to: Connection refused" in ended.stderr


@pytest.mark.parametrize(("line", "words"), [
    (b"#!/bin/sh\n", ["/bin/sh"]), (b"#! /bin/sh\n", ["/bin/sh"]), (b"#!/bin/sh", ["/bin/sh"]),
    (b"#!/usr/bin/env python3\nx", ["/usr/bin/env", "python3"]), (b"#!/bin/sh -eu -x \n", ["/bin/sh", "-eu -x"]),
    (b"#!\t/bin/sh\t-e\n", ["/bin/sh", "-e"]),
])
def test_a_scripts_first_line_is_read_as_the_kernel_reads_it(line: bytes, words: list[str]) -> None:
    assert deliver.script_words(line, "x") == words


@pytest.mark.parametrize("line", [b"#!/bin/sh -e\0x\n", b"#!/bin/s\0h\n", b"#!\0/bin/sh\n"])
def test_a_first_line_with_a_nul_is_refused(line: bytes) -> None:
    """No argument can have one: execve(2) would fail in a way that nobody expects."""
    with pytest.raises(NotExecutable, match="has a NUL"):
        deliver.script_words(line, "x")


@given(st.binary(max_size=LINE_MAX - 2))
def test_any_first_line_is_an_absolute_interpreter_or_none(rest: bytes) -> None:
    try:
        words = deliver.script_words(b"#!" + rest, "x")
    except NotExecutable:
        return
    assert words[0].startswith("/")
    assert not any("\0" in word for word in words)
    assert len(words) <= 2


def test_the_statuses_are_a_shells() -> None:
    assert (NoService.exit_status, NotExecutable.exit_status) == (127, 126)
