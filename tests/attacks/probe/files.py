# SPDX-License-Identifier: LGPL-2.1-or-later
"""A and B of the catalogue: what can be written, executed, mounted and seen, alone and as a nested namespace's root."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import signal
import socket
import stat
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

from .kernel import (
    HELD,
    LIBC,
    REFUSED,
    THROUGH,
    Answer,
    answer,
    apart,
    checked,
    control,
    judged,
    name_of,
    not_here,
    opened,
    read,
    syscall,
    tried,
)

CLONE_NEWUSER_NEWNS = 0x10000000 | 0x00020000
CLONE_NEWPID = 0x20000000
OWN_SETTINGS = ("/proc/sys/fs/mqueue/", "/proc/sys/kernel/msg", "/proc/sys/kernel/shm", "/proc/sys/kernel/sem",
                "/proc/sys/kernel/auto_msgmni", "/proc/sys/kernel/ns_last_pid", "/proc/sys/kernel/pid_max")
"""Of one's own ipc and pid namespaces; anybody may open ns_last_pid, and what is written to it is refused."""
MASKED = ("/dev/null", "/dev/pts", "/dev/ptmx", "/dev/shm", "/proc", "/sys")
WALKED = ("/proc/sys", "/proc/irq", "/proc/fs", "/proc/bus", "/proc/acpi", "/proc/scsi", "/proc/pressure",
          "/proc/dynamic_debug", "/sys")
READ_ONLY = ("/", "/usr", "/etc", "/opt", "/dev", "/sys", "/var", "/proc")


def alone(given: dict[str, Any]) -> Iterator[Answer]:
    yield from written()
    yield from swapped()
    yield from kernel_files()
    yield from cgroups()
    yield from executed()
    yield from setuid()
    yield from nested()
    yield from gates()
    yield from seen(given.get("canary"))


OWN = "in a tmpfs of its own"


def _of(path: str) -> str:
    """OWN, or "allowed" where what can be written is on any other file system."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as file:
        kinds = {line.split()[4]: line.partition(" - ")[2].split()[0] for line in file}
    while path not in kinds:
        path = os.path.dirname(path)
    return OWN if kinds[path] in ("tmpfs", "ramfs") else "allowed"


def _exists(path: str) -> bool:
    return os.path.lexists(path)


def written() -> Iterator[Answer]:
    """15: files that runtimes write before a start, and 29: places that nothing in a sandbox should change."""
    for path in READ_ONLY:
        if _exists(path):
            reason = tried(opened, f"{path}/probe", os.O_WRONLY | os.O_CREAT)
            if reason == "allowed":
                reason = _of(path)
                os.unlink(f"{path}/probe")
            yield judged(29, f"write in {path}", reason, (*REFUSED, OWN))
    for path in ("/etc/passwd", "/etc/resolv.conf", "/etc/hosts", "/etc/machine-id", "/usr/bin/env"):
        if not _exists(path):
            yield not_here(15, f"write {path}", "not there")
            continue
        yield judged(15, f"write {path}", tried(opened, path, os.O_WRONLY))
        yield judged(15, f"put a link at {path}", _replaced(path), (*REFUSED, "EBUSY"))


def _replaced(path: str) -> str:
    """By a symbolic link; one that comes to be there is taken away again."""
    def replace() -> None:
        os.symlink("/tmp/elsewhere", f"{path}.probe")
        try:
            os.rename(path, f"{path}.probe2")
            os.rename(f"{path}.probe2", path)
        finally:
            os.unlink(f"{path}.probe")

    return tried(replace)


def swapped() -> Iterator[Answer]:
    """6: the places that a runtime masks, binds over or opens itself."""
    for path in MASKED:
        if _exists(path):
            reason = tried(os.rename, path, f"{path}.probe")
            if reason == "allowed":
                os.rename(f"{path}.probe", path)
                reason = _of(os.path.dirname(path))
            yield judged(6, f"rename {path}", reason, ("EROFS", "EBUSY", "EACCES", "EPERM", OWN))
    for path, device in (("/dev/null", (1, 3)), ("/dev/zero", (1, 5)), ("/dev/tty", (5, 0))):
        if _exists(path):
            found = os.stat(path)
            right = stat.S_ISCHR(found.st_mode) and (os.major(found.st_rdev), os.minor(found.st_rdev)) == device
            yield control(6, f"{path} is the device", "allowed" if right else "something else")


# --- 8, 9, 10 --------------------------------------------------------------------------------------------------------
def kernel_files() -> Iterator[Answer]:
    """Every file of /proc that is not about a process, and of /sys, opened for writing."""
    for top in WALKED:
        found = [path for path in _writable_below(top) if not path.startswith(OWN_SETTINGS)]
        yield Answer(attack=10, attempt=f"write below {top}", outcome=THROUGH if found else HELD,
                     reason=", ".join(found[:3]) or "none")
    for path in ("/proc/sysrq-trigger", "/proc/kcore", "/proc/kmsg", "/proc/kallsyms", "/proc/mtrr",
                 "/proc/timer_list", "/sys/kernel/uevent_helper", "/proc/sys/fs/binfmt_misc/register",
                 "/proc/sys/kernel/core_pattern", "/proc/sys/kernel/modprobe", "/proc/sys/vm/memfd_noexec"):
        yield judged(10, f"write {path}", tried(opened, path, os.O_WRONLY))


def _writable_below(top: str) -> list[str]:
    found = []
    for directory, _, names in os.walk(top):
        for name in names:
            if tried(opened, f"{directory}/{name}", os.O_WRONLY) == "allowed":
                found.append(f"{directory}/{name}")
    return found


def cgroups() -> Iterator[Answer]:
    """9: a control file of a cgroup that is not our own to write."""
    found = [f"{directory}/{name}" for directory, _, names in os.walk("/sys/fs/cgroup") for name in names
             if name in ("cgroup.procs", "cgroup.freeze", "cgroup.kill", "memory.max", "pids.max", "release_agent")
             and tried(opened, f"{directory}/{name}", os.O_WRONLY) == "allowed"]
    yield judged(9, "control files of cgroups", ", ".join(found[:3]) or "none")
    paths = {line.rpartition(":")[2] for line in read("/proc/self/cgroup").decode().splitlines()}
    yield judged(9, "the path of one's own cgroup", "none" if paths == {"/"} else ", ".join(sorted(paths)))


# --- 28, 17 ----------------------------------------------------------------------------------------------------------
def executed() -> Iterator[Answer]:
    """A program of the sandbox's own making, from everywhere that it can write."""
    places = dict.fromkeys((os.environ.get("HOME", "/root"), "/tmp", "/var/tmp", "/dev/shm",
                            f"/run/user/{os.getuid()}"))
    for directory in places:
        path = f"{directory}/own-program"
        for verb, attempt in (("exec", _run), ("map", _map)):
            reason = apart(tried, attempt, path)
            yield judged(28, f"{verb} in {directory}", reason)
    yield judged(28, "exec of a memfd", apart(tried, _exec_memfd))
    # 126 and 127: the loader could not map it.
    yield judged(28, "exec by the loader", apart(lambda: _ended(_by_loader())), ("126", "127"))
    yield judged(28, "write through /proc/self/mem", apart(_over_code), ("EIO", "EACCES", "EPERM", "ENOENT", "EFAULT"))


