# SPDX-License-Identifier: LGPL-2.1-or-later
"""What someone in a cage tries, and how the kernel answers (the attack catalogue of the design).

One file that needs nothing but the standard library: a cage gets it on standard input.  `probe.py try JSON` prints
all that can be tried alone as one JSON object of names and answers: "allowed", an errno's name, or a value.
`probe.py hold JSON` takes what two cages could meet on, prints "holding", and on the next line of its input prints
what it noticed; `probe.py meet JSON` looks for what another one holds.  Numbers are those of x86-64.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.syscall.restype = ctypes.c_long
CALLS = {
    "keyctl": (250, 0, -3, 0), "add_key": (248, b"user", b"x", b"x", 1, -3), "request_key": (249, b"user", b"x", 0, 0),
    "clone3": (435, 0, 0), "open_tree": (428, -100, b"/", 1), "move_mount": (429, -100, b"/tmp", -100, b"/mnt", 0),
    "fsopen": (430, b"tmpfs", 0), "fsconfig": (431, 0, 6, 0, 0, 0), "fsmount": (432, 0, 0, 0),
    "mount_setattr": (442, -100, b"/", 0, 0, 0), "io_uring_setup": (425, 1, 0), "io_uring_enter": (426, 0, 0, 0, 0),
    "io_uring_register": (427, 0, 0, 0, 0), "userfaultfd": (323, 1), "bpf": (321, 0, 0, 0),
    "perf_event_open": (298, 0, 0, -1, -1, 0), "kexec_load": (246, 0, 0, 0, 0),
    "kexec_file_load": (320, 0, 0, 0, 0, 0), "init_module": (175, 0, 0, b""), "finit_module": (313, 0, b"", 0),
    "delete_module": (176, b"x", 0), "swapon": (167, b"/tmp/x", 0), "swapoff": (168, b"/tmp/x"),
    "reboot": (169, 0, 0, 0, 0), "settimeofday": (164, 0, 0), "clock_settime": (227, 0, 0), "adjtimex": (159, 0),
    "clock_adjtime": (305, 0, 0), "acct": (163, 0), "quotactl": (179, 0, 0, 0, 0), "syslog": (103, 3, 0, 0),
    "lookup_dcookie": (212, 0, 0, 0), "vhangup": (153,), "ptrace": (101, 0, 0, 0, 0),
    "process_vm_readv": (310, 1, 0, 0, 0, 0, 0), "process_vm_writev": (311, 1, 0, 0, 0, 0, 0),
    "process_madvise": (440, 0, 0, 0, 0, 0), "pidfd_getfd": (438, 0, 0, 0), "kcmp": (312, 1, 1, 0, 0, 0),
    "move_pages": (279, 1, 0, 0, 0, 0, 0), "migrate_pages": (256, 1, 0, 0, 0), "setns": (308, 0, 0),
    "chroot": (161, b"/tmp"), "sethostname": (170, b"x", 1), "setdomainname": (171, b"x", 1), "iopl": (172, 3),
    "ioperm": (173, 0, 1, 1), "modify_ldt": (154, 0, 0, 0), "uselib": (134, b"/tmp/x"), "ustat": (136, 0, 0),
    "sysfs": (139, 3), "nfsservctl": (180, 0, 0, 0), "open_by_handle_at": (304, -100, 0, 0),
    "name_to_handle_at": (303, -100, b"/", 0, 0, 0), "fanotify_init": (300, 0, 0), "mincore": (27, 0, 0, 0),
    "cachestat": (451, 0, 0, 0, 0), "mbind": (237, 0, 0, 0, 0, 0, 0), "a number that no call has": (1000,),
    "personality(ADDR_NO_RANDOMIZE)": (135, 0x0040000), "personality(asks)": (135, 0xFFFFFFFF),
    "personality(READ_IMPLIES_EXEC)": (135, 0x0400000), "unshare(NEWNS)": (272, 0x00020000),
    "unshare(NEWNET)": (272, 0x40000000), "unshare(NEWUSER|NEWNS)": (272, 0x10020000),
    "unshare(NEWTIME)": (272, 0x00000080), "unshare(NEWUSER)": (272, 0x10000000),
    "mknod(a character device)": (133, b"/tmp/device", 0o020666, 0x103),
    "mknod(a block device)": (133, b"/tmp/device", 0o060666, 0x103),
    "mknodat(a character device)": (259, -100, b"/tmp/device", 0o020666, 0x103),
    "ioctl(TIOCSTI)": (16, 0, 0x5412, b"x"), "ioctl(TIOCSTI, high bits)": (16, 0, 0x5412 | 1 << 32, b"x"),
    "ioctl(TIOCLINUX)": (16, 0, 0x541C, b"\x03"), "ioctl(TIOCLINUX, high bits)": (16, 0, 0x541C | 1 << 40, b"\x03"),
    "ioctl(TIOCCONS)": (16, 0, 0x541D, 0), "memfd_create(MFD_EXEC)": (319, b"x", 0x10),
    "memfd_create(MFD_EXEC, high bits)": (319, b"x", 0x10 | 1 << 32),
    "preadv2(RWF_NOWAIT)": (327, 0, 0, 0, 0, 0, 8), "mount(tmpfs)": (165, b"x", b"/mnt", b"tmpfs", 0, 0),
    "mount(remount /usr)": (165, 0, b"/usr", 0, 0x1020, 0), "umount2(/usr)": (166, b"/usr", 2),
    "umount2(/proc)": (166, b"/proc", 2), "pivot_root": (155, b"/tmp", b"/tmp"),
    "kill(1)": (62, 1, 9), "setpriority(of another)": (141, 0, 1, 19),
    "sched_setscheduler(FIFO)": (144, 0, 1, struct.pack("i", 50)), "x32 getpid": (0x40000000 | 39,),
    "socket(AF_VSOCK)": (41, 40, 1, 0), "socket(AF_ALG)": (41, 38, 5, 0), "socket(AF_PACKET)": (41, 17, 3, 0),
    "socket(AF_XDP)": (41, 44, 3, 0), "socket(AF_KEY)": (41, 15, 3, 2), "socket(AF_TIPC)": (41, 30, 1, 0),
    "socket(AF_RDS)": (41, 21, 5, 0), "socket(AF_BLUETOOTH)": (41, 31, 1, 0), "socket(AF_NFC)": (41, 39, 5, 0),
    "socket(AF_CAN)": (41, 29, 3, 1), "socket(AF_QIPCRTR)": (41, 42, 2, 0), "socket(AF_SMC)": (41, 43, 1, 0),
    "socket(AF_NETLINK, NETLINK_AUDIT)": (41, 16, 3, 9), "socket(AF_NETLINK, NETLINK_NETFILTER)": (41, 16, 3, 12),
    "socket(AF_UNIX)": (41, 1, 1, 0), "socket(AF_INET)": (41, 2, 1, 0), "socket(AF_INET6)": (41, 10, 1, 0),
    "socket(AF_NETLINK, NETLINK_ROUTE)": (41, 16, 3, 0),
    "socket(SOCK_RAW)": (41, 2, 3, 1), "setuid(0)": (105, 0),
    "prlimit64(of init)": (302, 1, 7, struct.pack("QQ", 20, 20), 0),
    "prlimit64(of itself)": (302, 0, 7, 0, ctypes.create_string_buffer(16)),
    "prlimit64(CORE)": (302, 0, 4, struct.pack("QQ", 0, 0), 0),
    "prlimit64(CORE, reads)": (302, 0, 4, 0, ctypes.create_string_buffer(16)),
    "prlimit64(CORE, of init)": (302, 1, 4, struct.pack("QQ", 0, 0), 0),
    "ioctl(BTRFS_IOC_SUBVOL_CREATE)": (16, 0, 0x5000940E, b"x" * 4096),
    "ioctl(BTRFS_IOC_SUBVOL_CREATE_V2, high bits)": (16, 0, 0x150009418, b"x" * 4096),
    "ioctl(BTRFS_IOC_SUBVOL_SETFLAGS)": (16, 0, 0x4008941A, b"x" * 8),
}
CALLS |= {name.replace("socket(", "socketpair("): (53, *arguments[1:], ctypes.create_string_buffer(8))
          for name, arguments in CALLS.items() if name.startswith("socket(")}
"""Each in a process of its own, which it may cost."""
NAMESPACES = ("user", "mnt", "pid", "ipc", "uts", "net", "cgroup", "time")
CLONE_NEWUSER_NEWNS = 0x10000000 | 0x00020000
SHARED = ("/usr/bin/env", "/etc/passwd", "/opt/cage-runtime/bin/incage")
PORT, KEY, ABSTRACT = 4711, 0x0CA6E, "\0cage-probe"


def answer(result: int) -> str:
    return "allowed" if result >= 0 else errno.errorcode.get(ctypes.get_errno(), "?")


def tried(call: Callable[[], Any]) -> str:
    try:
        call()
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error))
    return "allowed"


def apart(call: Callable[[], str]) -> str:
    """What `call` says in a child process, or the signal that ended it."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(write, call().encode())
        finally:
            os._exit(0)
    os.close(write)
    said = os.read(read, 65536).decode()
    os.close(read)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return signal.Signals(-status).name if status < 0 else said


