# SPDX-License-Identifier: LGPL-2.1-or-later
"""Each wall with others taken away: what it holds alone, and which other one holds what it held."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from cage_runtime.spawner import landlock, syscall
from cage_runtime.spawner.walls import Namespace, Walls
from tests.attacks.walled import Walled
from tests.privileged.runtime import PREFIX, SECONDS, Cage

SHIPPED = PREFIX / "bin/cage-spawner"


@pytest.mark.parametrize("words", [
    ("--without", "seccomp"), ("--walls", "none"), ("--no-seccomp",), ("seccomp=off",),
])
def test_the_shipped_spawner_leaves_no_wall_out(words: tuple[str, ...]) -> None:
    ended = subprocess.run([SHIPPED, *words], capture_output=True, text=True, timeout=SECONDS, check=False)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == f"cage-spawner: unrecognized arguments: {' '.join(words)}; see cage-spawner --help\n"


@pytest.mark.parametrize("table", ["walls = []\n", "[walls]\nseccomp = false\n", "[spawner]\nlandlock = false\n"])
def test_no_configuration_leaves_a_wall_out(tmp_path: Path, table: str) -> None:
    file = tmp_path / "caged.conf"
    file.write_text(f'{table}[paths]\nrun = "{tmp_path}/run"\nstate = "{tmp_path}/state"\n')
    ended = subprocess.run([SHIPPED, "--config", file], capture_output=True, text=True, timeout=SECONDS, check=False)
    assert ended.returncode not in (0, -9)
    assert "unknown" in ended.stderr, ended.stderr
    assert not (tmp_path / "run").exists()


# --- one wall less, one wall alone -----------------------------------------------------------------------------------
REACH = Path(__file__).with_name("reach.py").read_text()
Answers = dict[str, str]

CALLS: Answers = {
    **dict.fromkeys(("sethostname", "mount", "remount /usr", "umount /usr", "a device", "chroot", "keyctl",
                     "io_uring_setup", "bpf", "userfaultfd", "a raw socket"), "EPERM"),
    "a packet socket": "EAFNOSUPPORT", "a vsock": "EAFNOSUPPORT", "a higher priority": "EACCES",
}
"""As all walls together answer, to the cage's user and to its root."""
MET: Answers = {"abstract socket": "ECONNREFUSED", "loopback": "ECONNREFUSED", "shared memory": "ENOENT",
                "clocks": "allowed"}
MET_IN_ONE_PID_NAMESPACE: Answers = {**MET, "signal": "EPERM", "environment": "EACCES", "root": "EACCES",
                                     "priority": "EPERM"}
"""Held by the user namespace: no id of one cage is one of another."""
SCOPED = "EPERM" if syscall.landlock_abi() >= landlock.SCOPE_ABI else "allowed"
"""What Landlock scopes; the kernel of Debian 12 has none."""
SCOPED_PROC = "EACCES" if syscall.landlock_abi() else "allowed"
"""Landlock domains do not trace each other, at any version."""

WITHOUT_SECCOMP: Answers = {
    # Held by the missing capabilities still: all but what needs none.
    "a packet socket": "EPERM", "keyctl": "allowed", "io_uring_setup": "EFAULT", "bpf": "EINVAL",
    "userfaultfd": "allowed", "a vsock": "allowed",
}
OF_ITS_OWN_NAMESPACES: Answers = {
    # What the root of a user namespace may, on what is its own; that is not the host's name, nor the host's mounts.
    "sethostname": "allowed", "mount": "allowed", "chroot": "allowed", "a raw socket": "allowed",
    "a packet socket": "allowed",
    # Held by the mounts being locked.
    "umount /usr": "EINVAL",
}


def without(*kinds: Namespace) -> frozenset[Namespace]:
    return frozenset(Namespace) - set(kinds)


NONE: frozenset[Namespace] = frozenset()
USER, PID, NET, IPC, TIME = Namespace.USER, Namespace.PID, Namespace.NET, Namespace.IPC, Namespace.TIME


@dataclass(frozen=True, kw_only=True)
class Case:
    """What differs from all walls together; an attempt that is left out is not made, for what it would do."""

    walls: Walls
    by_user: Answers = field(default_factory=dict)
    by_root: Answers = field(default_factory=dict)
    met: Answers = field(default_factory=lambda: dict(MET))


