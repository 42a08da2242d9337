# SPDX-License-Identifier: LGPL-2.1-or-later
"""Whole cages in their security contexts: born into them, never without, and what holds when namespaces do not."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cage_runtime.spawner.lsm.contexts import FIRST, Contexts
from tests.kernels.lsm.cages import Cage, Spawner

LOOKED_INTO = ("environ", "mem", "maps", "auxv", "fd", "root", "cwd", "exe", "ns/net")
"""Of /proc/PID: what shows a process from within."""
ENTER = ("nsenter", "--target")


@pytest.fixture(scope="module")
def spawner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Spawner]:
    top = tmp_path_factory.mktemp("cages")
    for directory in (top, *top.parents[:2]):
        directory.chmod(0o755)
    spawner = Spawner(top)
    yield spawner
    spawner.stop()


@pytest.fixture(scope="module")
def work(spawner: Spawner) -> Iterator[Cage]:
    cage = Cage(spawner, "work")
    yield cage
    cage.destroy()


@pytest.fixture(scope="module")
def vault(spawner: Spawner) -> Iterator[Cage]:
    cage = Cage(spawner, "vault")
    yield cage
    cage.destroy()


@pytest.fixture(scope="module")
def quiet(spawner: Spawner) -> Iterator[Cage]:
    cage = Cage(spawner, "quiet", private=True)
    yield cage
    cage.destroy()


class Escaped:
    """Something of a cage that has lost every other wall: root of the host, in the host's namespaces, with all
    capabilities, and in the cage's context alone.  Each act is a process of its own, which executes nothing."""

    def __init__(self, contexts: Contexts, xid: int) -> None:
        self._contexts, self._xid = contexts, xid

    def tries(self, act: Callable[[], object]) -> str:
        """`done`, or the name of the error."""
        (go, going), (said, saying) = os.pipe(), os.pipe()
        child = os.fork()
        if child == 0:
            os.close(going)
            _try(act, go, saying)
        try:
            os.close(saying)
            pidfd = os.pidfd_open(child)
            try:
                self._contexts.enter(pidfd, self._xid)
                os.write(going, b"!")
                return os.read(said, 64).decode() or "ended"
            finally:
                os.close(pidfd)
                os.close(going)
                os.waitpid(child, 0)
        finally:
            os.close(go)
            os.close(said)

    def signals(self, pid: int) -> str:
        return self.tries(lambda: os.kill(pid, signal.SIGURG))


def _try(act: Callable[[], object], go: int, saying: int) -> None:
    try:
        if os.read(go, 1) == b"!":
            act()
            os.write(saying, b"done")
    except OSError as error:
        os.write(saying, errno.errorcode[error.errno or 0].encode())
    finally:
        os._exit(0)


@pytest.fixture(scope="module")
def escaped(contexts: Contexts, work: Cage) -> Escaped:
    return Escaped(contexts, work.xid)


def label(contexts: Contexts, pid: int) -> int:
    pidfd = os.pidfd_open(pid)
    try:
        return contexts.of(pidfd)
    finally:
        os.close(pidfd)


def looked_into(pid: int) -> set[str]:
    """What of a process can be seen from here, by root of the host."""
    seen = set()
    for name in LOOKED_INTO:
        path = Path(f"/proc/{pid}/{name}")
        try:
            if name == "fd":
                os.readlink(path / "0")
            elif name in ("root", "cwd", "exe", "ns/net"):
                os.stat(path)
            else:
                with path.open("rb") as file:
                    file.read(0 if name == "mem" else 64)
        except PermissionError:
            continue
        seen.add(name)
    return seen


def test_the_host_enforces_contexts(spawner: Spawner, contexts: Contexts) -> None:
    assert (spawner.host().lsm, spawner.host().lsm_hooks) == ("", len(contexts.hooks()))


def test_all_that_is_in_a_cage_is_in_its_context(contexts: Contexts, work: Cage, vault: Cage) -> None:
    assert min(work.xid, vault.xid) >= FIRST
    assert work.xid != vault.xid
    with work.running("/bin/sh", "-c", "sleep 1000 & echo up; wait") as (_input, output, _errors, _channel):
        assert os.read(output, 3) == b"up\n"
        assert len(work.processes) == 3
        assert {label(contexts, pid) for pid in work.processes} == {work.xid}
    assert {label(contexts, pid) for pid in vault.processes} == {vault.xid}
    assert label(contexts, os.getpid()) == 0


@pytest.mark.parametrize(("user", "command"), [
    ("user", "id -u && ls -a ~ && echo x >~/x && cat ~/x && rm ~/x"),
    ("root", "id -u"),
    ("user", "python3 -c 'import socket, subprocess; socket.socketpair(); subprocess.run([\"true\"], check=True)'"),
    ("user", "bwrap --unshare-pid --ro-bind / / --proc /proc --dev /dev --tmpfs /tmp sh -c 'ls /proc/self >/tmp/x'"),
    ("user", "dbus-send --session --print-reply --dest=org.freedesktop.DBus / org.freedesktop.DBus.GetId"),
    ("user", "incage whoami | grep -x 'work: public'"),
])
def test_what_people_do_in_a_cage_goes_on(work: Cage, user: str, command: str) -> None:
    before = work.enforced().denials
    status, printed = work.run("/bin/sh", "-c", command, user=user)
    assert (status, work.enforced().denials) == (0, before), printed


