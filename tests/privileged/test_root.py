# SPDX-License-Identifier: LGPL-2.1-or-later
"""The root of a cage: what of the machine is to be seen in it, and whose it is."""

from __future__ import annotations

import array
import fcntl
import json
import os
import time
from pathlib import Path

import pytest

from cage_runtime.spawner import root
from tests.privileged.conftest import MakeCage
from tests.privileged.runtime import Cage, Changes, Runtime

NS_GET_USERNS, NS_GET_OWNER_UID = 0xB701, 0xB704
DEVICES = {"full", "null", "ptmx", "random", "tty", "urandom", "zero"}
OWN = ("cgroups", "loadavg", "meminfo", "stat", "swaps", "vmstat", "sys/kernel/random/boot_id")


@pytest.fixture(scope="module")
def left(shared_cage: MakeCage) -> Cage:
    return shared_cage("root-left")


@pytest.fixture(scope="module")
def right(shared_cage: MakeCage) -> Cage:
    return shared_cage("root-right")


def python(cage: Cage, script: str, *, as_root: bool = False) -> str:
    ended = cage.enter("/usr/bin/python3", "-IS", "-c", script, root=as_root)
    assert ended.returncode == 0, ended.stderr.decode()
    return ended.stdout.decode()


# --- /proc -------------------------------------------------------------------------------------------------------
READ = f"""
import json
found = {{}}
for name in {(*OWN, *root.EMPTY_FILES)!r}:
    try:
        with open("/proc/" + name) as file:
            found[name] = file.read()
    except FileNotFoundError:
        pass
print(json.dumps(found))
"""


@pytest.mark.parametrize("as_root", [False, True])
def test_files_of_the_kernel_say_nothing_of_the_machine(left: Cage, as_root: bool) -> None:
    found = json.loads(python(left, READ, as_root=as_root))
    assert {name: found[name] for name in root.EMPTY_FILES if found.get(name)} == {}
    assert found["loadavg"] == "0.00 0.00 0.00 1/1 1\n"
    assert len(found["swaps"].splitlines()) == len(found["cgroups"].splitlines()) == 1
    assert {line.split()[1] for line in found["vmstat"].splitlines()} == {"0"}
    lines = dict(line.split(" ", 1) for line in found["stat"].splitlines())
    processors = [name for name in lines if name.startswith("cpu") and name != "cpu"]
    assert processors == [f"cpu{number}" for number in sorted(os.sched_getaffinity(0))]
    assert {value for name in processors for value in lines[name].split()} == {"0"}
    assert abs(int(lines["btime"]) - time.time()) < 600
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert found["meminfo"].split()[:2] == ["MemTotal:", str(memory >> 10)]


def test_the_host_has_what_a_cage_is_not_told() -> None:
    """So that the test above says something."""
    for name in ("cmdline", "interrupts", "kallsyms", "softirqs", "zoneinfo"):
        assert Path("/proc", name).read_bytes(), name


def test_directories_of_the_kernel_are_empty_and_not_for_writing(left: Cage) -> None:
    listed = left.sh("cd /proc; for name in acpi bus driver fs irq pressure scsi; do ls $name 2>/dev/null; done; true")
    assert listed == ""
    assert "Read-only" in left.sh("touch /proc/pressure/memory 2>&1 || true")


def test_programs_that_ask_the_kernel_work(left: Cage) -> None:
    """busybox is there wherever the runtime is."""
    assert "up 0 min" in left.sh("busybox uptime")
    assert "Mem:" in left.sh("busybox free")
    assert "busybox ps" in left.sh("busybox ps")
    assert "Load average: 0.00" in left.sh("busybox top -b -n 1")
    assert int(python(left, "import os; print(os.cpu_count())")) == os.cpu_count()


# --- clocks and identities -------------------------------------------------------------------------------------------
def test_clocks_begin_with_the_cage(cage: MakeCage) -> None:
    began = time.monotonic()
    fresh = cage("root-fresh")
    clocks = python(fresh, "import time; print(time.monotonic(), time.clock_gettime(time.CLOCK_BOOTTIME))").split()
    uptime = fresh.sh("cut -d ' ' -f 1 /proc/uptime")
    lived = time.monotonic() - began
    assert all(0 <= float(clock) <= lived + 1 for clock in (*clocks, uptime))


def test_a_boot_id_is_of_one_life_of_one_cage(left: Cage, right: Cage) -> None:
    asked = "cat /proc/sys/kernel/random/boot_id"
    first, other = left.sh(asked), right.sh(asked)
    left.runtime.ok("stop", left.name)
    left.runtime.ok("start", left.name)
    host = Path("/proc/sys/kernel/random/boot_id").read_text()
    assert len({first, other, left.sh(asked), host}) == 4
    assert left.sh(asked) == left.sh(asked)


