# SPDX-License-Identifier: LGPL-2.1-or-later
"""One thin wrapper per system call that Python lacks, named as the call; OSError carries the path or the object.

Law of this room: no decision is taken here, and no wrapper does two things.  Numbers are those of x86-64 and
arm64, which agree for every call added since Linux 5.0; those of older calls differ and are looked up.
"""

from __future__ import annotations

import ctypes
import os
import platform
import signal
from collections.abc import Iterable

_LIBC = ctypes.CDLL(None, use_errno=True)
_SYSCALL = _LIBC.syscall
_SYSCALL.restype = ctypes.c_long

_MACHINE = platform.machine()
_OLD_NUMBERS = {
    "x86_64": {"clone": 56, "sysinfo": 99, "pivot_root": 155, "keyctl": 250, "seccomp": 317},
    "aarch64": {"clone": 220, "sysinfo": 179, "pivot_root": 41, "keyctl": 219, "seccomp": 277},
}
NUMBERS = {
    **_OLD_NUMBERS.get(_MACHINE, {}),
    "open_tree": 428, "move_mount": 429, "fsopen": 430, "fsconfig": 431, "fsmount": 432, "clone3": 435,
    "openat2": 437, "mount_setattr": 442,
    "landlock_create_ruleset": 444, "landlock_add_rule": 445, "landlock_restrict_self": 446,
}

CLONE_NEWTIME = 0x00000080
CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
CLONE_PIDFD = 0x00001000
CLONE_CLEAR_SIGHAND = 0x100000000
CLONE_INTO_CGROUP = 0x200000000

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
MS_BIND, MS_REC, MS_PRIVATE, MS_SLAVE = 4096, 16384, 1 << 18, 1 << 19
MNT_DETACH, UMOUNT_NOFOLLOW = 2, 8

MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID, MOUNT_ATTR_NODEV, MOUNT_ATTR_NOEXEC = 1, 2, 4, 8
MOUNT_ATTR_NOSYMFOLLOW = 0x00200000
FSCONFIG_SET_FLAG, FSCONFIG_SET_STRING, FSCONFIG_CMD_CREATE = 0, 1, 6
AT_FDCWD = -100
AT_EMPTY_PATH, AT_RECURSIVE = 0x1000, 0x8000
OPEN_TREE_CLONE = 1
MOVE_MOUNT_F_EMPTY_PATH, MOVE_MOUNT_T_EMPTY_PATH = 0x04, 0x40

RESOLVE_NO_XDEV, RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS, RESOLVE_BENEATH = 1, 2, 4, 8

PROC_SUPER_MAGIC = 0x9FA0

KEYCTL_JOIN_SESSION_KEYRING = 1
PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 22, 2
SECCOMP_SET_MODE_FILTER = 1
SECCOMP_FILTER_FLAG_NEW_LISTENER, SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV = 8, 32
PR_CAPBSET_DROP = 24


def _check(result: int, subject: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), subject)
    return result


def _bytes(text: str | None) -> bytes | None:
    return None if text is None else os.fsencode(text)


class _CloneArgs(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_uint64)
        for name in ("flags", "pidfd", "child_tid", "parent_tid", "exit_signal", "stack", "stack_size", "tls",
                     "set_tid", "set_tid_size", "cgroup")
    ]


def clone3(flags: int, *, cgroup: int) -> tuple[int, int]:
    """Fork into new namespaces and into the cgroup whose directory `cgroup` is; (pid, pidfd), (0, -1) in the child.

    As with a bare fork, only a single-threaded caller may go on running Python in the child (clone(2)).
    """
    pidfd = ctypes.c_int(-1)
    args = _CloneArgs(flags=flags | CLONE_INTO_CGROUP | CLONE_PIDFD, pidfd=ctypes.addressof(pidfd),
                      exit_signal=signal.SIGCHLD, cgroup=cgroup)
    pid = _check(_SYSCALL(NUMBERS["clone3"], ctypes.byref(args), ctypes.sizeof(args)), "clone3")
    return (pid, pidfd.value) if pid else (0, -1)


def fork() -> int:
    """A fork without what Python and the C library do around theirs, half a millisecond; clone and not clone3, because
    cage-init's own filter takes that one away.  For a single-threaded caller whose child soon executes or ends.
    """
    return _check(_SYSCALL(NUMBERS["clone"], ctypes.c_ulong(signal.SIGCHLD), None, None, None, None), "fork")


def unshare(flags: int) -> None:
    _check(_LIBC.unshare(flags), f"unshare {flags:#x}")


def setns(namespace: int, kind: int) -> None:
    _check(_LIBC.setns(namespace, kind), f"setns {kind:#x}")


