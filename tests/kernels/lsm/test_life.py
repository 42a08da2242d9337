# SPDX-License-Identifier: LGPL-2.1-or-later
"""The life of a context: never shed, never given twice, bounded, and there without us."""

from __future__ import annotations

import os
import resource
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cage_runtime.errors import HostUnsupported
from cage_runtime.spawner.lsm import programs
from cage_runtime.spawner.lsm.contexts import ANSWERS, CORE, PINS, WATCH, Context, Contexts
from cage_runtime.spawner.lsm.operations import Operation
from tests.kernels.lsm.acts import PTRACE_ATTACH
from tests.kernels.lsm.conftest import WIDE, Counted
from tests.kernels.lsm.party import TOP, Party, started

NEWNS, NEWUSER, NEWPID, NEWNET = 0x20000, 0x10000000, 0x20000000, 0x40000000


class TestNeverShed:
    def test_by_another_cgroup(self, a: Party, b: Party, host: Party) -> None:
        os.makedirs("/sys/fs/cgroup/other", exist_ok=True)
        Path("/sys/fs/cgroup/other/cgroup.procs").write_text(str(a.pid), encoding="ascii")
        assert a.outcome("kill", b.pid, 0) == "EPERM"
        assert a.outcome("kill", host.pid, 0) == "EPERM"

    @pytest.mark.parametrize("flags", [NEWUSER, NEWUSER | NEWNS | NEWPID | NEWNET])
    def test_by_namespaces(self, a: Party, host: Party, flags: int) -> None:
        assert a.outcome("in_namespaces", flags, "kill", host.pid, 0) == "EPERM"

    def test_by_a_child(self, a: Party, b: Party, host: Party) -> None:
        assert a.outcome("in_child", "kill", b.pid, 0) == "EPERM"
        assert a.outcome("in_child", "in_child", "connect", "\0nobody") == "ECONNREFUSED"
        assert a.outcome("in_child", "kill", host.pid, 0) == "EPERM"

    def test_by_being_an_orphan(self, a: Party, b: Party) -> None:
        assert a.outcome("as_orphan", "kill", b.pid, 0) == "EPERM"

    def test_by_a_thread(self, a: Party, b: Party) -> None:
        assert a.outcome("in_thread", "kill", b.pid, 0) == "EPERM"

    def test_by_a_program(self, contexts: Contexts, a: Party, b: Party) -> None:
        counted = Counted(contexts, a.xid)
        assert a.does("run", ["/bin/kill", "-0", str(b.pid)]) == 1
        assert counted.since() == {Operation.KILL: 1}

    def test_by_entering_a_namespace(self, a: Party, host: Party) -> None:
        assert a.outcome("setns_to", host.pid, "pid") == "EACCES"
        assert a.outcome("setns_to", a.pid, "kill", host.pid, 0) == "EPERM"

    def test_by_being_given_another_one(self, contexts: Contexts, a: Party, b: Party) -> None:
        pidfd = os.pidfd_open(a.pid)
        with pytest.raises(FileExistsError):
            contexts.enter(pidfd, b.xid)
        assert contexts.of(pidfd) == a.xid
        os.close(pidfd)


class TestNumbers:
    def test_none_is_given_twice(self, contexts: Contexts) -> None:
        given = []
        for _ in range(3):
            xid = contexts.new(Context())
            contexts.forget(xid)
            contexts.forget(xid)
            given.append(xid)
        assert given == sorted(set(given))

    def test_nor_after_a_restart(self, contexts: Contexts) -> None:
        before = contexts.new(Context())
        again = Contexts.open()
        assert again.new(Context()) > before
        assert again.hooks() == contexts.hooks()
        again.close()

    def test_the_host_has_none(self, contexts: Contexts, host: Party) -> None:
        pidfd = os.pidfd_open(host.pid)
        assert contexts.of(pidfd) == CORE
        os.close(pidfd)


