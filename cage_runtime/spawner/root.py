# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a cage sees as `/`: the plan of its root, and the part of /etc that all cages are given.

The root is assembled in a mount namespace of the host's user namespace, so that every mount in it is locked for
the cage (mount_namespaces(7)).  Law 7: what is writable here is noexec, what is executable is read-only.

What /proc says of the whole machine is masked, or says what is the cage's own.  That is for programs that ask: whoever
makes a pid namespace in the cage, as `flatpak run` has to, sees another procfs without masks.  For them the security
context refuses these files (spawner/lsm), and where a host has none they can be read.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cage_runtime.model import DEFAULT_TMP_BYTES, MEDIATOR_UID, USER_UID
from cage_runtime.spawner import syscall
from cage_runtime.spawner.mount import (
    NOEXEC,
    PROGRAMS,
    SEALED,
    Again,
    Bind,
    Device,
    Directory,
    File,
    FileSystem,
    Link,
    Masks,
    Operation,
    Overlay,
    ReadOnly,
    Source,
    Tmpfs,
)

PROGRAMS_IN_CAGE = "/opt/cage-runtime"
HOME_IN_CAGE = "/home/user"
DEVICES = {"null": (1, 3), "zero": (1, 5), "full": (1, 7), "random": (1, 8), "urandom": (1, 9), "tty": (5, 0)}

USER_DIRECTORIES = {"DOCUMENTS": "Documents", "DOWNLOAD": "Downloads", "PICTURES": "Pictures"}
"""XDG user directories that a new home has; flatpak's `xdg-documents` permission needs them (xdg-user-dirs)."""

HOSTS_ETC = Path("/etc")
SERVICES = "cage-runtime/services"
"""What whoever runs the host has every cage answer to others (incage(1))."""

ETC_FROM_HOST = (
    "alternatives", "bash.bashrc", "ca-certificates", SERVICES, "dbus-1", "debian_version", "fonts", "inputrc",
    "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "localtime", "mime.types", "os-release", "profile", "protocols",
    "services", "shells", "ssl/certs", "ssl/openssl.cnf", "terminfo", "timezone",
)
"""The only parts of the host's /etc that a cage sees: what programs need and nobody keeps secret."""

ETC_GENERATED = {
    "passwd": (
        f"root:x:0:0:root:/root:/bin/sh\nmediator:x:{MEDIATOR_UID}:{MEDIATOR_UID}:mediator:/nonexistent:/bin/false\n"
        f"user:x:{USER_UID}:{USER_UID}:user:{HOME_IN_CAGE}:/bin/bash\nnobody:x:65534:65534:nobody:/nonexistent:/bin/false\n"
    ),
    "group": f"root:x:0:\nmediator:x:{MEDIATOR_UID}:\nuser:x:{USER_UID}:\nnogroup:x:65534:\n",
    "nsswitch.conf": "passwd: files\ngroup: files\nshadow: files\nhosts: files\n",
    "hosts": "127.0.0.1 localhost\n::1 localhost\n",
    "resolv.conf": "",
    # A login shell sets PATH anew (/etc/profile), and reads this last.
    "profile.d/cage-runtime.sh": f'PATH="{PROGRAMS_IN_CAGE}/bin:$PATH"\n',
}

TERMINALS_MAX = 256
"""Pseudo-terminals of a cage's own devpts, out of those that all share (/proc/sys/kernel/pty/max).  A nested namespace
can mount another devpts, which no mount option of ours bounds."""

SHADOW = "/.proc"
"""What masks show, and a second, whole procfs: the kernel lets nobody mount another one where none can be seen whole
(fs/namespace.c, mount_too_revealing), and bwrap has to."""
NOBODYS_UID = 65533
"""Of the owner of that place: an id of the cage that no process has, so that cage-init, before its seal, alone goes
there."""
EMPTY_FILES = (
    "buddyinfo", "cmdline", "config.gz", "crypto", "diskstats", "interrupts", "kallsyms", "key-users", "keys", "locks",
    "modules", "partitions", "schedstat", "softirqs", "sys/fs/dentry-state", "sys/fs/file-nr", "sys/fs/inode-nr",
    "sys/fs/inode-state", "sys/kernel/pty/nr", "zoneinfo",
)
EMPTY_DIRECTORIES = ("acpi", "bus", "driver", "fs", "irq", "pressure", "scsi")


