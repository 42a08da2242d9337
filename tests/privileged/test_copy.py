# SPDX-License-Identifier: LGPL-2.1-or-later
"""cagectl cp, into real cages and out of them: whole and checked, or not at all, whatever the cage puts there."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from cage_runtime import packing
from tests.foreign import JOB, DbusNext, Refused
from tests.privileged.conftest import MakeCage
from tests.privileged.rules import until
from tests.privileged.runtime import Cage, Runtime, arguments_of, wait_readable


@pytest.fixture(scope="module")
def cage(shared_cage: MakeCage) -> Cage:
    return shared_cage("copied", "--level", "internal")


def cp(runtime: Runtime, *words: str) -> subprocess.CompletedProcess[bytes]:
    return runtime.cagectl("cp", *words)


def test_a_tree_goes_in_and_comes_out_again_as_it_was(runtime: Runtime, cage: Cage, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    for number in range(10):
        (tree / f"d{number}").mkdir(parents=True)
        (tree / f"d{number}/large").write_bytes(os.urandom(1024**2))
    (tree / "run").write_text("#!/bin/sh\n")
    (tree / "run").chmod(0o4755)
    (tree / "empty").touch()
    ended = cp(runtime, str(tree), "copied:")
    assert ended.returncode == 0, ended.stderr
    assert cage.sh("stat -c '%U %a %n' tree/run tree/empty") == "user 755 tree/run\nuser 644 tree/empty\n"
    (tmp_path / "back").mkdir()
    ended = cp(runtime, "copied:tree", f"{tmp_path}/back")
    assert ended.returncode == 0, ended.stderr
    assert subprocess.run(["diff", "-r", tree, tmp_path / "back/tree"], check=False).returncode == 0
    assert (tmp_path / "back/tree/run").stat().st_mode & 0o7777 == 0o755
    assert os.listdir(tmp_path / "back") == ["tree"]
    taken = cp(runtime, "copied:tree", f"{tmp_path}/back")
    assert (taken.returncode, b"is there already" in taken.stderr) == (1, True)
    assert cp(runtime, "--conflict", "rename", str(tree / "run"), "copied:tree/run").returncode == 0
    assert cage.sh("ls -A tree | sort | tail -2") == "run\nrun (2)\n"


def test_each_copy_is_in_the_record_before_it_has_its_name(runtime: Runtime, cage: Cage, tmp_path: Path) -> None:
    content = b"the figures\n" * 1000
    (tmp_path / "figures").write_bytes(content)
    known = {"cage": "copied", "uuid": cage.uuid, "by": "0", "path": "new\\x1b[2J/"}
    whole = {"size": "12000", "files": "1", "sha256": hashlib.sha256(content).hexdigest()}
    cage.enter("bash", "-c", "mkdir $'new\\e[2J'")
    before = len(runtime.events("copy"))
    assert cp(runtime, f"{tmp_path}/figures", "copied:new\x1b[2J/").returncode == 0
    into = {**known, "direction": "in", "name": "figures"}
    assert runtime.events("copy")[before:] == [
        into | {"outcome": "begun"}, into | whole | {"outcome": "is given its name"},
        into | whole | {"outcome": "arrived as figures"}]
    assert cp(runtime, "copied:new\x1b[2J/figures", f"{tmp_path}/back").returncode == 0
    out = {**known, "direction": "out", "path": known["path"] + "figures"}
    assert runtime.events("copy")[before + 3:] == [
        out | {"outcome": "begun"}, out | whole | {"outcome": "is given its name"},
        out | whole | {"outcome": "arrived as back"}]
    assert (tmp_path / "back").read_bytes() == content
    assert cp(runtime, "copied:nothing", f"{tmp_path}/x").returncode == 1
    failed = runtime.events("copy")[-1]
    assert (failed["path"], "nothing" in failed["outcome"]) == ("nothing", True), failed


def test_what_is_to_be_done_where_the_name_is_taken(runtime: Runtime, cage: Cage, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("new")
    cage.sh("mkdir -p taken; cd taken; echo old > taken; mkdir tree; echo old > tree/old")
    for conflict, status, shown in (("fail", 1, "is there already"), ("skip", 0, "skipped"),
                                    ("rename", 0, "taken (2)"), ("replace", 0, "taken")):
        ended = cp(runtime, "--conflict", conflict, f"{tmp_path}/taken", "copied:taken/taken")
        assert (ended.returncode, shown in (ended.stdout + ended.stderr).decode()) == (status, True), ended
    assert cage.sh("cd taken; cat taken 'taken (2)'; ls -A") == "newnewtaken\ntaken (2)\ntree\n"
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/mine").write_text("mine")
    for conflict, status, left in (("fail", 1, ["tree"]), ("skip", 0, ["tree"]), ("rename", 0, ["tree", "tree (2)"]),
                                   ("replace", 0, ["tree", "tree (2)"])):
        ended = cp(runtime, "--conflict", conflict, "copied:taken/tree", f"{tmp_path}/tree/../tree/../")
        assert ended.returncode == status, ended
        assert sorted(name for name in os.listdir(tmp_path) if name.startswith((".", "tree"))) == left
    assert os.listdir(tmp_path / "tree") == ["old"]


def test_what_grows_while_it_is_read_does_not_come_out(runtime: Runtime, cage: Cage) -> None:
    """The half has looked at it, and cannot go on before somebody reads."""
    cage.sh("truncate -s 16M growing")
    with contextlib.closing(DbusNext(runtime.address)) as client:
        path, stream, about, go = client.call("CopyOut", "copied", "growing", {})
        wait_readable(stream, "the half begins")
        cage.sh("echo more >> growing")
        with open(stream, "rb") as pipe:
            assert len(pipe.read()) < 17 * 1024**2
        with open(about, "wb", buffering=0) as pipe:
            pipe.write(b"{}\n")
            with pytest.raises(Refused, match="changed while it was read"):
                client.call("Wait", interface=JOB, path=path)
        os.close(go)


HOSTILE = (
    ("ln -s /etc/passwd odd/x", b"symbolic link"), ("mkfifo odd/x", b"neither a file nor a directory"),
    ("LC_ALL=C.UTF-8; touch $'odd/a\\e[2J'", b"cannot be seen"), ("echo 1 > odd/-rf", b"read as an option"),
)


@pytest.mark.parametrize(("made", "why"), HOSTILE)
def test_what_does_not_fit_is_refused_whole(runtime: Runtime, cage: Cage, tmp_path: Path, made: str,
                                            why: bytes) -> None:
    assert cage.enter("bash", "-c", f"mkdir -p odd; echo 1 > odd/good; {made}").returncode == 0
    ended = cp(runtime, "copied:odd", str(tmp_path))
    cage.sh("rm -r odd")
    assert ended.returncode != 0
    assert why in ended.stderr, ended.stderr
    assert b"\x1b" not in ended.stderr
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("path", ["../x", "/etc/passwd", "out/passwd", "nothing"])
def test_nothing_is_followed_out_of_the_home(runtime: Runtime, cage: Cage, tmp_path: Path, path: str) -> None:
    cage.sh("ln -sfn /etc out")
    (tmp_path / "file").write_text("1")
    assert cp(runtime, f"copied:{path}", f"{tmp_path}/got").returncode != 0
    assert not (tmp_path / "got").exists()
    if path != "nothing":
        assert cp(runtime, f"{tmp_path}/file", f"copied:{path}").returncode != 0


def test_the_half_is_confined_as_what_delivers_is(runtime: Runtime, cage: Cage, tmp_path: Path) -> None:
    """Stopped by its user in the middle, it can be looked at; the person gives up, and nothing is left of either."""
    with open(tmp_path / "much", "wb") as much:
        much.truncate(1024**3)
    with stopped_half(runtime, cage, f"{tmp_path}/much", "copied:here") as (copying, pid):
        status = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        assert (status["CapEff"], status["NoNewPrivs"]) == ("0000000000000000", "1")
        copying.terminate()
        assert copying.wait(20) == 143, copying.stderr
        until(lambda: not Path(f"/proc/{pid}").exists(), "the half does not end")
    until(lambda: runtime.events("copy")[-1]["outcome"].startswith("given up"), "nothing is recorded")
    (tmp_path / "small").write_text("1")
    assert cp(runtime, f"{tmp_path}/small", "copied:small").returncode == 0
    assert cage.sh("ls -A . | grep -c incoming || true") == "0\n", "what a killed half has left, the next one clears"


@contextlib.contextmanager
def stopped_half(runtime: Runtime, cage: Cage, *words: str,
                 command: list[str] | None = None) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A copy whose half in the cage is stopped, as the cage's user can."""
    def halves() -> list[int]:
        return [pid for pid in runtime.cage_processes(cage.uuid) if "--copy" in arguments_of(pid)]

    command = command or [str(runtime.prefix / "bin/cagectl"), "cp", *words]
    with subprocess.Popen(command, env=runtime.environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE) as copying:
        try:
            until(halves, "no half has started")
            (pid,) = halves()
            os.kill(pid, signal.SIGSTOP)
            yield copying, pid
        finally:
            copying.kill()


