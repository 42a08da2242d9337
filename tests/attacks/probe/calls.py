# SPDX-License-Identifier: LGPL-2.1-or-later
"""B of the catalogue: single system calls, each in a process of its own, which it may cost."""

from __future__ import annotations

import ctypes
import fcntl
import os
import resource
import signal
import struct
import termios
from collections.abc import Callable, Iterator
from typing import Any

from .kernel import HELD, LIBC, THROUGH, Answer, answer, answered, apart, control, judged, status, syscall, tried, write

_PAGE = ctypes.create_string_buffer(4096)
PRIORITY = struct.pack("i", 50)
CALLS: dict[int, dict[str, tuple[Any, ...]]] = {
    22: {
        "clone3": (435, 0, 0), "open_tree": (428, -100, b"/", 1), "move_mount": (429, -100, b"/tmp", -100, b"/mnt", 0),
        "fsopen": (430, b"tmpfs", 0), "fsconfig": (431, 0, 6, 0, 0, 0), "fsmount": (432, 0, 0, 0),
        "fspick": (433, -100, b"/", 0), "mount_setattr": (442, -100, b"/", 0, 0, 0),
        "open_tree_attr": (467, -100, b"/", 1, 0, 0), "statmount": (457, 0, 0, 0, 0), "listmount": (458, 0, 0, 0, 0),
        "unshare(NEWNS)": (272, 0x00020000), "unshare(NEWNET)": (272, 0x40000000),
        "unshare(NEWUSER|NEWNS)": (272, 0x10020000), "unshare(NEWTIME)": (272, 0x00000080), "setns": (308, 0, 0),
        "unshare(NEWUSER, high bits)": (272, 0x10000000 | 1 << 40), "pivot_root": (155, b"/tmp", b"/tmp"),
        "chroot": (161, b"/tmp"), "sethostname": (170, b"x", 1), "setdomainname": (171, b"x", 1),
        "mknod(a character device)": (133, b"/tmp/device", 0o020666, 0x103),
        "mknod(a block device)": (133, b"/tmp/device", 0o060666, 0x103),
        "mknodat(a character device)": (259, -100, b"/tmp/device", 0o020666, 0x103),
    },
    23: {"keyctl": (250, 0, -3, 0), "add_key": (248, b"user", b"x", b"x", 1, -3),
         "request_key": (249, b"user", b"x", 0, 0)},
    24: {
        "io_uring_setup": (425, 1, _PAGE), "io_uring_enter": (426, 0, 0, 0, 0), "io_uring_register": (427, 0, 0, 0, 0),
        "userfaultfd": (323, 0), "userfaultfd(USER_MODE_ONLY)": (323, 1), "bpf": (321, 0, 0, 0),
        "perf_event_open": (298, 0, 0, -1, -1, 0), "kexec_load": (246, 0, 0, 0, 0),
        "kexec_file_load": (320, 0, 0, 0, 0, 0), "init_module": (175, 0, 0, b""), "finit_module": (313, 0, b"", 0),
        "delete_module": (176, b"x", 0), "swapon": (167, b"/tmp/x", 0), "swapoff": (168, b"/tmp/x"),
        "reboot": (169, 0, 0, 0, 0), "settimeofday": (164, 0, 0), "clock_settime": (227, 0, 0),
        "adjtimex": (159, 0), "clock_adjtime": (305, 0, 0), "acct": (163, 0), "quotactl": (179, 0, 0, 0, 0),
        "quotactl_fd": (443, 0, 0, 0, 0), "syslog": (103, 3, 0, 0), "lookup_dcookie": (212, 0, 0, 0),
        "vhangup": (153,), "mbind": (237, 0, 0, 0, 0, 0, 0), "set_mempolicy": (238, 0, 0, 0),
        "memfd_secret": (447, 0), "vmsplice": (278, 0, 0, 0, 0), "a number that no call has": (1000,),
        "ioctl(BTRFS_IOC_SUBVOL_CREATE)": (16, 0, 0x5000940E, b"x" * 4096),
        "ioctl(BTRFS_IOC_SUBVOL_CREATE_V2, high bits)": (16, 0, 0x150009418, b"x" * 4096),
        "ioctl(BTRFS_IOC_SUBVOL_SETFLAGS)": (16, 0, 0x4008941A, b"x" * 8),
    },
    25: {
        "ptrace": (101, 0, 0, 0, 0), "process_vm_readv": (310, 1, 0, 0, 0, 0, 0),
        "process_vm_writev": (311, 1, 0, 0, 0, 0, 0), "process_madvise": (440, 0, 0, 0, 0, 0),
        "pidfd_getfd": (438, 0, 0, 0), "kcmp": (312, 1, 1, 0, 0, 0), "move_pages": (279, 1, 0, 0, 0, 0, 0),
        "migrate_pages": (256, 1, 0, 0, 0),
    },
    26: {
        "personality(ADDR_NO_RANDOMIZE)": (135, 0x0040000), "personality(READ_IMPLIES_EXEC)": (135, 0x0400000),
        "modify_ldt": (154, 0, 0, 0), "uselib": (134, b"/tmp/x"), "iopl": (172, 3), "ioperm": (173, 0, 1, 1),
        "ustat": (136, 0, 0), "sysfs": (139, 3), "nfsservctl": (180, 0, 0, 0),
    },
    27: {"open_by_handle_at": (304, -100, 0, 0), "name_to_handle_at": (303, -100, b"/", 0, 0, 0)},
    28: {"memfd_create(MFD_EXEC)": (319, b"x", 0x10), "memfd_create(MFD_EXEC, high bits)": (319, b"x", 0x10 | 1 << 32)},
    29: {"mount(tmpfs)": (165, b"x", b"/mnt", b"tmpfs", 0, 0), "mount(remount /usr)": (165, 0, b"/usr", 0, 0x1020, 0),
         "umount2(/usr)": (166, b"/usr", 2), "umount2(/proc)": (166, b"/proc", 2)},
    30: {
        "socket(AF_VSOCK)": (41, 40, 1, 0), "socket(AF_ALG)": (41, 38, 5, 0), "socket(AF_PACKET)": (41, 17, 3, 0),
        "socket(AF_XDP)": (41, 44, 3, 0), "socket(AF_KEY)": (41, 15, 3, 2), "socket(AF_TIPC)": (41, 30, 1, 0),
        "socket(AF_RDS)": (41, 21, 5, 0), "socket(AF_BLUETOOTH)": (41, 31, 1, 0), "socket(AF_NFC)": (41, 39, 5, 0),
        "socket(AF_CAN)": (41, 29, 3, 1), "socket(AF_QIPCRTR)": (41, 42, 2, 0), "socket(AF_SMC)": (41, 43, 1, 0),
        "socket(AF_VSOCK, high bits)": (41, 40 | 1 << 32, 1, 0),
        "socket(AF_NETLINK, NETLINK_AUDIT)": (41, 16, 3, 9),
        "socket(AF_NETLINK, NETLINK_NETFILTER)": (41, 16, 3, 12), "socket(SOCK_RAW)": (41, 2, 3, 1),
    },
    34: {
        "prlimit64(of init)": (302, 1, 7, struct.pack("QQ", 20, 20), 0),
        "prlimit64(CORE, of init)": (302, 1, 4, struct.pack("QQ", 0, 0), 0),
        "setpriority(of another)": (141, 0, 1, 19), "sched_setscheduler(FIFO)": (144, 0, 1, PRIORITY),
        "sched_setscheduler(FIFO, of itself)": (144, 0, 1, PRIORITY),
    },
    37: {"fanotify_init": (300, 0, 0)},
    38: {"mincore": (27, 0, 0, 0), "cachestat": (451, 0, 0, 0, 0), "preadv2(RWF_NOWAIT)": (327, 0, 0, 0, 0, 0, 8)},
}
CALLS[30] |= {name.replace("socket(", "socketpair("): (53, *arguments[1:], ctypes.create_string_buffer(8))
              for name, arguments in CALLS[30].items()}