@dataclass(frozen=True, kw_only=True, slots=True)
class RootSpec:
    """What the plan depends on; host ids are `base` + the id inside."""

    name: str
    machine_id: str
    identity: str
    """The text of /run/cage/identity.json: what the cage may know of itself."""
    base: int
    home: Source | None
    """The storage to bind; None gives a home in memory of `home_bytes` and `home_files`."""
    home_bytes: int
    home_files: int
    exec_home: bool
    programs: str
    etc: str
    empty: str
    gateway: Source
    boot_id: str
    born: int
    """Seconds of the epoch."""
    memory: int
    """Bytes that the cage may use, as its programs are told."""
    processors: tuple[int, ...]


def plan(spec: RootSpec) -> list[Operation]:
    """The root of a cage, step by step, on an empty directory."""
    return [*_skeleton(spec), *_programs(spec), *_devices(), *_writable(spec), *_home(spec), *_shown(spec),
            ReadOnly(target="/dev"), ReadOnly(target="")]


def _skeleton(spec: RootSpec) -> list[Operation]:
    directories = ("/usr", "/etc", "/.etc", "/opt", PROGRAMS_IN_CAGE, "/home", HOME_IN_CAGE, "/root", "/proc", "/dev",
                   "/tmp", "/run", "/var", "/var/lib", "/var/lib/flatpak", "/var/tmp", "/var/cache", "/mnt",  # noqa: S108
                   "/sys", "/sys/block", "/sys/bus", "/sys/class", "/sys/dev", "/sys/devices")
    return [
        Tmpfs(target="", flags=SEALED, size=1 << 20, files=256),
        *(Directory(path=path) for path in directories),
        *(Link(path=f"/{name}", to=f"usr/{name}") for name in ("bin", "sbin", "lib", "lib32", "lib64", "libx32")),
        Link(path="/var/run", to="/run"),
        File(path="/.etc/hostname", content=f"{spec.name}\n"),
        File(path="/.etc/machine-id", content=f"{spec.machine_id}\n"),
    ]


def _programs(spec: RootSpec) -> list[Operation]:
    return [
        Overlay(target="/usr", layers=("/usr", spec.empty)),
        Overlay(target="/etc", layers=("@/.etc", spec.etc), flags=PROGRAMS | NOEXEC),
        Overlay(target=PROGRAMS_IN_CAGE, layers=(spec.programs, spec.empty)),
        # A tmpfs of the cage's root: cage-init attaches the applications here, one directory each.
        Tmpfs(target="/var/lib/flatpak", flags=SEALED, size=1 << 17, files=512, owner=spec.base),
        # `flatpak run` opens the installation's repository; an empty one is enough (cage_runtime/flatpak).
        Directory(path="/var/lib/flatpak/repo"),
        File(path="/var/lib/flatpak/repo/config", content="[core]\nrepo_version=1\nmode=bare-user-only\n"),
        Directory(path="/var/lib/flatpak/repo/objects"),
        Directory(path="/var/lib/flatpak/repo/tmp"),
    ]


def _devices() -> list[Operation]:
    return [
        Tmpfs(target="/dev", flags=SEALED & ~syscall.MOUNT_ATTR_NODEV, size=1 << 16, files=64),
        *(Device(path=f"/dev/{name}", major=major, minor=minor) for name, (major, minor) in DEVICES.items()),
        *(Link(path=f"/dev/std{name}", to=f"/proc/self/fd/{n}") for n, name in enumerate(("in", "out", "err"))),
        Link(path="/dev/fd", to="/proc/self/fd"),
        Link(path="/dev/ptmx", to="pts/ptmx"),
        Directory(path="/dev/pts"),
        Directory(path="/dev/shm"),  # noqa: S108 - in the cage
        Tmpfs(target="/dev/shm", flags=SEALED, size=DEFAULT_TMP_BYTES, mode=0o1777),  # noqa: S108
    ]


