# SPDX-License-Identifier: LGPL-2.1-or-later
"""The wall from inside: probe.py in real cages, each attempt refused for the stated reason."""

from __future__ import annotations

import json
import os
import pty
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.privileged import probe
from tests.privileged.conftest import MakeCage
from tests.privileged.runtime import SECONDS, Cage, Runtime, wait_readable

PROBE = Path(probe.__file__).read_bytes()
CANARY = "canary-of-the-host"
NOTHING = "0000000000000000"
ENVIRONMENT = {
    "PATH": "/opt/cage-runtime/bin:/usr/local/bin:/usr/bin:/bin:/usr/games", "LANG": "C.UTF-8", "SHELL": "/bin/bash",
}
OF_USER = {"HOME": "/home/user", "USER": "user", "LOGNAME": "user", "XDG_RUNTIME_DIR": "/run/user/1000",
           "DBUS_SESSION_BUS_ADDRESS": "unix:path=/run/user/1000/bus",
           "XDG_DATA_DIRS": "/home/user/.local/share/flatpak/exports/share:/var/lib/flatpak/exports/share"
                            ":/usr/local/share:/usr/share"}
OF_ROOT = {"HOME": "/root", "USER": "root", "LOGNAME": "root"}

EPERM = (
    # keys
    "keyctl", "add_key", "request_key",
    # the kernel and its clocks
    "io_uring_setup", "io_uring_enter", "io_uring_register", "userfaultfd", "bpf", "perf_event_open", "kexec_load",
    "kexec_file_load", "init_module", "finit_module", "delete_module", "swapon", "swapoff", "reboot", "settimeofday",
    "clock_settime", "clock_adjtime", "adjtimex", "acct", "quotactl", "syslog", "lookup_dcookie", "vhangup",
    "sethostname", "setdomainname",
    # other processes
    "ptrace", "process_vm_readv", "process_vm_writev", "process_madvise", "pidfd_getfd", "kcmp", "move_pages",
    "migrate_pages", "setns", "chroot", "setpriority(of another)", "sched_setscheduler(FIFO)",
    # hardware, handles, caches
    "iopl", "ioperm", "modify_ldt", "uselib", "ustat", "sysfs", "nfsservctl", "open_by_handle_at", "name_to_handle_at",
    "fanotify_init", "mincore", "cachestat", "preadv2(RWF_NOWAIT)",
    # arguments
    "personality(ADDR_NO_RANDOMIZE)", "personality(READ_IMPLIES_EXEC)", "unshare(NEWNS)", "unshare(NEWNET)",
    "unshare(NEWUSER|NEWNS)", "unshare(NEWTIME)", "mknod(a character device)", "mknod(a block device)",
    "mknodat(a character device)", "ioctl(TIOCSTI)", "ioctl(TIOCSTI, high bits)", "ioctl(TIOCLINUX)",
    "ioctl(TIOCLINUX, high bits)", "ioctl(TIOCCONS)", "memfd_create(MFD_EXEC)", "memfd_create(MFD_EXEC, high bits)",
    "socket(SOCK_RAW)", "prlimit64(of init)", "prlimit64(CORE, of init)", "ioctl(BTRFS_IOC_SUBVOL_CREATE)",
    "ioctl(BTRFS_IOC_SUBVOL_CREATE_V2, high bits)", "ioctl(BTRFS_IOC_SUBVOL_SETFLAGS)",
    # mounts, without a namespace of its own and with one
    "mount(tmpfs)", "mount(remount /usr)", "umount2(/usr)", "umount2(/proc)", "pivot_root",
    "nested: remount /usr writable", "nested: remount the home with exec", "nested: remount /tmp with dev",
    "nested: remount /usr's superblock", "nested: mount cgroup2", "nested: mount cgroup v1", "nested: mount sysfs",
    "nested: mount a proc of the cage", "nested: sethostname", "nested: a device",
    # write xor execute
    "map in /tmp", "map in /var/tmp", "map in /dev/shm",
)
ENOSYS = ("clone3", "open_tree", "move_mount", "fsopen", "fsconfig", "fsmount", "mount_setattr", "mbind",
          "a number that no call has", "nested: open_tree")