def test_what_is_interrupted_leaves_nothing_here(runtime: Runtime, cage: Cage, tmp_path: Path) -> None:
    cage.sh("truncate -s 1G much")
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        with stopped_half(runtime, cage, "copied:much", f"{tmp_path}/got") as (copying, _):
            copying.send_signal(number)
            assert copying.wait(20) == 128 + number
        assert os.listdir(tmp_path) == []
    with runtime.popen("cp", "copied:much", f"{tmp_path}/got") as copying:
        until(lambda: os.listdir(tmp_path), "nothing comes")
        copying.kill()
    assert [name.startswith(".incoming-") for name in os.listdir(tmp_path)] == [True]
    cage.sh("echo 1 > small")
    assert cp(runtime, "copied:small", f"{tmp_path}/small").returncode == 0
    assert os.listdir(tmp_path) == ["small"]


IMPATIENT = """
import sys
sys.path.append(sys.argv.pop(1))
from cage_runtime.cli import cagectl, verbs_copy
verbs_copy.STALL_SECONDS = 1.0
sys.exit(cagectl.main(sys.argv[1:]))
"""
"""cagectl, which gives up in a second what it gives up in a minute."""


@pytest.mark.parametrize("out", [False, True])
def test_one_that_does_not_go_on_is_given_up(runtime: Runtime, cage: Cage, tmp_path: Path, out: bool) -> None:
    cage.sh("truncate -s 1G much")
    here = tmp_path / "here"
    with open(here, "wb") as much:
        much.truncate(1024**3)
    words = ("copied:much", f"{tmp_path}/got") if out else (str(here), "copied:got")
    command = ["/usr/bin/python3", "-ISc", IMPATIENT, str(runtime.prefix / "lib"), "cp", *words]
    with stopped_half(runtime, cage, *words, command=command) as (copying, pid):
        said = copying.communicate(timeout=20)[1]
        assert (copying.returncode, b"nothing has moved for 1 s" in said) == (1, True), said
        until(lambda: not Path(f"/proc/{pid}").exists(), "the half does not end")
    assert os.listdir(tmp_path) == ["here"]
    assert cage.sh("ls got 2>/dev/null || true") == ""