CASES = {
    "all but the context": Case(walls=Walls(lsm=False)),
    "all but seccomp": Case(
        walls=Walls(lsm=False, seccomp=False), by_user=WITHOUT_SECCOMP, by_root=WITHOUT_SECCOMP),
    "all but capabilities": Case(
        # Held by seccomp, and the mounts by being locked.
        walls=Walls(lsm=False, capabilities=False),
        by_root={"mount": "allowed", "umount /usr": "EINVAL", "chroot": "allowed"}),
    "all but Landlock": Case(walls=Walls(lsm=False, landlock=False)),
    "namespaces alone": Case(
        walls=Walls(lsm=False, seccomp=False, capabilities=False, landlock=False), by_user=WITHOUT_SECCOMP,
        by_root=WITHOUT_SECCOMP | OF_ITS_OWN_NAMESPACES),
    "all but the network namespace": Case(
        # The abstract socket is held by Landlock; a port by nothing else.
        walls=Walls(lsm=False, namespaces=without(NET)), met={**MET, "abstract socket": SCOPED, "loopback": "allowed"}),
    "all but the network namespace and Landlock": Case(
        walls=Walls(lsm=False, namespaces=without(NET), landlock=False),
        met={**MET, "abstract socket": "allowed", "loopback": "allowed"}),
    "all but the pid namespace": Case(
        walls=Walls(lsm=False, namespaces=without(PID)), met=MET_IN_ONE_PID_NAMESPACE),
    "all but the pid and user namespaces": Case(
        # Signals and /proc are held by Landlock; the priority by nothing else.
        walls=Walls(lsm=False, namespaces=without(PID, USER)),
        met={**MET_IN_ONE_PID_NAMESPACE, "signal": SCOPED, "environment": SCOPED_PROC, "root": SCOPED_PROC,
             "priority": "allowed", "loopback": "ENETUNREACH"}),
    "all but the ipc namespace": Case(
        walls=Walls(lsm=False, namespaces=without(IPC)), met={**MET, "shared memory": "EACCES"}),
    "all but the ipc and user namespaces": Case(
        walls=Walls(lsm=False, namespaces=without(IPC, USER)),
        met={**MET, "shared memory": "allowed", "loopback": "ENETUNREACH"}),
    "all but the time namespace": Case(
        # A lock on the namespace itself is seen, and nothing else holds that.
        walls=Walls(lsm=False, namespaces=without(TIME)), met={**MET, "clocks": "EAGAIN"}),
    "seccomp alone": Case(
        # The host's root, but for the mount namespace: what bwrap needs of mounts is for capabilities to hold.
        walls=Walls(lsm=False, namespaces=NONE, landlock=False, capabilities=False),
        met={"abstract socket": "allowed", "loopback": "allowed", "shared memory": "allowed", "clocks": "EAGAIN",
             "signal": "allowed", "environment": "allowed", "root": "allowed", "priority": "allowed"}),
}
NOT_MADE = {"seccomp alone": ("mount", "remount /usr", "umount /usr")}
"""By the host's root."""


@dataclass(frozen=True, kw_only=True)
class Seen:
    by_user: Answers
    by_root: Answers
    met: Answers
    enforced: bool
    """Whether there are security contexts on this host."""


def seen(walls: Walls, left_out: tuple[str, ...] = ()) -> Seen:
    """What two cages with `walls` answer."""
    runtime = Walled(walls)
    try:
        runtime.start()
        left, right = Cage(runtime, "left"), Cage(runtime, "right")
        for cage in (left, right):
            runtime.ok("create", cage.name, "--ephemeral")
        answers = Seen(by_user=asked(left, "calls"), by_root=asked(left, "calls", *left_out, root=True),
                       met=met(left, right, alone=Namespace.PID in walls.namespaces), enforced=enforces(runtime))
    finally:
        for entry in runtime.json("list"):
            runtime.ok("destroy", entry["name"], "--yes")
        runtime.remove()
    return answers


def asked(cage: Cage, *words: str, root: bool = False) -> Answers:
    ended = cage.enter("/usr/bin/python3", "-IS", "-c", REACH, *words, root=root)
    assert ended.returncode == 0, ended.stderr.decode()
    answers: Answers = json.loads(ended.stdout)
    return answers


def met(left: Cage, right: Cage, *, alone: bool) -> Answers:
    """What `right` reaches of a process in `left`, whose number says nothing there if each has its own."""
    with left.popen("/usr/bin/python3", "-IS", "-c", REACH, "hold", stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        pid = json.loads(holder.stdout.readline())["pid"]
        return asked(right, "meet", "0" if alone else str(pid))


def enforces(runtime: Walled) -> bool:
    return any(check["check"] == "security context" and check["state"] == "ok" for check in runtime.json("doctor"))


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[Case, Seen, tuple[str, ...]]:
    case, left_out = CASES[request.param], NOT_MADE.get(request.param, ())
    return case, seen(case.walls, left_out), left_out


def test_what_the_walls_that_are_left_answer(case: tuple[Case, Seen, tuple[str, ...]]) -> None:
    expected, answers, left_out = case
    assert answers.by_user == CALLS | expected.by_user
    assert answers.by_root == {name: said for name, said in (CALLS | expected.by_root).items() if name not in left_out}
    assert answers.met == expected.met


def test_the_security_context_where_all_namespaces_are_shared_but_the_one_of_users() -> None:
    """An abstract socket is nothing's but the context's then; tests/kernels has it without that one too."""
    found = seen(Walls(namespaces=frozenset({USER}), landlock=False))
    for name in ("signal", "environment", "root", "priority"):
        assert found.met[name] == MET_IN_ONE_PID_NAMESPACE[name]
    assert (found.met["abstract socket"] == "allowed") is not found.enforced