"""What libraries and programs fall back from."""
EINVAL = ("nested: umount /usr", "nested: umount /proc", "nested: umount the home",
          "nested: bind one mount without those on it")
"""As the kernel says of a locked mount (mount_namespaces(7))."""
EROFS = ("write in usr", "write in etc", "write in programs", "write in dev", "write in root", "write in opt",
         "write in sys", "write in var", "write /etc/passwd", "write /opt/cage-runtime/bin/incage",
         "nested: write /etc/passwd")
EACCES = ("exec in /tmp", "exec in /var/tmp", "exec in /dev/shm", "exec of a memfd", "the gate", "the gateway")
ALLOWED = ("personality(asks)", "unshare(NEWUSER)", "socket(AF_UNIX)", "socket(AF_INET)", "socket(AF_INET6)",
           "socket(AF_NETLINK, NETLINK_ROUTE)", "socketpair(AF_UNIX)", "prlimit64(of itself)", "prlimit64(CORE)",
           "prlimit64(CORE, reads)")
"""So that a refusal above says something."""
FAMILIES = tuple(name for name in probe.CALLS if name.startswith(("socket(", "socketpair("))
                 and name not in (*ALLOWED, *EPERM))

ANSWERS = {
    **dict.fromkeys(EPERM, "EPERM"), **dict.fromkeys(ENOSYS, "ENOSYS"), **dict.fromkeys(EINVAL, "EINVAL"),
    **dict.fromkeys(EROFS, "EROFS"), **dict.fromkeys(EACCES, "EACCES"), **dict.fromkeys(ALLOWED, "allowed"),
    **dict.fromkeys(FAMILIES, "EAFNOSUPPORT"), "x32 getpid": "SIGSYS", "exec by the loader": "127",
}
OF_THE_USER = {
    "kill(1)": "EPERM", "setuid(0)": "EPERM", "exec in /home/user": "EACCES", "map in /home/user": "EPERM",
    "exec in /run/user/1000": "EACCES", "map in /run/user/1000": "EPERM",
}
OF_THE_CAGES_ROOT = {
    # It may signal its PID 1, which the kernel has ignore that; and it has nowhere to write.
    "kill(1)": "allowed", "setuid(0)": "allowed", "exec in /root": "EROFS", "map in /root": "EROFS",
    "exec in /run/user/0": "ENOENT", "map in /run/user/0": "ENOENT",
}


# --- what was answered -------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def left(shared_cage: MakeCage) -> Cage:
    return shared_cage("left")


@pytest.fixture(scope="module")
def right(shared_cage: MakeCage) -> Cage:
    return shared_cage("right", "--level", "secret")


@pytest.fixture(scope="module")
def canaries() -> Iterator[None]:
    """Files of the host where a careless bind would show them."""
    files = [Path(directory, CANARY) for directory in ("/root", "/home", "/var", "/tmp", "/opt", "/var/lib")]
    for file in files:
        file.touch()
    yield
    for file in files:
        file.unlink()


def tried(cage: Cage, *, root: bool) -> dict[str, Any]:
    given = json.dumps({"canary": CANARY})
    ended = cage.enter("/usr/bin/python3", "-IS", "-", "try", given, input=PROBE, root=root)
    assert ended.returncode == 0, ended.stderr.decode()
    answers: dict[str, Any] = json.loads(ended.stdout)
    return answers


@pytest.fixture(scope="module")
def by_user(left: Cage, canaries: None) -> dict[str, Any]:  # noqa: ARG001
    return tried(left, root=False)


@pytest.fixture(scope="module")
def by_root(left: Cage, canaries: None) -> dict[str, Any]:  # noqa: ARG001
    return tried(left, root=True)


@pytest.fixture(params=["by_user", "by_root"])
def answers(request: pytest.FixtureRequest) -> dict[str, Any]:
    """By the cage's user, and by its root."""
    answers: dict[str, Any] = request.getfixturevalue(request.param)
    return answers


