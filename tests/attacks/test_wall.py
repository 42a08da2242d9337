# SPDX-License-Identifier: LGPL-2.1-or-later
"""Who one is in a cage: ids, environment, limits, namespaces, descriptors, processes, signals (2, 3, 17, 19, 34)."""

from __future__ import annotations

import os
import pty
import subprocess
from typing import Any

import pytest

from tests.attacks.conftest import Inside
from tests.attacks.host import Found
from tests.attacks.probe.kernel import NAMESPACES
from tests.privileged.conftest import MakeCage
from tests.privileged.runtime import SECONDS, Cage, wait_readable

NOTHING = "0000000000000000"
ENVIRONMENT = {
    "PATH": "/opt/cage-runtime/bin:/usr/local/bin:/usr/bin:/bin:/usr/games", "LANG": "C.UTF-8", "SHELL": "/bin/bash",
}
OF_USER = {"HOME": "/home/user", "USER": "user", "LOGNAME": "user", "XDG_RUNTIME_DIR": "/run/user/1000",
           "DBUS_SESSION_BUS_ADDRESS": "unix:path=/run/user/1000/bus",
           "XDG_DATA_DIRS": "/home/user/.local/share/flatpak/exports/share:/var/lib/flatpak/exports/share"
                            ":/usr/local/share:/usr/share"}
OF_ROOT = {"HOME": "/root", "USER": "root", "LOGNAME": "root"}


def identity(cage: Cage, *, root: bool) -> dict[str, Any]:
    (said,) = Inside(cage, root=root).run("identity")
    found: dict[str, Any] = said
    return found


@pytest.fixture(scope="module")
def by_user(standing_cages: dict[str, Cage]) -> dict[str, Any]:
    return identity(standing_cages["left"], root=False)


@pytest.fixture(scope="module")
def by_root(standing_cages: dict[str, Cage]) -> dict[str, Any]:
    return identity(standing_cages["left"], root=True)


@pytest.fixture(params=["by_user", "by_root"])
def answers(request: pytest.FixtureRequest) -> dict[str, Any]:
    """By the cage's user, and by its root."""
    answers: dict[str, Any] = request.getfixturevalue(request.param)
    return answers


# --- who one is in there -----------------------------------------------------------------------------------------
def test_no_right_is_left(answers: dict[str, Any]) -> None:
    assert (answers["no_new_privs"], answers["seccomp"]) == ("1", "2")
    # NOROOT and its lock, and the locks of KEEP_CAPS and NO_SETUID_FIXUP (capabilities(7)).
    assert answers["securebits"] == 0b101011
    assert answers["groups"] == []


def test_ids_are_the_cages_own(left: Cage, by_user: dict[str, Any], by_root: dict[str, Any]) -> None:
    assert by_user["uid_map"] == by_root["uid_map"] == ["0", str(left.base), "65536"]
    assert by_user["ids"] == [1000] * 3
    assert by_root["ids"] == [0] * 3
    assert by_user["hostname"] == "left"


def test_the_environment_is_exactly_the_rebuilt_one(by_user: dict[str, Any], by_root: dict[str, Any]) -> None:
    assert by_user["environment"] == ENVIRONMENT | OF_USER
    assert by_root["environment"] == ENVIRONMENT | OF_ROOT


def test_programs_that_want_no_core_dump_of_themselves_start(left: Cage) -> None:
    assert left.enter("gpg", "--version").stdout.startswith(b"gpg (GnuPG)")


def test_limits_are_a_command_s_own(left: Cage) -> None:
    """Of core dumps 1 and not 0, at which the kernel still runs the host's handler of core dumps (core(5))."""
    for root in (False, True):
        limits = left.enter("sh", "-c", "ulimit -Hc 0; ulimit -Sc 0; cat /proc/self/limits", root=root).stdout.decode()
        assert "Max core file size        1                    1 " in limits
        assert "Max open files            1024                 16384 " in limits


TAKE_TERMINALS = b"""
import os
held = []
try:
    while True:
        held += os.openpty()
except OSError as error:
    print(error.errno, len(held) // 2)
"""


def test_terminals_run_out_for_the_cage_alone(left: Cage, right: Cage) -> None:
    assert left.enter("python3", "-", input=TAKE_TERMINALS).stdout.decode() == "28 256\n"
    assert right.enter("python3", "-c", "import os; os.openpty()").returncode == 0