def mount(source: str | None, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    _check(_LIBC.mount(_bytes(source), _bytes(target), _bytes(kind), ctypes.c_ulong(flags), _bytes(data)), target)


def umount2(target: str, flags: int) -> None:
    _check(_LIBC.umount2(_bytes(target), flags), target)


def pivot_root(new: str, old: str) -> None:
    _check(_SYSCALL(NUMBERS["pivot_root"], _bytes(new), _bytes(old)), new)


def signalfd(signals: Iterable[int]) -> int:
    """A descriptor from which those of `signals` that are blocked are read, each as a struct signalfd_siginfo."""
    mask = sum(1 << (number - 1) for number in signals).to_bytes(128, "little")  # sigset_t
    return _check(_LIBC.signalfd(-1, mask, os.O_CLOEXEC | os.O_NONBLOCK), "signalfd")


class _MountAttr(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("attr_set", "attr_clr", "propagation", "userns_fd")]


def mount_setattr(directory: int, path: str, flags: int, attributes: int) -> None:
    """Add `attributes` (MOUNT_ATTR_*) to the mount at `path` beneath `directory` (mount_setattr(2))."""
    attr = _MountAttr(attr_set=attributes)
    _check(_SYSCALL(NUMBERS["mount_setattr"], directory, _bytes(path), flags, ctypes.byref(attr), ctypes.sizeof(attr)),
           path)


def open_tree(directory: int, path: str, flags: int) -> int:
    return _check(_SYSCALL(NUMBERS["open_tree"], directory, _bytes(path), flags | os.O_CLOEXEC), path)


def move_mount(tree: int, target: int) -> None:
    """Attach the detached mount `tree` on what the descriptor `target` is of."""
    flags = MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH
    _check(_SYSCALL(NUMBERS["move_mount"], tree, b"", target, b"", flags), "move_mount")


def fsopen(kind: str) -> int:
    """A file system that is still to be described (fsopen(2) of the kernel's new mount interface)."""
    return _check(_SYSCALL(NUMBERS["fsopen"], kind.encode(), 1), kind)  # FSOPEN_CLOEXEC


def fsconfig(context: int, command: int, key: str | None = None, value: str | None = None) -> None:
    _check(_SYSCALL(NUMBERS["fsconfig"], context, command, _bytes(key), _bytes(value), 0), key or "file system")


def fsmount(context: int, attributes: int) -> int:
    """The file system as a mount that is not attached anywhere, with MOUNT_ATTR_* `attributes`."""
    return _check(_SYSCALL(NUMBERS["fsmount"], context, 1, attributes), "fsmount")  # FSMOUNT_CLOEXEC


class _Statfs(ctypes.Structure):
    _fields_ = [("type", ctypes.c_long), ("rest", ctypes.c_long * 32)]


def file_system(descriptor: int) -> int:
    """The magic number of the file system that the descriptor is of (statfs(2))."""
    found = _Statfs()
    _check(_LIBC.fstatfs(descriptor, ctypes.byref(found)), "fstatfs")
    return int(found.type)


class _OpenHow(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("flags", "mode", "resolve")]


def openat2(directory: int, path: str, flags: int, resolve: int) -> int:
    how = _OpenHow(flags=flags | os.O_CLOEXEC, resolve=resolve)
    return _check(_SYSCALL(NUMBERS["openat2"], directory, _bytes(path), ctypes.byref(how), ctypes.sizeof(how)), path)


def keyctl_join_session_keyring() -> None:
    """A session keyring of our own, so that the one we were born with is not reachable (keyctl(2))."""
    _check(_SYSCALL(NUMBERS["keyctl"], KEYCTL_JOIN_SESSION_KEYRING, None), "session keyring")


class _SockFprog(ctypes.Structure):
    _fields_ = [("len", ctypes.c_ushort), ("filter", ctypes.c_char_p)]


def seccomp_filter(program: bytes) -> None:
    """Load the BPF `program` for this thread and all it will start (seccomp(2), SECCOMP_MODE_FILTER)."""
    fprog = _SockFprog(len=len(program) // 8, filter=program)
    _check(_LIBC.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(fprog), 0, 0), "seccomp filter")


def seccomp_listener(program: bytes) -> int:
    """As `seccomp_filter`; a descriptor, close-on-exec, on which what the program notifies of is answered.

    A caller whose call has been received waits for the answer, whatever signals come but one that kills.
    EBUSY where this thread has such a program already (seccomp(2), SECCOMP_FILTER_FLAG_NEW_LISTENER).
    """
    fprog = _SockFprog(len=len(program) // 8, filter=program)
    flags = SECCOMP_FILTER_FLAG_NEW_LISTENER | SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV
    return _check(_SYSCALL(NUMBERS["seccomp"], SECCOMP_SET_MODE_FILTER, flags, ctypes.byref(fprog)), "seccomp listener")


class _LandlockRulesetAttr(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("handled_access_fs", "handled_access_net", "scoped")]


def landlock_abi() -> int:
    """The kernel's Landlock ABI, 0 where it has none."""
    version: int = _SYSCALL(NUMBERS["landlock_create_ruleset"], None, ctypes.c_size_t(0), 1)
    return max(0, version)


def landlock_create_ruleset(*, files: int, network: int, scoped: int) -> int:
    attr = _LandlockRulesetAttr(handled_access_fs=files, handled_access_net=network, scoped=scoped)
    # An older kernel takes the first members alone, and refuses a longer structure only where the rest is not zero.
    size = ctypes.c_size_t(ctypes.sizeof(attr))
    return _check(_SYSCALL(NUMBERS["landlock_create_ruleset"], ctypes.byref(attr), size, 0), "landlock ruleset")


class _LandlockPathBeneathAttr(ctypes.Structure):
    _pack_ = 1
    _fields_ = [("allowed_access", ctypes.c_uint64), ("parent_fd", ctypes.c_int32)]


def landlock_add_rule(ruleset: int, directory: int, rights: int) -> None:
    attr = _LandlockPathBeneathAttr(allowed_access=rights, parent_fd=directory)
    _check(_SYSCALL(NUMBERS["landlock_add_rule"], ruleset, 1, ctypes.byref(attr), 0), "landlock rule")


def landlock_restrict_self(ruleset: int, flags: int) -> None:
    _check(_SYSCALL(NUMBERS["landlock_restrict_self"], ruleset, flags), "landlock")


def capbset_drop(capability: int) -> None:
    _check(_LIBC.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0), "capability bounding set")


def sethostname(name: str) -> None:
    encoded = name.encode()
    _check(_LIBC.sethostname(encoded, len(encoded)), name)


def setdomainname(name: str) -> None:
    encoded = name.encode()
    _check(_LIBC.setdomainname(encoded, len(encoded)), "domain name")