# --- one attempt at a time ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("attempt", ANSWERS)
def test_an_attempt_is_answered_for_the_stated_reason(answers: dict[str, Any], attempt: str) -> None:
    assert answers[attempt] == ANSWERS[attempt]


@pytest.mark.parametrize("attempt", OF_THE_USER)
def test_an_attempt_of_the_user(by_user: dict[str, Any], attempt: str) -> None:
    assert by_user[attempt] == OF_THE_USER[attempt]


@pytest.mark.parametrize("attempt", OF_THE_CAGES_ROOT)
def test_an_attempt_of_the_cages_root(by_root: dict[str, Any], attempt: str) -> None:
    assert by_root[attempt] == OF_THE_CAGES_ROOT[attempt]


def test_nothing_was_tried_that_no_table_names(by_user: dict[str, Any], by_root: dict[str, Any]) -> None:
    said = {name for answers in (by_user, by_root) for name, answer in answers.items() if isinstance(answer, str)}
    named = {*ANSWERS, *OF_THE_USER, *OF_THE_CAGES_ROOT, "init's memory", "init's root"}
    assert said == named


# --- who one is in there -----------------------------------------------------------------------------------------
def test_no_right_is_left(answers: dict[str, Any]) -> None:
    identity = answers["identity"]
    assert identity["capabilities"] == dict.fromkeys(("Inh", "Prm", "Eff", "Bnd", "Amb"), NOTHING)
    assert identity["bounding"] == []
    assert (identity["no_new_privs"], identity["seccomp"]) == ("1", "2")
    # NOROOT and its lock, and the locks of KEEP_CAPS and NO_SETUID_FIXUP (capabilities(7)).
    assert identity["securebits"] == 0b101011
    assert identity["groups"] == []


def test_ids_are_the_cages_own(left: Cage, by_user: dict[str, Any], by_root: dict[str, Any]) -> None:
    assert by_user["identity"]["uid_map"] == by_root["identity"]["uid_map"] == ["0", str(left.base), "65536"]
    assert by_user["identity"]["ids"] == [1000] * 3
    assert by_root["identity"]["ids"] == [0] * 3
    assert by_user["identity"]["hostname"] == "left"


def test_the_environment_is_exactly_the_rebuilt_one(by_user: dict[str, Any], by_root: dict[str, Any]) -> None:
    assert by_user["identity"]["environment"] == ENVIRONMENT | OF_USER
    assert by_root["identity"]["environment"] == ENVIRONMENT | OF_ROOT


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
    here = by_user["identity"]["namespaces"]
    there = dict(line.split() for line in right.sh(
        f"for kind in {' '.join(probe.NAMESPACES)}; do echo $kind $(readlink /proc/self/ns/$kind); done").splitlines())
    host = {kind: os.readlink(f"/proc/self/ns/{kind}") for kind in probe.NAMESPACES}
    assert here.keys() == there.keys() == set(probe.NAMESPACES)
    for kind in probe.NAMESPACES:
        assert len({here[kind], there[kind], host[kind]}) == 3, kind


def test_signals_are_as_a_program_expects_them(left: Cage) -> None:
    for root in (False, True):
        status = left.enter("cat", "/proc/self/status", root=root).stdout.decode().splitlines()
        signals = dict(line.split() for line in status if line.startswith(("SigI", "SigB", "SigC")))
        assert (signals["SigIgn:"], signals["SigBlk:"], signals["SigCgt:"]) == (NOTHING, NOTHING, NOTHING)


# --- what one sees -----------------------------------------------------------------------------------------------
def test_nothing_of_the_host_is_to_be_found(answers: dict[str, Any]) -> None:
    assert answers["canaries"] == []


def test_no_mount_is_setuid_or_both_written_and_executed(answers: dict[str, Any]) -> None:
    assert answers["mounts without nosuid"] == []
    assert answers["writable and executable mounts"] == []


def test_other_users_processes_are_there_and_cannot_be_seen(left: Cage, answers: dict[str, Any]) -> None:
    assert answers["init is visible"] is False
    assert answers["of others readable"] == {}
    assert (answers["init's memory"], answers["init's root"]) == ("ENOENT", "ENOENT")
    assert {entry.split("/")[2] for entry in left.sh("ls -d /proc/[0-9]*").split()} <= {
        str(pid) for pid in range(1, 4000)}