def test_a_core_that_ends_leaves_no_half_of_a_copy(runtime: Runtime, cage: Cage, tmp_path: Path) -> None:
    with open(tmp_path / "much", "wb") as much:
        much.truncate(1024**3)
    with stopped_half(runtime, cage, f"{tmp_path}/much", "copied:cut") as (copying, pid):
        runtime.kill_and_wait("caged")
        assert copying.wait(30) == 125, copying.stderr
        until(lambda: not Path(f"/proc/{pid}").exists(), "the half does not end")
    assert cage.sh("ls cut 2>/dev/null || true") == ""


# --- by another program than cagectl -------------------------------------------------------------------------------
def one(name: bytes = b"x", content: bytes = b"1") -> bytes:
    body = packing.entry(packing.FILE, name, len(content)) + content + packing.entry(packing.END)
    return packing.header(1, len(content), packing.HEADER.size + len(body)) + body


def said(content: bytes = b"1", files: int = 1) -> bytes:
    whole = {"size": len(content), "files": files, "sha256": hashlib.sha256(content).hexdigest()}
    return json.dumps(whole).encode() + b"\n"


ODD = {
    "what is true": (one(), said(), ""),
    "another digest": (one(), said(b"2"), "did not answer as it should"),
    "a name that goes up": (one(b"../x"), said(), 'a "/"'),
    "an escape": (one(b"\x1b[2J"), said(), "cannot be seen"),
    "no tree": (b"x" * 1000, said(), "did not come as a tree comes"),
    "half of it": (one()[:-1], said(), "did not come whole"),
    "more after it": (one() + b"1", said(), "is longer than was said"),
    "nothing": (b"", said(), "did not come as a tree comes"),
    "a million files": (packing.header(10**6, 0, 10**8), said(), "send it in parts"),
    "no report": (one(), b"", "given up"),
    "a report that makes no sense": (one(), b"[]\n", "makes no sense"),
}