ALLOWED: dict[int, dict[str, tuple[Any, ...]]] = {
    22: {"unshare(NEWUSER)": (272, 0x10000000)},
    26: {"personality(asks)": (135, 0xFFFFFFFF)},
    30: {"socket(AF_UNIX)": (41, 1, 1, 0), "socket(AF_INET)": (41, 2, 1, 0), "socket(AF_INET6)": (41, 10, 1, 0),
         "socket(AF_NETLINK, NETLINK_ROUTE)": (41, 16, 3, 0),
         "socketpair(AF_UNIX)": (53, 1, 1, 0, ctypes.create_string_buffer(8))},
    34: {"prlimit64(of itself)": (302, 0, 7, 0, ctypes.create_string_buffer(16)),
         "prlimit64(CORE)": (302, 0, 4, struct.pack("QQ", 0, 0), 0),
         "prlimit64(CORE, reads)": (302, 0, 4, 0, ctypes.create_string_buffer(16))},
}
"""So that a refusal above says something."""
REFUSED = ("EPERM", "EACCES", "ENOSYS", "EAFNOSUPPORT", "SIGSYS", "EPROTONOSUPPORT")
"""To a call; the last is what the kernel itself says of a family that it was built without."""


def alone() -> Iterator[Answer]:
    for attack, calls in CALLS.items():
        for attempt, words in calls.items():
            yield judged(attack, attempt, apart(answered, *words), REFUSED)
    for attack, calls in ALLOWED.items():
        for attempt, words in calls.items():
            yield control(attack, attempt, apart(answered, *words))
    yield from terminals()
    yield from filters()
    yield from capabilities()
    yield from nesting()
    yield from dumps()
    yield from of_init()