class TestBounds:
    def test_one_context_uses_up_no_others_credentials(self, contexts: Contexts, b: Party) -> None:
        xid = contexts.new(WIDE)
        with started(contexts, xid) as greedy:
            resource.prlimit(greedy.pid, resource.RLIMIT_NOFILE, (20_000, 20_000))
            counted = Counted(contexts, xid)
            held = greedy.does("hold_creds", 17_000)
            assert 16_000 < held < 16_384
            assert counted.since() == {Operation.FORK: 1}
            assert b.outcome("in_child", "pid") == "done"
            # What was let go counts no more.
            assert greedy.outcome("in_child", "pid") == "done"

    def test_a_flood_of_refusals_is_counted_whole_and_told_in_part(
            self, contexts: Contexts, a: Party, b: Party) -> None:
        while contexts.read_events():
            pass
        counted = Counted(contexts, a.xid)
        assert a.does("refused_many", b.pid, 3000) == 3000
        assert counted.since() == {Operation.KILL: 3000}
        assert b.outcome("kill", a.pid, 0) == "EPERM"
        assert select.select([contexts.events()], [], [], 10)[0]
        told = contexts.read_events()
        of_a, of_b = ([event for event in told if event.xid == xid] for xid in (a.xid, b.xid))
        assert 0 < len(of_a) < 1500
        assert {(event.operation, event.object, event.pid) for event in of_a} == {(Operation.KILL, b.xid, a.pid)}
        assert [(event.operation, event.object) for event in of_b] == [(Operation.KILL, a.xid)]
        assert of_b[0].untrusted_command.startswith("python3")


class TestFileSystems:
    def test_a_tagged_one_is_for_its_context(self, contexts: Contexts, a: Party) -> None:
        xid = contexts.new(WIDE)
        os.makedirs("/run/tagged")
        subprocess.run(["mount", "-t", "tmpfs", "tagged", "/run/tagged"], check=True)
        Path("/run/tagged/file").write_text("x", encoding="ascii")
        descriptor = os.open("/run/tagged", os.O_PATH)
        contexts.tag_superblock(descriptor, xid)
        os.close(descriptor)
        counted = Counted(contexts, a.xid)
        for act, *arguments in (("read", "/run/tagged/file"), ("make", "/run/tagged/new"),
                                ("unlink", "/run/tagged/file"), ("listing", "/run/tagged"),
                                ("chmod", "/run/tagged/file"), ("rename", "/run/tagged/file", "/run/tagged/other")):
            assert a.outcome(act, *arguments) == "EPERM"
        assert counted.since() == {Operation.FILE: 6}
        with started(contexts, xid) as owner:
            assert owner.outcome("read", "/run/tagged/file") == "done"
        assert Path("/run/tagged/file").read_text(encoding="ascii") == "x"
        contexts.forget(xid)
        assert a.outcome("read", "/run/tagged/file") == "done"
        subprocess.run(["umount", "/run/tagged"], check=True)

    def test_the_tag_of_a_disk_outlives_what_the_kernel_keeps_in_memory(self, contexts: Contexts, a: Party) -> None:
        xid = contexts.new(WIDE)
        descriptor = os.open("/task", os.O_PATH)
        contexts.tag_superblock(descriptor, xid)
        os.close(descriptor)
        assert a.outcome("read", "/task/tree/README.md") == "EPERM"
        Path("/proc/sys/vm/drop_caches").write_text("3", encoding="ascii")
        assert a.outcome("read", "/task/tree/README.md") == "EPERM"
        contexts.forget(xid)
        assert a.outcome("read", "/task/tree/README.md") == "done"


