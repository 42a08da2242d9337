# SPDX-License-Identifier: LGPL-2.1-or-later
"""cagectl cp, into real cages and out of them: whole and checked, or not at all, whatever the cage puts there."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.privileged.conftest import MakeCage
from tests.privileged.runtime import Cage, Runtime


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