def test_a_mediator_cannot_be_looked_at(left: Cage) -> None:
    """Its cage half runs for a while after a request, as another uid of the cage."""
    left.sh("echo x > file; incage send file --to nobody-there; test $? = 126; rm file")
    for root in (False, True):
        found = tried(left, root=root)
        # Two for the cage's root: the bus and the cage half; cage-init has its uid.
        assert found["not ours but there"] >= (2 if root else 3)
        assert found["of others readable"] == {}
        listed = left.enter("sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '", root=root).stdout
        assert b"cage-mediator" not in listed
        assert b"dbus-daemon" not in listed


def test_kernel_files_are_not_for_writing(by_user: dict[str, Any], by_root: dict[str, Any]) -> None:
    # Anybody may open ns_last_pid, and the kernel refuses what is written to it; the cage's root has the settings of
    # its own ipc and pid namespaces.
    assert by_user["kernel files"] == ["/proc/sys/kernel/ns_last_pid"]
    own = ("/proc/sys/fs/mqueue/", "/proc/sys/kernel/msg", "/proc/sys/kernel/shm", "/proc/sys/kernel/sem",
           "/proc/sys/kernel/auto_msgmni", "/proc/sys/kernel/ns_last_pid", "/proc/sys/kernel/pid_max")
    assert [file for file in by_root["kernel files"] if not file.startswith(own)] == []


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


# --- two cages ---------------------------------------------------------------------------------------------------
def test_two_cages_do_not_meet(runtime: Runtime, left: Cage, right: Cage) -> None:
    """Locks, watches, sockets, ports and System V objects of one name, held in one and looked for in the other."""
    with (
        left.popen("/usr/bin/python3", "-IS", "-c", PROBE.decode(), "hold", stdin=subprocess.PIPE,
                   stdout=subprocess.PIPE) as holder,
        socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as abstract,
    ):
        assert holder.stdin is not None
        assert holder.stdout is not None
        abstract.bind(f"\0{runtime.top.name}")
        abstract.listen()
        wait_readable(holder.stdout.fileno(), "the holder")
        assert holder.stdout.readline() == b"holding\n"
        given = json.dumps({"port": server.getsockname()[1], "abstract": f"\0{runtime.top.name}"})
        ended = right.enter("/usr/bin/python3", "-IS", "-", "meet", given, input=PROBE)
        assert ended.returncode == 0, ended.stderr.decode()
        found = json.loads(ended.stdout)
        for path in probe.SHARED[:1]:
            Path(path).read_bytes()  # the host's own, which the watch must not see either
        holder.stdin.write(b"\n")
        holder.stdin.flush()
        noticed = json.loads(holder.stdout.readline())
    refused = dict.fromkeys(
        ("abstract socket", "loopback of the other", "loopback of the host", "abstract socket of the host"),
        "ECONNREFUSED")
    absent = dict.fromkeys(("shared memory", "messages", "semaphores", "/dev/shm"), "ENOENT")
    assert found == refused | absent | {f"lock {path}": "allowed" for path in probe.held_files()}
    assert noticed == {"made": True, "bytes of events": 0}


def test_within_one_cage_the_same_things_are_met(left: Cage) -> None:
    """The test above looks at what can be seen: here it is."""
    with left.popen("/usr/bin/python3", "-IS", "-c", PROBE.decode(), "hold", stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"holding\n"
        given = json.dumps({"port": 1, "abstract": "\0nobody"})
        found = json.loads(left.enter("/usr/bin/python3", "-IS", "-", "meet", given, input=PROBE).stdout)
        holder.stdin.write(b"\n")
        holder.stdin.flush()
        noticed = json.loads(holder.stdout.readline())
    assert {found[f"lock {path}"] for path in probe.held_files()} == {"EAGAIN"}
    assert {found[name] for name in ("abstract socket", "loopback of the other", "shared memory", "messages",
                                     "semaphores", "/dev/shm")} == {"allowed"}
    assert noticed["bytes of events"] > 0
