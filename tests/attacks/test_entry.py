# SPDX-License-Identifier: LGPL-2.1-or-later
"""A of the catalogue, raced: a cage watches its processes while the host enters it and runs in it (1 to 5)."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.attacks.conftest import Inside
from tests.privileged.conftest import MakeCage
from tests.privileged.runtime import Cage

ROUNDS = 25
PYTHON = Path("/usr/bin/python3").resolve()
SELF = "#!/proc/self/exe -i\n"
"""Python runs it, and a program that has no such option ends."""


def entered(cage: Cage, *words: str, root: bool = False, rounds: int = ROUNDS) -> None:
    for _ in range(rounds):
        cage.enter(*words, root=root)


def watched(cage: Cage, *, root: bool, meanwhile: Callable[[], object]) -> dict[str, Any]:
    with Inside(cage, root=root).waiting("poll") as waiting:
        assert waiting.first == "watching"
        meanwhile()
        said: dict[str, Any] = waiting.said()
    return said


@pytest.mark.parametrize("root", [False, True], ids=["user", "root"])
def test_nothing_of_the_host_is_in_a_process_that_comes_to_be(left: Cage, root: bool) -> None:
    """2, 3, 4: descriptors, directories, memory and environment of all that enters, from its first moment on."""
    seen = watched(left, root=root, meanwhile=lambda: entered(left, "cat", "/etc/hostname", root=root))
    # Every one of them was there to be looked at, and they were looked into once they were programs of the cage.
    assert len(seen["new"]) + len(seen["foreign"]) >= ROUNDS // 2
    assert seen["read"]["environ"] >= 1
    assert seen["read"]["fd"] >= 1
    assert seen["read"]["cwd"] >= 1
    assert seen["outside"] == []
    assert seen["environment"] == []
    assert seen["roots"] == []
    assert [how for how in seen["written"] if not how.startswith("refused")] == []


def test_nothing_of_somebody_elses_can_be_looked_into(left: Cage) -> None:
    """3, 4: by the user, of what the cage's root runs."""
    seen = watched(left, root=False, meanwhile=lambda: entered(left, "cat", "/etc/hostname", root=True))
    assert len(seen["foreign"]) >= ROUNDS // 2
    assert (seen["read"], seen["outside"], seen["roots"], seen["new"]) == ({}, [], [], [])


def test_a_mediator_s_half_can_not_be_looked_into(left: Cage) -> None:
    """3, 4: it comes to be with each request, and it leads to the core."""
    send = "echo x > file; for n in 1 2 3 4 5; do incage send file --to nobody-there; done; rm file"
    seen = watched(left, root=False, meanwhile=lambda: [left.enter("sh", "-c", send) for _ in range(3)])
    assert seen["read"]["environ"] > 0
    assert (seen["outside"], seen["roots"], seen["environment"]) == ([], [], [])


# --- 1 ---------------------------------------------------------------------------------------------------------------
def test_the_program_that_enters_is_not_the_hosts(cage: MakeCage) -> None:
    """CVE-2019-5736: what a person enters is a script whose interpreter is whoever executes it."""
    free = cage("free", "--exec-home")
    before = hashlib.sha256(PYTHON.read_bytes()).hexdigest()
    free.sh(f"printf '%s' '{SELF}import time; time.sleep(0.05)' > sh; chmod 755 sh")
    ways = ("/home/user/sh", "./sh", "/usr/../home/user/sh", "/home/user/link")
    free.sh("ln -s sh link")
    seen = watched(free, root=False, meanwhile=lambda: [entered(free, way, rounds=ROUNDS // 4) for way in ways])
    assert len(seen["new"]) >= ROUNDS // 2
    assert seen["read"]["exe"] >= 1
    assert [how for how in seen["written"] if not how.startswith("refused")] == []
    assert hashlib.sha256(PYTHON.read_bytes()).hexdigest() == before
    # Nor is it there to be locked or watched, which another cage would notice.
    assert seen["outside"] == []


def test_what_a_cage_has_made_is_executed_as_it_is(cage: MakeCage) -> None:
    """With its words, its environment and its refusals, though another program of the cage comes before it."""
    free = cage("free", "--exec-home")
    script = "#!/usr/bin/env -S /usr/bin/python3 -IS\nimport os, sys\nprint(sys.argv, sorted(os.environ))"
    free.sh("cat > 'a=b $x'; chmod 755 'a=b $x'; touch plain; ln -s loop loop", input=script.encode())
    ended = free.enter("/home/user/a=b $x", "", "two words", "$HOME", "-c")
    assert ended.returncode == 0, ended.stderr.decode()
    environment = sorted(free.enter("env", "-0").stdout.decode().split("\0"))[1:]
    names = [entry.partition("=")[0] for entry in environment]
    assert ended.stdout.decode() == f"{['/home/user/a=b $x', '', 'two words', '$HOME', '-c']} {names}\n"
    for words, status in (("/home/user/plain", 126), ("/home/user/none", 127), ("/home/user/loop", 126), ("/tmp", 126)):
        assert free.enter(words).returncode == status, words


# --- 5 ---------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("cwd", "why"), [
    ("/proc/self/fd/7", "No such file or directory"), ("/proc/self/fd/0", "Not a directory"),
    ("/proc/1/root", "No such file or directory"), ("/proc/1/cwd", "No such file or directory"),
    ("/home/user/gone", "No such file or directory"), ("/home/user/loop", "Too many levels of symbolic links"),
    ("/run/cage/gate", "Permission denied"),
])
def test_a_directory_to_begin_in_is_one_of_the_cage(left: Cage, cwd: str, why: str) -> None:
    left.sh("rm -f loop; ln -s loop loop")
    ended = left.runtime.cagectl("enter", left.name, "--cwd", cwd, "--", "pwd")
    assert (ended.returncode, ended.stdout) == (1, b"")
    assert why in ended.stderr.decode()


def test_a_directory_that_is_renamed_or_removed_leads_nowhere_else(left: Cage) -> None:
    """5: swapped for links to all that there is outside, while the host begins in it."""
    swap = "mkdir -p a; while :; do mv a b; ln -s /../../../proc/1/root a; rm a; mv b a; done"
    with left.popen("sh", "-c", f"mkdir a; echo; {swap}", stdout=subprocess.PIPE) as swapper:
        assert swapper.stdout is not None
        assert swapper.stdout.readline() == b"\n"
        words = ("--cwd", "/home/user/a", "--", "sh", "-c", "ls -d /proc/1; pwd")
        said = [left.runtime.cagectl("enter", left.name, *words)
                for _ in range(ROUNDS)]
        swapper.terminate()
    shown = {ended.stdout for ended in said}
    assert shown <= {b"", b"/home/user/a\n", b"/home/user/b\n"}
    assert {ended.returncode for ended in said} <= {0, 1}