def _copied(path: str) -> None:
    shutil.copyfile("/usr/bin/true", path)
    os.chmod(path, 0o755)


def _run(path: str) -> None:
    _copied(path)
    try:
        subprocess.run([path], check=False)
    finally:
        os.unlink(path)


def _map(path: str) -> None:
    _copied(path)
    descriptor = os.open(path, os.O_RDONLY)
    os.unlink(path)
    checked(LIBC.mmap(None, ctypes.c_size_t(4096), 5, 2, descriptor, ctypes.c_long(0)), "mmap")


def _exec_memfd() -> None:
    descriptor = os.memfd_create("own-program", 0)
    with open("/usr/bin/true", "rb") as file:
        os.write(descriptor, file.read())
    os.execve(descriptor, ["true"], {})


def _ended(status: int) -> str:
    return "allowed" if status == 0 else str(status)


def _by_loader() -> int:
    _copied("/tmp/own-program")
    loader = "/lib64/ld-linux-x86-64.so.2"
    ended = subprocess.run([loader, "/tmp/own-program"], check=False, capture_output=True, text=True)
    os.unlink("/tmp/own-program")
    return ended.returncode


def _over_code() -> str:
    """Whether a page that is mapped read-only and executable can be written by /proc/self/mem, which ignores that."""
    descriptor = os.open("/usr/bin/env", os.O_RDONLY)
    address = checked(LIBC.mmap(None, ctypes.c_size_t(4096), 5, 2, descriptor, ctypes.c_long(0)), "mmap")

    def over() -> None:
        memory = os.open("/proc/self/mem", os.O_RDWR)
        os.pwrite(memory, b"\xc3", address)

    return tried(over)