def _writable(spec: RootSpec) -> list[Operation]:
    user, mediator = spec.base + USER_UID, spec.base + MEDIATOR_UID
    return [
        Tmpfs(target="/tmp", flags=SEALED, size=DEFAULT_TMP_BYTES, files=65536, mode=0o1777),  # noqa: S108
        Tmpfs(target="/var/tmp", flags=SEALED, size=DEFAULT_TMP_BYTES, files=65536, mode=0o1777),  # noqa: S108
        Tmpfs(target="/run", flags=SEALED, size=DEFAULT_TMP_BYTES // 4, files=16384, owner=spec.base),
        Directory(path="/run/user", owner=spec.base),
        Directory(path=f"/run/user/{USER_UID}", mode=0o700, owner=user),
        Directory(path="/run/dbus", owner=spec.base),
        Directory(path="/run/cage", owner=spec.base),
        File(path="/run/cage/identity.json", content=spec.identity, owner=spec.base),
        Directory(path="/run/cage/gate", mode=0o700, owner=mediator),
        Directory(path="/run/cage/gate/way", owner=mediator),
        Link(path="/run/cage/gateway", to="gate/way"),
        Bind(source=spec.gateway, target="/run/cage/gate/way",
             attributes=PROGRAMS | NOEXEC | syscall.MOUNT_ATTR_NOSYMFOLLOW),
    ]


def _home(spec: RootSpec) -> list[Operation]:
    flags = SEALED & ~NOEXEC if spec.exec_home else SEALED
    if spec.home is not None:
        return [Bind(source=spec.home, target=HOME_IN_CAGE, attributes=flags)]
    user = spec.base + USER_UID
    home = Tmpfs(target=HOME_IN_CAGE, flags=flags, size=spec.home_bytes, files=spec.home_files, mode=0o700, owner=user)
    return [home, *new_home(HOME_IN_CAGE, user)]


def new_home(prefix: str, owner: int) -> list[Operation]:
    """What a home holds when it is new, at `prefix` of whatever root the steps are carried out in."""
    lines = "".join(f'XDG_{key}_DIR="$HOME/{name}"\n' for key, name in USER_DIRECTORIES.items())
    return [
        *(Directory(path=f"{prefix}/{name}", owner=owner) for name in USER_DIRECTORIES.values()),
        Directory(path=f"{prefix}/.config", mode=0o700, owner=owner),
        File(path=f"{prefix}/.config/user-dirs.dirs", content=lines, owner=owner),
    ]


# --- /proc -------------------------------------------------------------------------------------------------------
def inside() -> list[Operation]:
    """What the cage's own PID 1 mounts, once its procfs is there."""
    terminals = (("ptmxmode", "0666"), ("mode", "0620"), ("gid", "0"), ("max", str(TERMINALS_MAX)))
    masks = [*((name, _text(name)) for name in _TEXTS), *((name, f"{SHADOW}/nothing") for name in EMPTY_FILES),
             *((name, f"{SHADOW}/none") for name in EMPTY_DIRECTORIES)]
    return [
        FileSystem(kind="devpts", target="/dev/pts", attributes=SEALED & ~syscall.MOUNT_ATTR_NODEV, options=terminals),
        Again(source="/proc", target=f"{SHADOW}/whole"),
        Masks(over=tuple(masks)),
    ]


def _text(name: str) -> str:
    return f"{SHADOW}/{name.replace('/', '-')}"


def _shown(spec: RootSpec) -> list[Operation]:
    """What masks show, for `inside`."""
    return [
        Directory(path=SHADOW, mode=0o700, owner=spec.base + NOBODYS_UID),
        Directory(path=f"{SHADOW}/whole", mode=0o555), Directory(path=f"{SHADOW}/none", mode=0o555),
        File(path=f"{SHADOW}/nothing", mode=0o444, content=""),
        *(File(path=_text(name), mode=0o444, content=write(spec)) for name, write in _TEXTS.items()),
    ]


def _stat(spec: RootSpec) -> str:
    """As many processors as there are, which nothing has been done on (proc(5)): the C library counts the lines."""
    names = ["cpu ", *(f"cpu{number}" for number in spec.processors)]
    zeros = " 0" * 10
    return "".join(f"{name}{zeros}\n" for name in names) + (
        f"intr 0\nctxt 0\nbtime {spec.born}\nprocesses 1\nprocs_running 1\nprocs_blocked 0\nsoftirq 0{zeros}\n")


def _meminfo(spec: RootSpec) -> str:
    """What may be used, and nothing of what is: that is in the cage's cgroup, for `cagectl top`."""
    most = spec.memory // 1024
    sizes = dict.fromkeys(("MemTotal", "MemFree", "MemAvailable"), most) | dict.fromkeys((
        "Buffers", "Cached", "SwapCached", "Active", "Inactive", "Active(anon)", "Inactive(anon)", "Active(file)",
        "Inactive(file)", "Unevictable", "Mlocked", "SwapTotal", "SwapFree", "Dirty", "Writeback", "AnonPages",
        "Mapped", "Shmem", "KReclaimable", "Slab", "SReclaimable", "SUnreclaim", "KernelStack", "PageTables"), 0)
    return "".join(f"{name + ':':<15} {size:>8} kB\n" for name, size in sizes.items())


_TEXTS: dict[str, Callable[[RootSpec], str]] = {
    "cgroups": lambda _spec: "#subsys_name\thierarchy\tnum_cgroups\tenabled\n",
    "loadavg": lambda _spec: "0.00 0.00 0.00 1/1 1\n",
    "meminfo": _meminfo,
    "stat": _stat,
    "swaps": lambda _spec: "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n",
    "sys/kernel/random/boot_id": lambda spec: f"{spec.boot_id}\n",
    "vmstat": lambda _spec: "nr_free_pages 0\npgpgin 0\npgpgout 0\npswpin 0\npswpout 0\n",
}
"""Files of /proc that programs cannot do without, as the cage's own."""


class SharedEtc:
    """The layer under every cage's /etc, copied from the host once and again when the host's has changed.

    A layer that is there is never changed: cages may stand on it, also those of an earlier spawner.
    """

    def __init__(self, directory: Path) -> None:
        self._parent = directory

    def path(self) -> str:
        """The layer's directory, made first where there is none for the host's /etc as it is now."""
        changed = tuple(_modified(Path(HOSTS_ETC, name)) for name in (
            "ld.so.cache", "alternatives", "localtime", SERVICES, *_names(Path(HOSTS_ETC, SERVICES))))
        what = repr((changed, ETC_FROM_HOST, sorted(ETC_GENERATED.items()))).encode()
        target = self._parent / hashlib.sha256(what).hexdigest()[:16]
        if not target.is_dir():
            self._copy(target)
        return str(target)

    def _copy(self, target: Path) -> None:
        fresh = target.with_suffix(".new")
        if fresh.exists():
            shutil.rmtree(fresh)
        fresh.mkdir(parents=True)
        for name in ETC_FROM_HOST:
            _copy_public(Path(HOSTS_ETC, name), fresh / name)
        for name, content in ETC_GENERATED.items():
            (fresh / name).parent.mkdir(exist_ok=True)
            (fresh / name).write_text(content, encoding="utf-8")
        (fresh / "mtab").symlink_to("../proc/self/mounts")
        fresh.rename(target)


def _modified(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def _names(directory: Path) -> list[str]:
    """The files in it, by their names below /etc."""
    try:
        return sorted(f"{SERVICES}/{entry.name}" for entry in directory.iterdir())
    except OSError:
        return []


def _copy_public(source: Path, target: Path) -> None:
    """Copy what everybody may read; what is missing or private is left out."""
    if not os.path.lexists(source):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_symlink():
        target.symlink_to(os.readlink(source))
    elif source.is_dir():
        if source.stat().st_mode & 0o005 != 0o005:
            return
        target.mkdir()
        for entry in source.iterdir():
            _copy_public(entry, target / entry.name)
    elif source.is_file() and source.stat().st_mode & 0o004:
        shutil.copyfile(source, target)
        if source.stat().st_mode & 0o001:
            target.chmod(0o755)