class TestWithoutUs:
    def test_what_is_pinned_enforces_when_its_loader_has_ended(self, contexts: Contexts, b: Party) -> None:
        """Another loader labels a process and is killed; the process is still held, and the next one knows it."""
        code = ("import os, sys; from cage_runtime.spawner.lsm.contexts import *; c = Contexts.open();"
                "x = c.new(Context(execute_writable=True)); c.enter(os.pidfd_open(int(sys.argv[1])), x);"
                "print(x, flush=True); os.kill(os.getpid(), 9)")
        with started() as party:
            loader = subprocess.run([sys.executable, "-c", code, str(party.pid)], stdout=subprocess.PIPE, text=True,
                                    check=False, cwd=TOP, env={**os.environ, "PYTHONPATH": "/usr/lib/cage-runtime/lib"})
            assert loader.returncode == -signal.SIGKILL
            counted = Counted(contexts, int(loader.stdout))
            assert party.outcome("kill", b.pid, 0) == "EPERM"
            assert counted.since() == {Operation.KILL: 1}

    @pytest.fixture
    def other_version(self, tmp_path: Path) -> Iterator[Path]:
        """The same programs in another file; the one of before comes back at the end."""
        file = tmp_path / "other.o"
        shutil.copy(programs.OBJECT, file)
        with file.open("ab") as end:
            end.write(b"\0")
        yield file
        Contexts.open().close()

    def test_an_upgrade_leaves_no_time_without(self, a: Party, b: Party, other_version: Path) -> None:
        (old,) = PINS.glob("programs-*")
        a.begins("refused_until", b.pid, "/tmp/upgraded")
        upgraded = Contexts.open(file=other_version)
        Path("/tmp/upgraded").write_text("x", encoding="ascii")
        allowed, refused = a.ends()
        assert (allowed, refused > 0) == (0, True)
        (new,) = PINS.glob("programs-*")
        assert new != old
        assert upgraded.denials()[a.xid][Operation.KILL] >= refused
        upgraded.close()
        os.unlink("/tmp/upgraded")

    def test_a_version_that_cannot_stand_leaves_the_one_that_does(
            self, a: Party, b: Party, other_version: Path) -> None:
        before = sorted(PINS.rglob("*"))
        content = other_version.read_bytes()
        other_version.write_bytes(content.replace(b"lsm/task_kill\0", b"lsm/task_kiII\0"))
        with pytest.raises(HostUnsupported, match=r"need: task_kiII;"):
            Contexts.open(file=other_version)
        other_version.write_bytes(content[:5000])
        with pytest.raises(HostUnsupported, match="could not be set up"):
            Contexts.open(file=other_version)
        assert sorted(PINS.rglob("*")) == before
        assert a.outcome("kill", b.pid, 0) == "EPERM"

    def test_a_set_that_something_was_taken_out_of_is_made_whole(self, contexts: Contexts, a: Party, b: Party) -> None:
        (ours,) = PINS.glob("programs-*")
        (ours / "task_kill").unlink()
        again = Contexts.open()
        assert (ours / "task_kill").exists()
        assert again.hooks() == contexts.hooks()
        assert a.outcome("kill", b.pid, 0) == "EPERM"
        again.close()

    def test_a_program_that_is_not_ours_is_replaced(self, a: Party, b: Party) -> None:
        (ours,) = PINS.glob("programs-*")
        (ours / "task_kill").unlink()
        (ours / "task_setnice").rename(ours / "task_kill")
        Contexts.open().close()
        assert (ours / "task_setnice").exists()
        assert a.outcome("kill", b.pid, 0) == "EPERM"

    def test_what_is_attached_and_not_run_is_not_taken_for_a_wall(
            self, contexts: Contexts, a: Party, b: Party) -> None:
        """One program less, and the look at a refusal sees that there is none."""
        (ours,) = PINS.glob("programs-*")
        (ours / "task_kill").unlink()
        while a.outcome("kill", b.pid, 0) == "EPERM":
            """It runs for as long as the kernel waits for those that are in it."""
        with pytest.raises(HostUnsupported, match="does not enforce"):
            contexts._see_a_refusal()
        Contexts.open().close()
        assert a.outcome("kill", b.pid, 0) == "EPERM"

    def test_pins_are_roots(self) -> None:
        assert PINS.stat().st_mode & 0o077 == 0


class TestPrivate:
    @pytest.fixture(scope="class")
    def private(self, contexts: Contexts) -> Iterator[Party]:
        xid = contexts.new(Context(families=WIDE.families, execute_writable=True, private=True))
        with started(contexts, xid) as party:
            yield party

    @pytest.mark.parametrize(("act", "arguments", "error"), [
        ("read", ("environ",), "EACCES"), ("read", ("maps",), "EACCES"), ("read", ("mem",), "EACCES"),
        ("listing", ("root/",), "EACCES"), ("read_link", ("cwd",), "EACCES"), ("read_link", ("ns/mnt",), "EACCES"),
        ("read", ("auxv",), "EACCES")])
    def test_the_core_does_not_see_into_it(self, contexts: Contexts, private: Party, host: Party, act: str,
                                           arguments: tuple[str], error: str) -> None:
        counted = Counted(contexts, CORE)
        assert host.outcome(act, f"/proc/{private.pid}/{arguments[0]}") == error
        assert counted.since().get(Operation.PTRACE, 0) >= 1

    def test_nor_enters_it(self, private: Party, host: Party) -> None:
        assert host.outcome("ptrace", private.pid, PTRACE_ATTACH) == "EPERM"
        assert host.outcome("pidfd_getfd", private.pid, 0) == "EPERM"
        assert host.outcome("process_vm_readv", private.pid, private.does("secret_address")) == "EPERM"
        assert host.does("run", ["/usr/bin/nsenter", "-t", str(private.pid), "-m", "/bin/true"]) == 1
        assert host.outcome("setns_to", private.pid, "pid") == "EACCES"

    def test_but_lists_it_and_ends_it(self, contexts: Contexts, private: Party, host: Party) -> None:
        assert host.outcome("read", f"/proc/{private.pid}/status") == "done"
        assert host.outcome("read", f"/proc/{private.pid}/cgroup") == "done"
        assert private.outcome("read", "/proc/self/environ") == "done"
        for end in (lambda pid: os.kill(pid, signal.SIGKILL), _kill_by_cgroup):
            with started(contexts, private.xid) as victim:
                end(victim.pid)
                with pytest.raises((EOFError, ConnectionError)):
                    victim.does("pid")