@pytest.mark.parametrize(("stream", "report", "why"), ODD.values(), ids=ODD)
def test_what_else_could_be_said_to_the_core(runtime: Runtime, cage: Cage, stream: bytes, report: bytes,
                                             why: str) -> None:
    with contextlib.closing(DbusNext(runtime.address)) as client:
        path, into, about = client.call("CopyIn", "copied", "odd-copy", "x", {})
        with contextlib.suppress(BrokenPipeError), open(into, "wb") as pipe:
            pipe.write(stream)
        with open(about, "wb") as pipe:
            pipe.write(report)
            pipe.flush()
            if not report:
                pipe.close()
            if why:
                with pytest.raises(Refused, match=re.escape(why)):
                    client.call("Wait", interface=JOB, path=path)
            else:
                assert client.call("Wait", interface=JOB, path=path)["name"] == "odd-copy"
    until(lambda: "incoming" not in cage.sh("ls -A"), "something is left")
    assert cage.sh("ls -A odd-copy 2>/dev/null; rm -rf odd-copy") == ("" if why else "odd-copy\n")
    outcome = runtime.events("copy")[-1]["outcome"]
    assert outcome.startswith("arrived") if not why else why in outcome


def test_a_cage_that_ends_meanwhile(runtime: Runtime, shared_cage: MakeCage, tmp_path: Path) -> None:
    ending = shared_cage("ending", "--level", "internal")
    ending.sh("truncate -s 1G much")
    with stopped_half(runtime, ending, "ending:much", f"{tmp_path}/got") as (copying, _):
        runtime.ok("kill", "ending")
        assert copying.wait(30) == 1
    assert os.listdir(tmp_path) == []
    runtime.ok("start", "ending")
    (tmp_path / "small").write_text("1")
    assert cp(runtime, f"{tmp_path}/small", "ending:").returncode == 0


def test_one_that_is_stopped_or_not_there(runtime: Runtime, shared_cage: MakeCage, tmp_path: Path) -> None:
    shared_cage("halted", "--level", "internal")
    runtime.ok("stop", "halted")
    (tmp_path / "file").write_text("1")
    ended = cp(runtime, f"{tmp_path}/file", "halted:")
    assert (ended.returncode, b"is stopped" in ended.stderr) == (1, True), ended.stderr
    assert b"there is no cage" in cp(runtime, f"{tmp_path}/file", "nobodys:").stderr


def test_a_private_cage_has_no_such_way(runtime: Runtime, shared_cage: MakeCage, tmp_path: Path) -> None:
    shared_cage("sealed", "--private")
    (tmp_path / "file").write_text("1")
    for words in ((f"{tmp_path}/file", "sealed:"), ("sealed:x", f"{tmp_path}/x")):
        ended = cp(runtime, *words)
        assert (ended.returncode, b"is private" in ended.stderr) == (126, True), ended.stderr