# --- 21: terminals ---------------------------------------------------------------------------------------------------
TERMINALS = {
    "TIOCSTI": (0x5412, b"x"), "TIOCSTI, high bits": (0x5412 | 1 << 32, b"x"), "TIOCLINUX": (0x541C, b"\x03"),
    "TIOCLINUX, high bits": (0x541C | 1 << 40, b"\x03"), "TIOCCONS": (0x541D, 0), "VT_ACTIVATE": (0x5606, 1),
    "KDSKBENT": (0x4B47, b"\0\0\0\0"), "KDSETMODE": (0x4B3A, 1),
}


def on_a_terminal(call: Callable[..., str], *arguments: Any) -> str:
    """`call` in a session of its own, whose terminal is a fresh pty at its standard input."""
    def run() -> str:
        os.setsid()
        _master, slave = os.openpty()
        fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
        os.dup2(slave, 0)
        return call(*arguments)

    return apart(apart_or, run)


def apart_or(call: Callable[[], str]) -> str:
    try:
        return call()
    except OSError as error:
        return f"not tried: {error.strerror}"


def terminals() -> Iterator[Answer]:
    # EIO is what a kernel with dev.tty.legacy_tiocsti=0 says, ENOTTY a pty to what is of consoles.
    for name, (request, argument) in TERMINALS.items():
        reason = on_a_terminal(answered, 16, 0, request, argument)
        yield judged(21, f"ioctl({name})", reason, (*REFUSED, "EIO", "ENOTTY"))
    yield judged(21, "TIOCSCTTY of another's terminal", on_a_terminal(_steal))
    yield control(21, "TIOCGWINSZ", on_a_terminal(
        answered, 16, 0, termios.TIOCGWINSZ, ctypes.create_string_buffer(8)))


def _steal() -> str:
    def steal() -> str:
        os.setsid()
        return tried(fcntl.ioctl, 0, termios.TIOCSCTTY, 1)

    return apart(steal)


# --- 31: a filter of one's own ---------------------------------------------------------------------------------------
def _filter(flags: int, action: int, number: int) -> int:
    """seccomp(2) with a program that answers `action` to the call `number` and allows all others."""
    code = b"".join(struct.pack("=HBBI", *words) for words in (
        (0x20, 0, 0, 0), (0x15, 0, 1, number), (0x06, 0, 0, action), (0x06, 0, 0, 0x7FFF0000)))
    held = ctypes.create_string_buffer(code)
    LIBC.prctl(38, 1, 0, 0, 0)
    return syscall(317, 1, flags, struct.pack("HxxxxxxQ", 4, ctypes.addressof(held)))


def _filtered(flags: int, action: int) -> str:
    return answer(_filter(flags, action, 1001))


def filters() -> Iterator[Answer]:
    """One that answers for what it starts: with no_new_privs that is nobody with other rights than its maker's."""
    alone = "its own children alone" if status("NoNewPrivs") == "1" else "programs with setuid too"
    for name, flags, action in (("USER_NOTIF", 8, 0x7FC00000), ("TRACE", 0, 0x7FF00000)):
        said = apart(_filtered, flags, action)
        refused = ("EPERM", "EBUSY", "ENOSYS", "its own children alone")
        yield judged(31, f"a filter with {name}", alone if said == "allowed" else said, refused)