class TestAnswers:
    """The process that answers the system calls of cages."""

    @pytest.fixture(scope="class")
    def answering(self, contexts: Contexts) -> Iterator[Party]:
        with started(contexts, ANSWERS) as party:
            yield party

    def test_it_reaches_the_memory_of_a_private_cage(self, contexts: Contexts, answering: Party, host: Party) -> None:
        xid = contexts.new(Context(families=WIDE.families, execute_writable=True, private=True))
        with started(contexts, xid) as private:
            assert answering.outcome("read", f"/proc/{private.pid}/maps") == "done"
            assert answering.outcome("process_vm_readv", private.pid, private.does("secret_address")) == "done"
            assert host.outcome("read", f"/proc/{private.pid}/maps") == "EACCES"

    def test_in_all_else_it_is_the_core(self, contexts: Contexts, a: Party, answering: Party) -> None:
        assert answering.outcome("kill", a.pid, 0) == "done"
        counted = Counted(contexts, a.xid)
        assert a.outcome("kill", answering.pid, 0) == "EPERM"
        assert a.outcome("read", f"/proc/{answering.pid}/maps") == "EPERM"
        assert counted.since()[Operation.KILL] == 1


def _kill_by_cgroup(pid: int) -> None:
    os.makedirs("/sys/fs/cgroup/victim", exist_ok=True)
    Path("/sys/fs/cgroup/victim/cgroup.procs").write_text(str(pid), encoding="ascii")
    Path("/sys/fs/cgroup/victim/cgroup.kill").write_text("1", encoding="ascii")


class TestWatch:
    @pytest.fixture(scope="class")
    def watcher(self, contexts: Contexts) -> Iterator[Party]:
        with started(contexts, WATCH) as party:
            yield party

    @pytest.mark.parametrize("act", ["sched_getscheduler", "getpgid", "getsid", "ioprio_get", "prlimit_get"])
    def test_it_reads(self, b: Party, watcher: Party, act: str) -> None:
        assert watcher.outcome(act, b.pid) == "done"
        assert watcher.outcome("kill", b.pid, 0) == "done"

    @pytest.mark.parametrize("name", ["status", "environ", "maps", "cmdline"])
    def test_it_reads_what_proc_shows(self, b: Party, watcher: Party, name: str) -> None:
        assert watcher.outcome("read", f"/proc/{b.pid}/{name}") == "done"

    @pytest.mark.parametrize(("act", "more"), [
        ("kill", (int(signal.SIGURG),)), ("setpriority", ()), ("sched_setaffinity", ()), ("prlimit_set", ()),
        ("ioprio_set", ()), ("ptrace", (PTRACE_ATTACH,)), ("pidfd_getfd", (0,))])
    def test_it_changes_nothing(self, contexts: Contexts, b: Party, watcher: Party, act: str, more: tuple[int]) -> None:
        counted = Counted(contexts, WATCH)
        assert watcher.outcome(act, b.pid, *more) == "EPERM"
        assert sum(counted.since().values()) == 1
        assert watcher.outcome("write", f"/proc/{b.pid}/comm") == "EPERM"

    def test_what_is_private_it_does_not_read(self, contexts: Contexts, watcher: Party) -> None:
        private = contexts.new(Context(families=WIDE.families, execute_writable=True, private=True))
        with started(contexts, private) as party:
            assert watcher.outcome("read", f"/proc/{party.pid}/status") == "EPERM"
            assert watcher.outcome("sched_getscheduler", party.pid) == "EPERM"