def setuid() -> Iterator[Answer]:
    """17: a setuid program of somebody's, by a mount that lets it have an effect."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as file:
        mounts = [line.split() for line in file]
    loose = [mount[4] for mount in mounts if "nosuid" not in mount[5].split(",")]
    yield judged(17, "mounts without nosuid", ", ".join(loose[:4]) or "none")
    both = [mount[4] for mount in mounts if not {"ro", "noexec"} & set(mount[5].split(","))]
    yield judged(28, "mounts to write and to execute", ", ".join(both[:4]) or "none")


# --- 29, 8: as the root of a user and mount namespace of one's own, as every bubblewrap is ----------------------------
def nested() -> Iterator[Answer]:
    locked = ("EPERM", "EINVAL", "EACCES", "EROFS", "ENOSYS", "no namespace: EPERM", "no namespace: ENOSYS",
              "no namespace: ENOSPC")
    home = os.environ.get("HOME", "/root").encode()
    for attack, attempts in _nested(home).items():
        for name, attempt in attempts.items():
            reason = apart(_in_namespace, attempt, 0)
            yield judged(attack, f"nested: {name}", reason, locked)
    for name, attempt in {
        "mount another proc": lambda: syscall(165, b"x", b"/mnt", b"proc", 0, 0),
        "read /proc/kallsyms of another proc": _kallsyms_of_another,
    }.items():
        reason = apart(_in_namespace, attempt, CLONE_NEWPID)
        if name == "mount another proc":
            yield control(29, f"nested: {name}", reason)
        else:
            yield judged(39, f"nested: {name}", reason, (*locked, "none"))


def _nested(home: bytes) -> dict[int, dict[str, Callable[[], int]]]:
    return {
        29: {
            "umount /usr": lambda: syscall(166, b"/usr", 2), "umount /proc": lambda: syscall(166, b"/proc", 2),
            "umount the home": lambda: syscall(166, home, 2),
            "remount /usr writable": lambda: syscall(165, 0, b"/usr", 0, 0x1020, 0),
            "remount the home with exec": lambda: syscall(165, 0, home, 0, 0x1020, 0),
            "remount /tmp with dev": lambda: syscall(165, 0, b"/tmp", 0, 0x1020, 0),
            "remount /usr's superblock": lambda: syscall(165, 0, b"/usr", 0, 0x20, 0),
            "bind one mount without those on it": lambda: syscall(165, b"/", b"/mnt", 0, 0x1000, 0),
            "mount sysfs": lambda: syscall(165, b"x", b"/mnt", b"sysfs", 0, 0),
            "mount a proc of the cage": lambda: syscall(165, b"x", b"/mnt", b"proc", 0, 0),
            "open_tree": lambda: syscall(428, -100, b"/usr", 1),
            "a device": lambda: syscall(133, b"/tmp/device", 0o020666, 0x103),
            "sethostname": lambda: syscall(170, b"x", 1),
            "write /etc/passwd": lambda: LIBC.open(b"/etc/passwd", 1),
        },
        8: {"mount cgroup2": lambda: syscall(165, b"x", b"/mnt", b"cgroup2", 0, 0),
            "mount cgroup v1": lambda: syscall(165, b"x", b"/mnt", b"cgroup", 0, b"memory")},
        10: {"binfmt_misc of the host": _binfmt_misc,
             "mount debugfs": lambda: syscall(165, b"x", b"/mnt", b"debugfs", 0, 0)},
    }


def _binfmt_misc() -> int:
    """Since Linux 6.7 a user namespace has one of its own, which is empty and binds nobody outside."""
    result = syscall(165, b"x", b"/mnt", b"binfmt_misc", 0, 0)
    if result == 0 and tuple(map(int, os.uname().release.split(".")[:2])) >= (6, 7):
        ctypes.set_errno(errno.EPERM)
        return -1
    return result


def _kallsyms_of_another() -> int:
    checked(syscall(165, b"x", b"/mnt", b"proc", 0, 0), "mount")
    descriptor = checked(LIBC.open(b"/mnt/kallsyms", 0), "open")
    return -1 if not os.read(descriptor, 1) else 0


def _in_namespace(attempt: Callable[[], int], flags: int) -> str:
    read_end, write_end = os.pipe()
    pid = syscall(56, CLONE_NEWUSER_NEWNS | flags | signal.SIGCHLD, 0, 0, 0, 0)
    if pid < 0:
        return f"no namespace: {answer(pid)}"
    if pid == 0:
        try:
            said = answer(attempt())
        except OSError as error:
            said = name_of(error.errno)
        os.write(write_end, said.encode())
        os._exit(0)
    os.waitpid(pid, 0)
    return os.read(read_end, 64).decode()


# --- 51, 2: what is to be seen ---------------------------------------------------------------------------------------
def gates() -> Iterator[Answer]:
    """The cage's way to its gateway is its mediator's alone (D has the rest)."""
    if not _exists("/run/cage"):
        yield not_here(51, "the gateway", "not there")
        return
    yield judged(51, "the gate", tried(os.listdir, "/run/cage/gate"))
    with socket.socket(socket.AF_UNIX) as gateway:
        yield judged(51, "the gateway", tried(gateway.connect, "/run/cage/gateway/bus"))


def seen(canary: str | None) -> Iterator[Answer]:
    """2: a file of the host, by its name anywhere but in /proc."""
    if canary is not None:
        found = [f"{directory}/{name}" for directory, folders, names in os.walk("/")
                 if not directory.startswith("/proc") for name in (*folders, *names) if name == canary]
        yield judged(2, "files of the host", ", ".join(found) or "none")
