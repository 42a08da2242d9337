# SPDX-License-Identifier: LGPL-2.1-or-later
"""What no context may, with all capabilities and in the host's own namespaces; and what one may that has no rules."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from cage_runtime.spawner.lsm.contexts import ALL_FAMILIES, Context, Contexts
from cage_runtime.spawner.lsm.operations import Operation
from tests.kernels.lsm.conftest import Counted
from tests.kernels.lsm.party import Party, started

O = Operation  # noqa: E741 (a table reads better)
NEWNS, NEWUSER, NEWPID, NEWNET = 0x20000, 0x10000000, 0x20000000, 0x40000000

REFUSED: list[tuple[str, tuple[Any, ...], Operation, str]] = [
    ("bpf", (), O.BPF, "EPERM"),
    ("perf_event_open", (), O.PERF, "EPERM"),
    ("syslog", (), O.CAPABILITY, "EPERM"),
    ("settimeofday", (), O.CAPABILITY, "EPERM"),
    ("sethostname", (), O.CAPABILITY, "EPERM"),
    ("chroot", (), O.CAPABILITY, "EPERM"),
    ("mknod", ("/run/device",), O.CAPABILITY, "EPERM"),
    ("finit_module", (), O.CAPABILITY, "EPERM"),
    ("io_uring_sqpoll", (), O.IO_URING, "EPERM"),
    ("mount", ("tmpfs", "/mnt"), O.MOUNT, "EPERM"),
    ("bind", ("/tmp", "/mnt"), O.MOUNT, "EPERM"),
    ("umount", ("/tmp",), O.CAPABILITY, "EPERM"),
    ("new_socket", (17, 3), O.CAPABILITY, "EPERM"),  # AF_PACKET, by a context that may have every family
    ("open_for", ("/dev/mem", os.O_RDONLY), O.DEVICE, "EPERM"),
    ("open_for", ("/dev/kmsg", os.O_RDONLY), O.DEVICE, "EPERM"),
    ("open_for", ("/dev/nvme0n1", os.O_RDONLY), O.DEVICE, "EPERM"),
    ("open_for", ("/dev/console", os.O_WRONLY), O.DEVICE, "EPERM"),
    ("listing", ("/sys/fs/bpf",), O.FILE, "EPERM"),
    ("unlink", ("/sys/fs/bpf/cage-runtime/maps/contexts",), O.FILE, "EPERM"),
    ("rename", ("/sys/fs/bpf/cage-runtime", "/sys/fs/bpf/gone"), O.FILE, "EPERM"),
    ("listing", ("/sys/kernel/security",), O.FILE, "EPERM"),
    ("write", ("/sys/fs/cgroup/cgroup.procs", "0"), O.FILE, "EPERM"),
    ("write", ("/sys/module/printk/parameters/time",), O.FILE, "EPERM"),
    ("write", ("/proc/sys/kernel/core_pattern",), O.PROC, "EPERM"),
    ("write", ("/proc/sysrq-trigger", "h"), O.PROC, "EPERM"),
    ("write", ("/proc/self/mem",), O.MEMORY, "EPERM"),
    *(("read", (f"/proc/{name}",), O.PROC, "EPERM") for name in (
        "kallsyms", "kcore", "keys", "timer_list", "interrupts", "diskstats", "locks", "vmstat", "cmdline", "modules",
        "iomem", "buddyinfo", "slabinfo", "sysvipc/shm", "fs/ext4/nvme0n1/mb_groups", "bus/pci/devices")),
]
ALLOWED: list[tuple[str, tuple[Any, ...]]] = [
    *(("read", (f"/proc/{name}",)) for name in (
        "cpuinfo", "meminfo", "stat", "uptime", "loadavg", "version", "filesystems", "net/tcp", "net/unix",
        "self/mounts", "self/status", "self/maps", "self/environ", "sys/kernel/random/boot_id",
        "sys/kernel/osrelease")),
    ("listing", ("/proc",)), ("listing", ("/proc/self/fd",)), ("listing", ("/sys",)), ("listing", ("/proc/sys",)),
    *(("open_for", (f"/dev/{name}", os.O_RDWR)) for name in ("null", "zero", "full", "random", "urandom", "ptmx")),
    *(("new_socket", kind) for kind in ((1, 1), (2, 1), (2, 2), (10, 1), (16, 3))),
    ("execute", ("/bin/true",)), ("anonymous_code", ()), ("read", ("/etc/hostname",)), ("make", ("/tmp/made",)),
    ("unlink", ("/tmp/made",)), ("nested_user_namespaces", (2,)),
]


@pytest.mark.parametrize(("act", "arguments", "operation", "error"), REFUSED, ids=str)
def test_no_context_may(contexts: Contexts, a: Party, act: str, arguments: tuple[Any, ...], operation: Operation,
                        error: str) -> None:
    counted = Counted(contexts, a.xid)
    assert a.outcome(act, *arguments) == error
    assert counted.since().get(operation, 0) >= 1


@pytest.mark.parametrize(("act", "arguments"), ALLOWED, ids=str)
def test_what_applications_need_they_may(contexts: Contexts, a: Party, act: str, arguments: tuple[Any, ...]) -> None:
    counted = Counted(contexts, a.xid)
    assert a.outcome(act, *arguments) == "done"
    assert counted.since() == {}


class TestWithoutConfiguration:
    @pytest.fixture(scope="class")
    def forgotten(self, contexts: Contexts) -> Iterator[Party]:
        xid = contexts.new(Context(families=ALL_FAMILIES, execute_writable=True))
        with started(contexts, xid) as party:
            party.does("new_socket", 1, 1)
            party.does("execute", "/bin/true")
            contexts.forget(xid)
            yield party

    @pytest.mark.parametrize(("act", "arguments"), [
        ("new_socket", (1, 1)), ("read", ("/etc/hostname",)), ("kill", (1, 0)), ("make", ("/tmp/x",)),
        ("open_for", ("/dev/null", os.O_RDONLY)), ("read", ("/proc/self/status",)), ("mount", ("tmpfs", "/mnt"))])
    def test_everything_is_denied(self, contexts: Contexts, forgotten: Party, act: str,
                                  arguments: tuple[Any, ...]) -> None:
        counted = Counted(contexts, 15)
        assert forgotten.outcome(act, *arguments) == "EPERM"
        assert sum(counted.since().values()) >= 1

    def test_it_makes_no_child(self, contexts: Contexts, forgotten: Party) -> None:
        counted = Counted(contexts, 15)
        assert forgotten.outcome("in_child", "pid") in ("EPERM", "ENOMEM")
        assert counted.since().get(Operation.FORK, 0) >= 1


class TestFamilies:
    def test_others_than_those_of_the_configuration_are_refused(self, contexts: Contexts) -> None:
        with started(contexts, contexts.new(Context(execute_writable=True))) as party:
            counted = Counted(contexts, party.xid)
            for family in (17, 38, 40, 15, 44):  # PACKET, ALG, VSOCK, KEY, XDP
                assert party.outcome("new_socket", family, 3) == "EPERM"
            assert counted.since() == {Operation.SOCKET: 5}
            assert party.outcome("new_socket", 16, 3, 2) == "EPERM"  # NETLINK_USERSOCK
            assert party.outcome("new_socket", 2, 1) == "done"


class TestExecution:
    @pytest.fixture(scope="class")
    def strict(self, contexts: Contexts) -> Iterator[Party]:
        """It came to life on the root disk, and is configured to what cages are afterwards: an xid's rules can be
        changed by nobody but the core, which never does."""
        xid = contexts.new(Context(families=ALL_FAMILIES, execute_writable=True))
        with started(contexts, xid) as party:
            contexts._configure(xid, Context())
            yield party

    @pytest.fixture(scope="class", autouse=True)
    def programs(self) -> Iterator[None]:
        for directory in ("/tmp/writable", "/tmp/sealed"):
            os.makedirs(directory)
            shutil.copy("/task/bin/quiet", f"{directory}/program")
        subprocess.run(["mount", "--bind", "/tmp/sealed", "/tmp/sealed"], check=True)
        subprocess.run(["mount", "-o", "remount,bind,ro", "/tmp/sealed"], check=True)
        yield
        subprocess.run(["umount", "/tmp/sealed"], check=True)

    def test_what_can_be_written_is_not_executed(self, contexts: Contexts, strict: Party) -> None:
        counted = Counted(contexts, strict.xid)
        assert strict.outcome("execute", "/tmp/writable/program") == "EPERM"
        assert strict.outcome("execute_memory", "/task/bin/quiet") == "EPERM"
        assert counted.since() == {Operation.EXECUTE: 2}

    def test_what_can_be_written_does_not_become_code(self, contexts: Contexts, strict: Party) -> None:
        counted = Counted(contexts, strict.xid)
        assert strict.outcome("map_code", "/tmp/writable/program") == "EPERM"
        assert strict.outcome("make_code_of", "/tmp/writable/program") == "EPERM"
        assert counted.since() == {Operation.MEMORY: 2}

    def test_what_the_core_shows_read_only_is_executed(self, contexts: Contexts, strict: Party) -> None:
        counted = Counted(contexts, strict.xid)
        assert strict.does("execute", "/tmp/sealed/program") == 0
        assert strict.outcome("map_code", "/tmp/sealed/program") == "done"
        assert strict.outcome("make_code_of", "/tmp/sealed/program") == "done"
        assert strict.outcome("anonymous_code") == "done"
        assert counted.since() == {}

    def test_a_file_system_of_its_own_made_read_only_is_not_the_cores(self, contexts: Contexts, strict: Party) -> None:
        counted = Counted(contexts, strict.xid)
        assert strict.outcome("in_namespaces", NEWUSER | NEWNS, "execute_after_sealing", "/tmp/sealed/program",
                              "/mnt") == "EPERM"
        assert counted.since() == {Operation.EXECUTE: 1}


class TestNamespaces:
    def test_user_namespaces_have_a_depth(self, contexts: Contexts, a: Party) -> None:
        counted = Counted(contexts, a.xid)
        assert a.outcome("nested_user_namespaces", 4) == "done"
        assert a.outcome("nested_user_namespaces", 5) == "EPERM"
        assert counted.since() == {Operation.NAMESPACE: 1}

    @pytest.mark.parametrize("kind", ["tmpfs", "proc", "mqueue"])
    def test_in_one_of_its_own_it_mounts_what_bubblewrap_does(self, a: Party, kind: str) -> None:
        flags = NEWUSER | NEWNS | NEWPID | 0x08000000
        assert a.outcome("in_namespaces", flags, "in_child", "mount", kind, "/mnt") == "done"
        assert a.outcome("in_namespaces", flags, "bind", "/tmp", "/mnt") == "done"

    @pytest.mark.parametrize("kind", ["sysfs", "overlay", "cgroup2", "bpf", "ramfs", "fuse"])
    def test_and_nothing_else(self, contexts: Contexts, a: Party, kind: str) -> None:
        counted = Counted(contexts, a.xid)
        assert a.outcome("in_namespaces", NEWUSER | NEWNS | NEWNET, "mount", kind, "/mnt") == "EPERM"
        assert counted.since() == {Operation.MOUNT: 1}

    def test_not_by_the_newer_calls_either(self, contexts: Contexts, a: Party) -> None:
        assert a.outcome("in_namespaces", NEWUSER | NEWNS, "new_api_mount", "tmpfs") == "done"
        counted = Counted(contexts, a.xid)
        assert a.outcome("in_namespaces", NEWUSER | NEWNS | NEWNET, "new_api_mount", "sysfs") == "EPERM"
        assert counted.since().get(Operation.MOUNT, 0) == 1

    def test_the_masks_of_proc_hold_in_one_that_it_mounts(self, contexts: Contexts, a: Party) -> None:
        counted = Counted(contexts, a.xid)
        flags = NEWUSER | NEWNS | NEWPID
        assert a.outcome("in_namespaces", flags, "in_child", "read_in_own_proc", "kallsyms") == "EPERM"
        assert a.outcome("in_namespaces", flags, "in_child", "read_in_own_proc", "interrupts") == "EPERM"
        assert counted.since() == {Operation.PROC: 2}
        assert a.outcome("in_namespaces", flags, "in_child", "read_in_own_proc", "cpuinfo") == "done"


def test_bubblewrap_works(contexts: Contexts, a: Party) -> None:
    counted = Counted(contexts, a.xid)
    words = ["/usr/bin/bwrap", "--unshare-all", "--die-with-parent", "--ro-bind", "/usr", "/usr", "--symlink",
             "usr/lib", "/lib", "--symlink", "usr/lib64", "/lib64", "--symlink", "usr/bin", "/bin", "--proc", "/proc",
             "--dev", "/dev", "--tmpfs", "/tmp", "--mqueue", "/dev/mqueue", "--dir", "/run", "--chdir", "/", "--uid",
             "1000", "/bin/sh", "-c",
             "test $(id -u) = 1000 && echo x > /tmp/x && kill -0 1 && ls /proc/1/fd >/dev/null"]
    assert a.does("run", words) == 0
    assert counted.since() == {}