def test_names_and_links_are_the_cages_own(left: Cage, right: Cage) -> None:
    asked = "hostname; cat /proc/sys/kernel/domainname /etc/machine-id"
    assert left.sh(asked) == f"root-left\n(none)\n{left.uuid}\n"
    assert right.sh(asked) == f"root-right\n(none)\n{right.uuid}\n"
    assert python(left, "import socket; print(socket.if_nameindex())") == "[(1, 'lo')]\n"


# --- mounts ------------------------------------------------------------------------------------------------------
def test_the_table_of_mounts_tells_no_path_of_the_host_but_of_what_is_bound(runtime: Runtime, left: Cage) -> None:
    bound = {f"{runtime.storage}/{left.uuid}/home", f"{runtime.run}/gateways/{left.uuid}"}
    told = left.sh("cat /proc/self/mountinfo")
    for path in bound:
        told = told.replace(path, "")
    assert str(runtime.top) not in told
    lowers = [word for line in told.splitlines() for word in line.split(",") if word.startswith("lowerdir")]
    assert len(lowers) == 3
    assert all(layer.startswith("/proc/self/fd/") for lower in lowers for layer in lower.partition("=")[2].split(":"))


def test_what_is_behind_the_masks_is_for_nobody(left: Cage) -> None:
    for as_root in (False, True):
        assert left.enter("ls", "/.proc/whole", root=as_root).returncode == 2
        assert b"Permission denied" in left.enter("cat", "/.proc/whole/kallsyms", root=as_root).stderr
    tries = "ls /.proc; umount /proc/stat; cat /proc/kallsyms"
    nested = left.sh(f"bwrap --unshare-user --ro-bind / / sh -c '{tries}' 2>&1 || true")
    assert "cannot open directory '/.proc': Permission denied" in nested
    assert "umount: /proc/stat" in nested


def test_a_nested_sandbox_mounts_a_procfs(left: Cage) -> None:
    """As `flatpak run` does; what it sees there is for the security context to refuse."""
    nested = "bwrap --unshare-user --unshare-pid --ro-bind / / --proc /proc --dev /dev readlink /proc/self"
    assert left.sh(nested).strip() in ("1", "2")


def test_devices_are_those_that_everybody_has(left: Cage) -> None:
    assert set(left.sh("find /dev -maxdepth 1 \\( -type c -o -name ptmx \\) -printf '%f\\n'").split()) == DEVICES
    assert "Read-only file system" in left.sh("mknod /dev/more p 2>&1 || true")


# --- whose it is -------------------------------------------------------------------------------------------------
def owner_of(pid: int) -> int:
    """The uid, in our user namespace, that the user namespace of the process belongs to."""
    uid = array.array("I", [0])
    descriptor = os.open(f"/proc/{pid}/ns/user", os.O_RDONLY)
    try:
        fcntl.ioctl(descriptor, NS_GET_OWNER_UID, uid)
    finally:
        os.close(descriptor)
    return uid[0]


def test_a_user_namespace_belongs_to_an_id_of_the_cage(left: Cage, right: Cage) -> None:
    """What is counted by owner, as inotify(7) instances, cages do not take from each other or from the host's root."""
    for cage in (left, right):
        assert owner_of(cage.runtime.cage_processes(cage.uuid)[0]) == cage.base


def test_a_pid_namespace_is_the_hosts(left: Cage) -> None:
    pid = left.runtime.cage_processes(left.uuid)[0]
    descriptor = os.open(f"/proc/{pid}/ns/pid", os.O_RDONLY)
    owning = fcntl.ioctl(descriptor, NS_GET_USERNS)
    assert os.fstat(owning).st_ino == os.stat("/proc/self/ns/user").st_ino
    os.close(owning)
    os.close(descriptor)


# --- links -------------------------------------------------------------------------------------------------------
def test_the_core_follows_no_link_of_a_cages(runtime: Runtime, cage: MakeCage, tmp_path: Path) -> None:
    """Whatever the core looks at in a home, a link there leads nowhere: so no mount needs nosymfollow for it."""
    canary = tmp_path / "canary"
    canary.mkdir(mode=0o777)
    (canary / "file").write_text("canary")
    linking = cage("root-linking")
    linking.sh(f"cd ~; rm -rf Documents Downloads .config; ln -s {canary}/file file; "
               f"for name in Documents Downloads .config .var .local public; do ln -s {canary} $name; done")
    with Changes(canary) as changes:
        runtime.ok("status", "root-linking")
        runtime.ok("stop", "root-linking")
        runtime.ok("start", "root-linking")
        linking.destroy()
        os.rename(canary / "file", canary / "last")
        changes.until(lambda: True, "nothing")
        seen = os.read(changes._inotify, 65536)
    assert seen.count(b"file") == seen.count(b"last") == 1
    assert [entry.name for entry in canary.iterdir()] == ["last"]