def syscall(number: int, *arguments: Any) -> int:
    given = [ctypes.c_long(value) if isinstance(value, int) else value for value in arguments]
    return int(LIBC.syscall(ctypes.c_long(number), *given))


def status(name: str) -> str:
    with open("/proc/self/status", encoding="ascii") as file:
        return next(line.split()[1] for line in file if line.startswith(f"{name}:"))


# --- alone -------------------------------------------------------------------------------------------------------
def identity() -> dict[str, Any]:
    with open("/proc/self/uid_map", encoding="ascii") as file:
        uid_map = file.read().split()
    with open("/proc/self/environ", encoding="utf-8") as file:
        environment = dict(entry.split("=", 1) for entry in file.read().split("\0") if entry)
    return {
        "namespaces": {kind: os.readlink(f"/proc/self/ns/{kind}") for kind in NAMESPACES},
        "uid_map": uid_map, "groups": os.getgroups(), "ids": os.getresuid(), "environment": environment,
        "no_new_privs": status("NoNewPrivs"), "seccomp": status("Seccomp"),
        "capabilities": {kind: status(f"Cap{kind}") for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb")},
        "bounding": [bit for bit in range(64) if LIBC.prctl(23, bit, 0, 0, 0) == 1],
        "securebits": LIBC.prctl(27, 0, 0, 0, 0), "hostname": os.uname().nodename,
    }


def descriptors() -> dict[str, str]:
    """Every open descriptor and what it is, without the numbers."""
    with os.scandir("/proc/self/fd") as entries:
        numbers = [int(entry.name) for entry in entries]
    found = {}
    for number in numbers:
        try:
            found[str(number)] = os.readlink(f"/proc/self/fd/{number}").partition(":[")[0]
        except FileNotFoundError:
            continue
    return found


def files() -> dict[str, Any]:
    places = {"usr": "/usr", "etc": "/etc", "programs": "/opt/cage-runtime", "dev": "/dev", "root": "/", "opt": "/opt",
              "sys": "/sys", "var": "/var"}
    create = os.O_WRONLY | os.O_CREAT
    found: dict[str, Any] = {f"write in {name}": tried(lambda path=path: os.open(f"{path}/probe", create))
                             for name, path in places.items()}
    found["write /etc/passwd"] = tried(lambda: os.open("/etc/passwd", os.O_WRONLY))
    found["write /opt/cage-runtime/bin/incage"] = tried(lambda: os.open("/opt/cage-runtime/bin/incage", os.O_WRONLY))
    found["the gate"] = tried(lambda: os.listdir("/run/cage/gate"))
    with socket.socket(socket.AF_UNIX) as gateway:
        found["the gateway"] = tried(lambda: gateway.connect("/run/cage/gateway/bus"))
    with open("/proc/self/mountinfo", encoding="utf-8") as file:
        mounts = [line.split() for line in file]
    found["mounts without nosuid"] = [mount[4] for mount in mounts if "nosuid" not in mount[5].split(",")]
    found["writable and executable mounts"] = [
        mount[4] for mount in mounts if not {"ro", "noexec"} & set(mount[5].split(","))]
    return found


def executions() -> dict[str, str]:
    """A program of the cage's own making, from everywhere that it can write."""
    found = {}
    for directory in (os.environ["HOME"], "/tmp", "/var/tmp", "/dev/shm", f"/run/user/{os.getuid()}"):
        path = f"{directory}/own-program"
        found[f"exec in {directory}"] = apart(lambda path=path: tried(lambda: _run(path)))
        found[f"map in {directory}"] = apart(lambda path=path: tried(lambda: _map(path)))
    found["exec of a memfd"] = apart(lambda: tried(_exec_memfd))
    found["exec by the loader"] = apart(lambda: str(_by_loader()))
    return found


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
    LIBC.mmap.restype = ctypes.c_void_p
    if LIBC.mmap(None, 4096, 5, 2, descriptor, 0) == ctypes.c_void_p(-1).value:
        raise OSError(ctypes.get_errno(), "mmap")


def _exec_memfd() -> None:
    descriptor = os.memfd_create("own-program", 0)
    with open("/usr/bin/true", "rb") as file:
        os.write(descriptor, file.read())
    os.execve(descriptor, ["true"], {})


def _by_loader() -> int:
    _copied("/tmp/own-program")
    loader = "/lib64/ld-linux-x86-64.so.2"
    ended = subprocess.run([loader, "/tmp/own-program"], check=False, capture_output=True, text=True)
    os.unlink("/tmp/own-program")
    return ended.returncode


def nested() -> dict[str, str]:
    """As the root of a user and mount namespace of its own, as every bubblewrap is."""
    attempts = {
        "umount /usr": lambda: syscall(166, b"/usr", 2),
        "umount /proc": lambda: syscall(166, b"/proc", 2),
        "umount the home": lambda: syscall(166, b"/home/user", 2),
        "remount /usr writable": lambda: syscall(165, 0, b"/usr", 0, 0x1020, 0),
        "remount the home with exec": lambda: syscall(165, 0, b"/home/user", 0, 0x1020, 0),
        "remount /tmp with dev": lambda: syscall(165, 0, b"/tmp", 0, 0x1020, 0),
        "remount /usr's superblock": lambda: syscall(165, 0, b"/usr", 0, 0x20, 0),
        "bind one mount without those on it": lambda: syscall(165, b"/", b"/mnt", 0, 0x1000, 0),
        "mount cgroup2": lambda: syscall(165, b"x", b"/mnt", b"cgroup2", 0, 0),
        "mount cgroup v1": lambda: syscall(165, b"x", b"/mnt", b"cgroup", 0, b"memory"),
        "mount sysfs": lambda: syscall(165, b"x", b"/mnt", b"sysfs", 0, 0),
        "mount a proc of the cage": lambda: syscall(165, b"x", b"/mnt", b"proc", 0, 0),
        "open_tree": lambda: syscall(428, -100, b"/usr", 1),
        "a device": lambda: syscall(133, b"/tmp/device", 0o020666, 0x103),
        "sethostname": lambda: syscall(170, b"x", 1),
        "write /etc/passwd": lambda: -1 if LIBC.open(b"/etc/passwd", 1) < 0 else 0,
    }
    return {f"nested: {name}": apart(lambda attempt=attempt: _in_namespace(attempt))
            for name, attempt in attempts.items()}


def _in_namespace(attempt: Callable[[], int]) -> str:
    read, write = os.pipe()
    pid = syscall(56, CLONE_NEWUSER_NEWNS | signal.SIGCHLD, 0, 0, 0, 0)
    if pid < 0:
        return f"no namespace: {answer(pid)}"
    if pid == 0:
        os.write(write, answer(attempt()).encode())
        os._exit(0)
    os.waitpid(pid, 0)
    return os.read(read, 64).decode()


# --- processes ---------------------------------------------------------------------------------------------------
def neighbours() -> dict[str, Any]:
    """Which processes there are, and what of the ones that are not ours can be read."""
    visible = sorted(int(entry) for entry in os.listdir("/proc") if entry.isdigit())
    foreign = [pid for pid in range(1, 400) if pid != os.getpid() and tried(lambda pid=pid: os.kill(pid, 0)) == "EPERM"]
    read = {f"{pid}/{name}": how for pid in (1, *foreign) for name in ("environ", "maps", "mem", "status", "fd/0")
            if (how := tried(lambda pid=pid, name=name: _look(f"/proc/{pid}/{name}"))) == "allowed"}
    links = {f"{pid}/{name}": how for pid in (1, *foreign) for name in ("cwd", "root", "exe", "ns/mnt")
             if (how := tried(lambda pid=pid, name=name: os.readlink(f"/proc/{pid}/{name}"))) == "allowed"}
    return {"init is visible": 1 in visible, "not ours but there": len(foreign), "of others readable": read | links,
            "init's memory": tried(lambda: _look("/proc/1/mem")),
            "init's root": tried(lambda: os.listdir("/proc/1/root"))}


def _look(path: str) -> None:
    with open(path, "rb") as file:
        file.read(1)


def kernel_files() -> list[str]:
    """Files of /proc that can be opened for writing and are not about this process."""
    opened = []
    for top in ("/proc/sys", "/proc/irq", "/proc/fs", "/proc/bus"):
        for directory, _, names in os.walk(top):
            opened += [path for name in names for path in [f"{directory}/{name}"] if _opens_for_writing(path)]
    others = ("sysrq-trigger", "kcore", "kmsg", "kallsyms", "mtrr", "timer_list")
    return opened + [f"/proc/{name}" for name in others if _opens_for_writing(f"/proc/{name}")]


def _opens_for_writing(path: str) -> bool:
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
    except OSError:
        return False
    return True


def named(canary: str) -> list[str]:
    """Where a file of that name can be seen."""
    return [f"{directory}/{name}" for directory, folders, names in os.walk("/") if not directory.startswith("/proc")
            for name in (*folders, *names) if name == canary]


def everything(given: dict[str, Any]) -> dict[str, Any]:
    calls = {name: apart(lambda words=words: answer(syscall(*words))) for name, words in CALLS.items()}
    return {**calls, **files(), **executions(), **nested(), **neighbours(), "identity": identity(),
            "descriptors": descriptors(), "kernel files": kernel_files(), "canaries": named(given["canary"])}


# --- in company --------------------------------------------------------------------------------------------------
def held_files() -> Iterator[str]:
    yield from SHARED
    yield from (f"/proc/self/ns/{kind}" for kind in NAMESPACES)


def hold() -> dict[str, Any]:
    held = [os.open(path, os.O_RDONLY) for path in held_files()]
    for descriptor in held:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    inotify = LIBC.inotify_init1(os.O_NONBLOCK)
    for path in SHARED:
        for watched in (path, os.path.dirname(path)):
            if LIBC.inotify_add_watch(inotify, watched.encode(), 0xFFF) < 0:
                raise OSError(ctypes.get_errno(), "inotify_add_watch", watched)
    abstract, listener = socket.socket(socket.AF_UNIX), socket.socket()
    abstract.bind(ABSTRACT)
    abstract.listen()
    listener.bind(("127.0.0.1", PORT))
    listener.listen()
    with open("/dev/shm/cage-probe", "w", encoding="ascii") as file:
        file.write("x")
    made = [LIBC.shmget(KEY, 4096, 0o1666), LIBC.msgget(KEY, 0o1666), LIBC.semget(KEY, 1, 0o1666)]
    say("holding")
    sys.stdin.readline()
    LIBC.shmctl(made[0], 0, 0), LIBC.msgctl(made[1], 0, 0), LIBC.semctl(made[2], 0, 0)
    os.unlink("/dev/shm/cage-probe")
    try:
        events = len(os.read(inotify, 65536))
    except BlockingIOError:
        events = 0
    return {"made": all(number >= 0 for number in made), "bytes of events": events}


def meet(given: dict[str, Any]) -> dict[str, str]:
    found = {}
    for path in held_files():
        descriptor = os.open(path, os.O_RDONLY)
        found[f"lock {path}"] = tried(lambda held=descriptor: fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB))
        if path in SHARED:
            os.read(descriptor, 1)
    abstract, inner, outer = socket.socket(socket.AF_UNIX), socket.socket(), socket.socket()
    found["abstract socket"] = tried(lambda: abstract.connect(ABSTRACT))
    found["loopback of the other"] = tried(lambda: inner.connect(("127.0.0.1", PORT)))
    found["loopback of the host"] = tried(lambda: outer.connect(("127.0.0.1", given["port"])))
    found["abstract socket of the host"] = tried(lambda: socket.socket(socket.AF_UNIX).connect(given["abstract"]))
    found["shared memory"] = answer(LIBC.shmget(KEY, 4096, 0))
    found["messages"] = answer(LIBC.msgget(KEY, 0))
    found["semaphores"] = answer(LIBC.semget(KEY, 1, 0))
    found["/dev/shm"] = tried(lambda: os.stat("/dev/shm/cage-probe"))
    return found


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> None:
    given = json.loads(sys.argv[2]) if len(sys.argv) > 2 else {}
    match sys.argv[1]:
        case "try":
            result: Any = everything(given)
        case "hold":
            result = hold()
        case _:
            result = meet(given)
    say(json.dumps(result))


if __name__ == "__main__":
    main()