def test_who_has_lost_all_other_walls_reaches_neither_a_cage_nor_the_host(escaped: Escaped, vault: Cage, work: Cage,
                                                                         spawner: Spawner) -> None:
    before = work.enforced().denials
    for pid in (vault.init, os.getpid(), 1):
        assert escaped.signals(pid) == "EPERM"
    now = work.enforced().denials
    assert now["kill"] - before.get("kill", 0) == 3
    # Told by itself, and together.
    told = spawner.denied(work.uuid)
    while told.denials != now:
        told = spawner.denied(work.uuid)
    assert told.xid == work.xid
    assert vault.enforced().denials == {}


def test_a_flood_of_refusals_costs_nobody_anything(escaped: Escaped, vault: Cage, work: Cage, spawner: Spawner) -> None:
    spawner.events.clear()
    began, before = time.monotonic(), work.enforced().denials["kill"]
    for _ in range(200):
        assert escaped.signals(vault.init) == "EPERM"
    assert work.enforced().denials["kill"] == before + 200
    assert len(spawner.events) <= 1 + (time.monotonic() - began)


def test_root_of_the_host_looks_into_a_cage_and_not_into_a_private_one(work: Cage, quiet: Cage) -> None:
    assert looked_into(work.init) == set(LOOKED_INTO)
    assert looked_into(quiet.init) == set()
    for namespace in ("--user", "--mount", "--pid", "--net", "--all"):
        for cage, allowed in ((work, True), (quiet, False)):
            ended = subprocess.run([*ENTER, str(cage.init), namespace, "--", "/bin/true"], capture_output=True,
                                   check=False)
            assert (ended.returncode == 0) is allowed, (cage.name, namespace, ended.stderr)
            assert allowed or b"Permission denied" in ended.stderr or b"not permitted" in ended.stderr


def test_a_private_cage_can_be_ended_from_the_host(spawner: Spawner) -> None:
    cage = Cage(spawner, "brief", private=True)
    cage.destroy()


def test_the_first_process_of_a_cage_has_nothing_of_the_contexts(spawner: Spawner, work: Cage) -> None:
    """Neither a descriptor of them, nor the memory in which all cages' refusals are told."""
    targets = {os.readlink(entry) for entry in Path(f"/proc/{work.init}/fd").iterdir()}
    assert not [target for target in targets if "bpf" in target]
    mapped = ["bpf-map" in Path(f"/proc/{pid}/maps").read_text() for pid in (spawner.pid, work.init)]
    assert mapped == [True, False]


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_contexts_outlive_the_spawner(contexts: Contexts, spawner: Spawner, work: Cage, vault: Cage, escaped: Escaped,
                                      how: signal.Signals) -> None:
    xid, denials = work.xid, work.enforced().denials
    spawner.events.clear()
    spawner.stop(how)
    init = next(pid for pid in map(int, filter(str.isdecimal, os.listdir("/proc")))
                if f"cage-init {vault.name}" in Path(f"/proc/{pid}/cmdline").read_text())
    assert escaped.signals(init) == "EPERM"
    spawner.start()
    assert spawner.host().lsm == ""
    assert (work.xid, work.enforced().lsm) == (xid, "")
    assert work.enforced().denials["kill"] == denials["kill"] + 1
    assert label(contexts, work.init) == xid
    assert spawner.denied(work.uuid).denials == work.enforced().denials


def test_a_cage_that_is_gone_has_no_context(contexts: Contexts, spawner: Spawner) -> None:
    cage = Cage(spawner, "brief", ephemeral=False)
    first = cage.xid
    assert first in contexts.configured()
    cage.stop()
    assert first not in contexts.configured()
    cage.bear()
    second = cage.xid
    assert second > first
    cage.destroy()
    assert not {first, second} & contexts.configured()


def test_a_half_dead_cage_s_context_is_forgotten_when_the_spawner_is_back(contexts: Contexts, spawner: Spawner) -> None:
    cage = Cage(spawner, "brief")
    xid, init = cage.xid, cage.init
    spawner.stop(signal.SIGKILL)
    os.kill(init, signal.SIGKILL)
    spawner.start()
    cage.stop()
    assert xid not in contexts.configured()
    cage.destroy()


def test_whatever_still_has_a_context_that_is_forgotten_is_denied_everything(contexts: Contexts,
                                                                             spawner: Spawner) -> None:
    cage = Cage(spawner, "brief")
    (go, going), (said, saying) = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        os.close(going)
        _try(lambda: socket.socket(socket.AF_UNIX), go, saying)
    pidfd = os.pidfd_open(child)
    contexts.enter(pidfd, cage.xid)
    cage.destroy()
    os.write(going, b"!")
    assert os.read(said, 64) == b"EPERM"
    os.waitpid(child, 0)
    for descriptor in (go, going, said, saying, pidfd):
        os.close(descriptor)
