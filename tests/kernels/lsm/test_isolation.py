# SPDX-License-Identifier: LGPL-2.1-or-later
"""Without namespaces: what one context tries on another is refused by the contexts alone, each for its stated reason.

Every act is also carried out by the one it is aimed at, or by the host, so that what is refused is known to work.
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cage_runtime.spawner.lsm.contexts import Contexts
from cage_runtime.spawner.lsm.operations import Operation
from tests.kernels.lsm.acts import PTRACE_ATTACH, PTRACE_SEIZE
from tests.kernels.lsm.conftest import Counted
from tests.kernels.lsm.party import Party

DGRAM = int(socket.SOCK_DGRAM)


@dataclass(frozen=True, kw_only=True)
class Target:
    """What there is of `b` to act on."""

    pid: int
    address: int
    shm: int
    queue: int
    semaphore: int
    key: int


@pytest.fixture(scope="module")
def target(b: Party, host: Party) -> Target:
    b.does("serve", "b")
    host.does("serve", "host")
    shm, queue, semaphore = b.does("make_ipc")
    b.does("make", "/tmp/of-b")
    Path("/tmp/of-nobody").write_text("x", encoding="ascii")
    return Target(pid=b.pid, address=b.does("secret_address"), shm=shm, queue=queue, semaphore=semaphore,
                  key=b.does("make_key"))


Arguments = Callable[[Target], tuple[Any, ...]]


def of_pid(*more: Any) -> Arguments:
    return lambda target: (target.pid, *more)


def in_proc(name: str) -> Arguments:
    return lambda target: (f"/proc/{target.pid}/{name}",)


def just(*arguments: Any) -> Arguments:
    return lambda _: arguments


URGENT = int(signal.SIGURG)
P, K, S = Operation.PTRACE, Operation.KILL, Operation.SCHEDULE
ACTS: list[tuple[str, Arguments, Operation, str]] = [
    # act, arguments, operation that counts it, how the call fails
    ("kill", of_pid(0), K, "EPERM"),
    ("kill", of_pid(URGENT), K, "EPERM"),
    ("tgkill", of_pid(), K, "EPERM"),
    ("sigqueue", of_pid(), K, "EPERM"),
    ("pidfd_send_signal", of_pid(URGENT), K, "EPERM"),
    ("process_vm_readv", lambda t: (t.pid, t.address), P, "EPERM"),
    ("process_vm_writev", lambda t: (t.pid, t.address), P, "EPERM"),
    ("pidfd_getfd", of_pid(0), P, "EPERM"),
    ("kcmp", of_pid(), P, "EPERM"),
    ("ptrace", of_pid(PTRACE_ATTACH), P, "EPERM"),
    ("ptrace", of_pid(PTRACE_SEIZE), P, "EPERM"),
    ("migrate_pages", of_pid(), P, "EPERM"),
    ("read", in_proc("environ"), Operation.PROC, "EPERM"),
    ("read", in_proc("maps"), Operation.PROC, "EPERM"),
    ("read", in_proc("status"), Operation.PROC, "EPERM"),
    ("read", in_proc("cmdline"), Operation.PROC, "EPERM"),
    ("write", in_proc("comm"), Operation.PROC, "EPERM"),
    ("write", lambda t: (f"/proc/{t.pid}/oom_score_adj", "0"), Operation.PROC, "EPERM"),
    ("open_for", lambda t: (f"/proc/{t.pid}/mem", os.O_RDWR), Operation.MEMORY, "EPERM"),
    ("open_for", lambda t: (f"/proc/{t.pid}/mem", os.O_RDONLY), Operation.PROC, "EPERM"),
    ("listing", in_proc("fd"), Operation.PROC, "EPERM"),
    ("listing", in_proc("root/"), P, "EACCES"),
    ("read_link", in_proc("cwd"), P, "EACCES"),
    ("read_link", in_proc("exe"), P, "EACCES"),
    ("read_link", in_proc("ns/net"), P, "EACCES"),
    ("connect", just("/tmp/b.stream"), Operation.CONNECT, "EPERM"),
    ("connect", just("\0b"), Operation.CONNECT, "EPERM"),
    ("connect", just("/tmp/b.datagram", DGRAM), Operation.SEND, "EPERM"),
    ("send_datagram", just("/tmp/b.datagram"), Operation.SEND, "EPERM"),
    ("setpriority", of_pid(), S, "EPERM"),
    ("ioprio_set", of_pid(), S, "EPERM"),
    ("ioprio_get", of_pid(), S, "EPERM"),
    ("sched_setaffinity", of_pid(), S, "EPERM"),
    ("sched_getaffinity", of_pid(), S, "EPERM"),
    ("sched_setscheduler", of_pid(), S, "EPERM"),
    ("sched_getscheduler", of_pid(), S, "EPERM"),
    ("getpgid", of_pid(), S, "EPERM"),
    ("getsid", of_pid(), S, "EPERM"),
    ("prlimit_get", of_pid(), Operation.LIMIT, "EPERM"),
    ("prlimit_set", of_pid(), Operation.LIMIT, "EPERM"),
    ("shmget", just(), Operation.IPC, "EACCES"),
    ("msgget", just(), Operation.IPC, "EACCES"),
    ("semget", just(), Operation.IPC, "EACCES"),
    ("shmat", lambda t: (t.shm,), Operation.IPC, "EACCES"),
    ("msgsnd", lambda t: (t.queue,), Operation.IPC, "EACCES"),
    ("semop", lambda t: (t.semaphore,), Operation.IPC, "EACCES"),
    ("read_key", lambda t: (t.key,), Operation.KEY, "ENOKEY"),
    ("read", just("/tmp/of-b"), Operation.FILE, "EPERM"),
    ("write", just("/tmp/of-b"), Operation.FILE, "EPERM"),
    ("chmod", just("/tmp/of-b"), Operation.FILE, "EPERM"),
    ("chown", just("/tmp/of-b"), Operation.FILE, "EPERM"),
    ("truncate", just("/tmp/of-b"), Operation.FILE, "EPERM"),
    ("watch_directory", just("/tmp/of-b"), Operation.FILE, "EPERM"),
    ("link", just("/tmp/of-b", "/tmp/linked"), Operation.FILE, "EPERM"),
    # Last, because it is not there any more where it is allowed.
    ("rename", just("/tmp/of-b", "/tmp/of-b.2"), Operation.FILE, "EPERM"),
    ("unlink", just("/tmp/of-b"), Operation.FILE, "EPERM"),
    ("revoke_key", lambda t: (t.key,), Operation.KEY, "EPERM"),
    ("shm_remove", lambda t: (t.shm,), Operation.IPC, "EPERM"),
]
NOT_ON_ITSELF = ("ptrace", "rename", "migrate_pages")


def names(value: object) -> str | None:
    return value if isinstance(value, str) else None


@pytest.mark.parametrize(("act", "arguments", "operation", "error"), ACTS, ids=names)
def test_what_is_done_to_another_context_is_refused(contexts: Contexts, a: Party, b: Party, target: Target, act: str,
                                                    arguments: Arguments, operation: Operation, error: str) -> None:
    counted = Counted(contexts, a.xid)
    assert a.outcome(act, *arguments(target)) == error
    assert counted.since().get(operation, 0) >= 1
    # Its own it may: the same act is no mistake of the test's.
    if act not in NOT_ON_ITSELF and operation is not Operation.MEMORY:
        assert b.outcome(act, *arguments(target)) == "done"


@pytest.mark.parametrize(("act", "arguments"), [
    (act, arguments) for act, arguments, operation, _ in ACTS
    if operation in (P, K, S, Operation.CONNECT, Operation.SEND, Operation.LIMIT)], ids=names)
def test_the_host_is_left_alone(host: Party, target: Target, act: str, arguments: Arguments) -> None:
    assert host.outcome(act, *arguments(target)) == "done"


def test_a_queue_of_posix_is_for_who_made_it(contexts: Contexts, a: Party, b: Party, host: Party) -> None:
    host.does("mount", "mqueue", "/mnt")
    b.does("mq_open", "of-b", os.O_CREAT | os.O_RDWR)
    counted = Counted(contexts, a.xid)
    assert a.outcome("mq_open", "of-b", os.O_RDWR) == "EPERM"
    assert a.outcome("read", "/mnt/of-b") == "EPERM"
    assert a.outcome("mq_unlink", "of-b") == "EPERM"
    assert counted.since() == {Operation.FILE: 3}
    host.does("mq_open", "of-host", os.O_CREAT | os.O_RDWR)
    assert a.outcome("mq_open", "of-host", os.O_RDWR) == "EPERM"
    assert b.outcome("mq_open", "of-b", os.O_RDWR) == "done"
    b.does("mq_unlink", "of-b")
    host.does("umount", "/mnt")


def test_nothing_takes_the_place_of_anothers_file(contexts: Contexts, a: Party, b: Party) -> None:
    b.does("make", "/tmp/stays")
    a.does("make", "/tmp/comes")
    counted = Counted(contexts, a.xid)
    assert a.outcome("rename", "/tmp/comes", "/tmp/stays") == "EPERM"
    assert counted.since() == {Operation.FILE: 1}
    assert a.outcome("rename", "/tmp/comes", "/tmp/elsewhere") == "done"
    assert b.outcome("rename", "/tmp/stays", "/tmp/stayed") == "done"


def test_shared_memory_of_posix_is_for_who_made_it(contexts: Contexts, a: Party, b: Party) -> None:
    b.does("make", "/dev/shm/of-b")
    counted = Counted(contexts, a.xid)
    assert a.outcome("read", "/dev/shm/of-b") == "EPERM"
    assert counted.since() == {Operation.FILE: 1}
    assert b.outcome("read", "/dev/shm/of-b") == "done"


class TestAgainstTheCore:
    @pytest.fixture
    def core(self, host: Party, target: Target) -> Party:
        del target
        return host

    @pytest.mark.parametrize(("act", "operation"), [
        ("kill", K), ("ptrace", P), ("setpriority", S), ("prlimit_get", Operation.LIMIT)])
    def test_it_is_out_of_reach(self, contexts: Contexts, a: Party, core: Party, act: str,
                                operation: Operation) -> None:
        counted = Counted(contexts, a.xid)
        more = {"kill": (0,), "ptrace": (PTRACE_ATTACH,)}.get(act, ())
        assert a.outcome(act, core.pid, *more) == "EPERM"
        assert counted.since().get(operation, 0) >= 1

    def test_its_sockets_answer_no_context(self, contexts: Contexts, a: Party, core: Party) -> None:
        counted = Counted(contexts, a.xid)
        assert a.outcome("connect", "/tmp/host.stream") == "EPERM"
        assert a.outcome("send_datagram", "/tmp/host.datagram") == "EPERM"
        assert counted.since() == {Operation.CONNECT: 1, Operation.SEND: 1}
        assert core.outcome("connect", "/tmp/host.stream") == "done"

    def test_a_socket_of_its_own_is_for_the_context_that_it_says(self, contexts: Contexts, a: Party, b: Party) -> None:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind("/tmp/for-a")
            contexts.tag_socket(listener.fileno(), a.xid)
            listener.listen(8)
            assert a.outcome("connect", "/tmp/for-a") == "done"
            assert b.outcome("connect", "/tmp/for-a") == "EPERM"

    def test_its_processes_show_nothing(self, contexts: Contexts, a: Party, core: Party) -> None:
        counted = Counted(contexts, a.xid)
        assert a.outcome("read", f"/proc/{core.pid}/status") == "EPERM"
        assert a.outcome("read_link", f"/proc/{core.pid}/exe") == "EACCES"
        assert set(counted.since()) == {Operation.PROC, P}