# --- 32, 33, 34 ------------------------------------------------------------------------------------------------------
def capabilities() -> Iterator[Answer]:
    for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb"):
        held = int(status(f"Cap{kind}"), 16)
        yield Answer(attack=32, attempt=f"Cap{kind}", outcome=THROUGH if held else HELD,
                     reason=f"{held:x}" if held else "none")
    yield judged(32, "no_new_privs", {"1": "none"}.get(status("NoNewPrivs"), "gains by exec"))
    locked = LIBC.prctl(27, 0, 0, 0, 0) & 0b11 == 0b11
    yield judged(32, "uid 0 gains by exec", "none" if locked or status("NoNewPrivs") == "1" else "allowed")
    bounding = [bit for bit in range(64) if LIBC.prctl(23, bit, 0, 0, 0) == 1]
    yield judged(32, "prctl(CAPBSET_READ)", f"{len(bounding)} left" if bounding else "none")


def nesting() -> Iterator[Answer]:
    """How deep user namespaces go; flatpak needs two (flatpak.md)."""
    depth = apart(lambda: apart_or(lambda: str(_nest(0))))
    outcome = HELD if depth.isdigit() and int(depth) <= DEPTH_MAX else THROUGH
    yield Answer(attack=33, attempt="user namespaces in user namespaces", outcome=outcome, reason=f"{depth} deep")


DEPTH_MAX = 4


def _nest(depth: int) -> int:
    """Each needs its maker's ids to be mapped (user_namespaces(7)); the root of a cage may not map itself."""
    uid, gid = os.getuid(), os.getgid()
    ids = {"setgroups": "deny", "uid_map": f"{uid} {uid} 1", "gid_map": f"{gid} {gid} 1"}
    while depth < 64 and syscall(272, 0x10000000) >= 0:
        depth += 1
        for name, content in ids.items():
            if tried(write, f"/proc/self/{name}", content) != "allowed":
                return depth
    return depth


def dumps() -> Iterator[Answer]:
    """A crash leaves no core, and no handler of the host's is run: so the kernel says of a limit of 1 (core(5))."""
    pid = os.fork()
    if pid == 0:
        resource.setrlimit(resource.RLIMIT_CORE, (resource.getrlimit(resource.RLIMIT_CORE)[1],) * 2)
        signal.signal(signal.SIGQUIT, signal.SIG_DFL)
        os.chdir("/tmp")
        os.kill(os.getpid(), signal.SIGQUIT)
        os._exit(0)
    _, ended = os.waitpid(pid, 0)
    yield judged(34, "core dump", "dumped" if os.WCOREDUMP(ended) else "none")
    limit = resource.getrlimit(resource.RLIMIT_CORE)[1]
    # 0 would have a handler run that is a program; 1 has nothing run at all.
    yield judged(34, "the host's handler of core dumps", "none" if limit == 1 else f"RLIMIT_CORE is {limit}")


def of_init() -> Iterator[Answer]:
    """PID 1 of wherever this is; in a cage of 1 its own root may signal it, and the kernel drops the signal."""
    yield judged(19, "kill(1)", _kill_init(), ("EPERM", "ESRCH", "dropped"))
    yield judged(19, "ptrace(SEIZE, 1)", apart(answered, 101, 0x4206, 1, 0, 0), ("EPERM", "ESRCH"))
    said = apart(_by_pidfd)
    yield judged(19, "pidfd_send_signal(1)", "dropped" if said == "allowed" and tried(os.kill, 1, 0) == said
                 else said, ("EPERM", "ESRCH", "dropped"))
    if os.getuid():
        yield judged(17, "setuid(0)", apart(answered, 105, 0), ("EPERM", "EINVAL"))
    yield judged(24, "x32 getpid", apart(answered, 0x40000000 | 39))


def _kill_init() -> str:
    said = apart(answered, 62, 1, 9)
    return "dropped" if said == "allowed" and tried(os.kill, 1, 0) == "allowed" else said


def _by_pidfd() -> str:
    pidfd = os.pidfd_open(1)
    return tried(signal.pidfd_send_signal, pidfd, signal.SIGKILL)