def test_every_namespace_is_its_own(right: Cage, by_user: dict[str, Any]) -> None:
    here = by_user["namespaces"]
    there = dict(line.split() for line in right.sh(
        f"for kind in {' '.join(NAMESPACES)}; do echo $kind $(readlink /proc/self/ns/$kind); done").splitlines())
    host = {kind: os.readlink(f"/proc/self/ns/{kind}") for kind in NAMESPACES}
    assert here.keys() == there.keys() == set(NAMESPACES)
    for kind in NAMESPACES:
        assert len({here[kind], there[kind], host[kind]}) == 3, kind


def test_signals_are_as_a_program_expects_them(left: Cage) -> None:
    for root in (False, True):
        status = left.enter("cat", "/proc/self/status", root=root).stdout.decode().splitlines()
        signals = dict(line.split() for line in status if line.startswith(("SigI", "SigB", "SigC")))
        assert (signals["SigIgn:"], signals["SigBlk:"], signals["SigCgt:"]) == (NOTHING, NOTHING, NOTHING)


# --- what one sees -----------------------------------------------------------------------------------------------
def test_other_users_processes_are_there_and_cannot_be_seen(left: Cage, answers: dict[str, Any]) -> None:
    assert 1 not in answers["visible"]
    assert {entry.split("/")[2] for entry in left.sh("ls -d /proc/[0-9]*").split()} <= {
        str(pid) for pid in range(1, 32768)}


def test_a_mediator_cannot_be_looked_at(left: Cage, found: Found) -> None:
    """Its cage half runs for a while after a request, as another uid of the cage."""
    left.sh("echo x > file; incage send file --to nobody-there; test $? = 126; rm file")
    for root in (False, True):
        inside = Inside(left, root=root)
        # The bus and the cage half.
        assert inside.run("identity")[0]["not ours but there"] >= 2
        files = {said.attempt: said.reason for said in inside.answers("try", found.alone)}
        assert files["files of processes of others"] == "none"
        listed = left.enter("sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '", root=root).stdout
        assert b"cage-mediator" not in listed
        assert b"dbus-daemon" not in listed


@pytest.mark.parametrize("root", [False, True])
def test_a_command_has_three_descriptors_of_the_cage(left: Cage, root: bool) -> None:
    ended = left.enter("ls", "-l", "/proc/self/fd", root=root)
    targets = [line.split(" -> ") for line in ended.stdout.decode().splitlines() if " -> " in line]
    assert [(name.split()[-1], target.partition(":[")[0]) for name, target in targets if "/fd" not in target] == [
        ("0", "pipe"), ("1", "pipe"), ("2", "pipe")]


def test_a_command_on_a_terminal_has_three_descriptors_of_the_cage(left: Cage) -> None:
    """The terminal is one that has no size, as a serial line has none."""
    master, slave = pty.openpty()
    with left.popen("sh", "-c", "ls -l /proc/self/fd; echo do''ne", stdin=slave, stdout=slave, stderr=slave) as process:
        os.close(slave)
        seen = b""
        while b"done" not in seen:
            wait_readable(master, "the descriptors")
            seen += os.read(master, 4096)
        assert process.wait(SECONDS) == 0
    os.close(master)
    targets = [line.split(" -> ")[1] for line in seen.decode().splitlines() if " -> " in line]
    opened = [target for target in targets if "/fd" not in target]
    assert len(opened) == 3
    assert set(opened) <= {f"/dev/pts/{number}" for number in range(9)}


# --- what one does to others -------------------------------------------------------------------------------------
@pytest.mark.parametrize("root", [False, True])
def test_signals_to_all_reach_nobody_else(left: Cage, right: Cage, root: bool) -> None:
    with right.popen("sh", "-c", "echo; exec sleep 1000", stdout=subprocess.PIPE) as bystander:
        assert bystander.stdout is not None
        assert bystander.stdout.readline() == b"\n"
        ended = left.enter("/bin/bash", "-c", "kill -9 1; kill -9 -1; echo still here", root=root)
        assert ended.stdout in (b"still here\n", b"")
        assert left.sh("echo init lives") == "init lives\n"
        assert left.runtime.ok("doctor")
        assert bystander.poll() is None
        bystander.terminate()
        assert bystander.wait(SECONDS) == 128 + 15


def test_a_setuid_program_has_no_effect(left: Cage, cage: MakeCage) -> None:
    free = cage("free", "--exec-home")
    assert free.sh("cp /usr/bin/id own-id; chmod 6755 own-id; ./own-id -u") == "1000\n"
    for name, shown in (("free", free), ("left", left)):
        assert shown.sh("find /usr -xdev -perm -4000 -path '*/su' -exec {} -c id root \\; </dev/null; id -u").endswith(
            "1000\n"), name
    home = free.runtime.storage / free.uuid / "home"
    assert (home / "own-id").stat().st_uid == free.base + 1000
