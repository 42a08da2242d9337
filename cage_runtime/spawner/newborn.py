# SPDX-License-Identifier: LGPL-2.1-or-later
"""From the spawner's child to a cage-init: the plan by which it enters its namespaces and root, is sealed and serves.

Law of this room: until the seal it runs nothing that the cage controls, and whatever fails is told to the spawner, by
the step's name, and is its end.
"""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import socket
import struct
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NoReturn

import prctl

from cage_runtime.spawner import capability, landlock, root, syscall
from cage_runtime.spawner.child import DESCRIPTORS_END
from cage_runtime.spawner.filters import Filter
from cage_runtime.spawner.init import Init
from cage_runtime.spawner.mount import FOLDER, SEALED, Operation, Root, file_system, opened, tree_of
from cage_runtime.spawner.profile import Filters
from cage_runtime.spawner.spec import Birth
from cage_runtime.spawner.walls import Namespace, Walls

NAMESPACE_LIMITS = {
    "max_user_namespaces": 256, "max_mnt_namespaces": 256, "max_pid_namespaces": 256, "max_net_namespaces": 64,
    "max_ipc_namespaces": 64, "max_uts_namespaces": 64, "max_cgroup_namespaces": 64, "max_time_namespaces": 64,
    "max_inotify_instances": 512, "max_inotify_watches": 65536,
}
"""/proc/sys/user of the cage: flatpak makes 3 user namespaces an application; nothing here needs more."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One of those by which the spawner's child becomes a cage-init."""

    name: str
    """What the parent says of it where it fails."""
    execute: Callable[[], None]
    kinds: tuple[Namespace, ...] = ()
    """Of namespaces that it is about; it is left out where the cage has not all of them of its own."""

    def describe(self) -> str:
        return self.name


def _step(name: str, execute: Callable[[], None], *kinds: Namespace) -> Step:
    return Step(name=name, execute=execute, kinds=kinds)


@dataclass(kw_only=True, slots=True)
class Newborn:
    """The child until it serves."""

    request: Birth
    base: int
    """The host's uid of the cage's root."""
    filters: Filters
    walls: Walls
    proc_of_all: str
    """A procfs of the spawner's own, for a cage whose processes are among the host's."""
    listener: socket.socket
    go: int
    """Where the spawner says that it may go on."""
    told: int
    """Where to say how far it is."""
    proc: int = -1
    """Its procfs, not attached yet."""
    root: Root | None = None
    init: Init | None = None
    born: float = field(default_factory=lambda: time.clock_gettime(time.CLOCK_BOOTTIME))
    """By the host's clock, as the spawner sees it."""

    def steps(self) -> list[Step]:
        """All that the walls ask for; what is the spawner's own namespace is left as it is."""
        own, name = self.walls.namespaces, self.request.name
        plan = [
            # As the host's root, in a pid namespace that is the host's: nothing in the cage has rights over it.
            _step("its procfs", self._make_procfs),
            _step("its memory files", self._forbid_executable_memfds, Namespace.PID),
            # As the cage's root.
            _step("its namespaces", self._enter_namespaces),
            _step("its clocks", self._begin_clocks, Namespace.TIME),
            # In a context, which has no right over what is the host's.
            _step("its ids", self._await_ids, Namespace.USER),
            _step("becoming its root", lambda: _become_root(name)),
            _step("its cgroups", lambda: syscall.unshare(syscall.CLONE_NEWCGROUP), Namespace.CGROUP),
            _step("its name", lambda: _name(name), Namespace.UTS),
            _step("entering its root", self._enter_root),
            _step("proc /proc", lambda: self._entered().attach(self.proc, "/proc")),
            *(_step(mount.describe(), self._mounting(mount)) for mount in root.inside()),
            _step("leaving the host's root", _leave_host),
            _step("its limits", _limit_namespaces, Namespace.USER),
            _step("its core dumps", _forbid_core_dumps),
            _step("its loopback", _raise_loopback, Namespace.USER, Namespace.NET),
            _step("its descriptors", self._close_others),
            _step("its buses", self._listen),
            _step("the seal", self._seal),
            _step("its readiness", self._tell),
        ]
        return [step for step in plan if own.issuperset(step.kinds)]

    def live(self, steps: list[Step], parents: tuple[int, int]) -> NoReturn:
        """In the child.  `parents` are the other ends of its pipes."""
        doing = "its start"
        status = 1
        try:
            # Held here too, they would hide that the spawner has ended, and we would wait with all that it had open.
            for descriptor in parents:
                os.close(descriptor)
            if os.read(self.go, 1) == b"!":
                for step in steps:
                    doing = step.describe()
                    step.execute()
                doing = "serving"
                if self.init is not None:
                    self.init.serve()
                status = 0
        except OSError as error:
            _report(self.told, f"{doing}: {error}")
        finally:
            # Whatever else is raised is our own fault: the parent sees the pipe close, and nothing runs on.
            os._exit(status)

    def _make_procfs(self) -> None:
        if Namespace.PID in self.walls.namespaces:
            self.proc = file_system("proc", SEALED, hidepid="2")
        else:
            with opened(os.open(self.proc_of_all, FOLDER)) as host:
                self.proc = tree_of(host, SEALED)

    def _enter_namespaces(self) -> None:
        """The user namespace is an id's of the cage: what its owner may have in the host's, as inotify(7) instances,
        counts for this cage and no other (user_namespaces(7), /proc/sys/user)."""
        if Namespace.USER in self.walls.namespaces:
            os.seteuid(self.base)
        kinds = Namespace.USER, Namespace.IPC, Namespace.UTS, Namespace.NET, Namespace.TIME
        syscall.unshare(syscall.CLONE_NEWNS | self.walls.flags(*kinds))

    def _begin_clocks(self) -> None:
        """The clocks that count from the host's start count from the cage's (time_namespaces(7))."""
        clocks = {"monotonic": time.CLOCK_MONOTONIC, "boottime": time.CLOCK_BOOTTIME}
        offsets = "".join(f"{name} {-int(time.clock_gettime(clock))} 0\n" for name, clock in clocks.items())
        # Files in /proc of a process that is not dumpable are the host's root's, and we are not any more.
        prctl.set_dumpable(1)
        if Namespace.USER in self.walls.namespaces:
            with opened(os.open("self/timens_offsets", os.O_WRONLY | os.O_CLOEXEC, dir_fd=self.proc)) as file:
                os.write(file, offsets.encode())
        name = "self/ns/time_for_children"
        with opened(os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self.proc)) as namespace:
            syscall.setns(namespace, syscall.CLONE_NEWTIME)
        prctl.set_dumpable(0)

    def _forbid_executable_memfds(self) -> None:
        """A memfd is no way around write xor execute: this pid namespace's sysctl, which the host's root alone sets."""
        try:
            descriptor = os.open("sys/vm/memfd_noexec", os.O_RDWR | os.O_CLOEXEC, dir_fd=self.proc)
        except FileNotFoundError:  # before Linux 6.3
            return
        with opened(descriptor):
            if os.read(descriptor, 2)[:1] == b"0":
                os.pwrite(descriptor, b"1", 0)

    def _await_ids(self) -> None:
        os.write(self.told, b"ids")
        if os.read(self.go, 1) != b"!":
            raise OSError(errno.EPIPE, "the spawner has ended")

    def _mounting(self, mount: Operation) -> Callable[[], None]:
        return lambda: mount.execute(self._entered())

    def _entered(self) -> Root:
        if self.root is None:
            raise OSError(errno.ENOENT, "there is no root yet")
        return self.root

    def _enter_root(self) -> None:
        """Make the root that the spawner assembled, our working directory, the one that is mounted on.

        By then the path that leads to it is out of reach: it is root's on the host, and we are not any more.
        """
        syscall.mount(None, "/", None, syscall.MS_REC | syscall.MS_PRIVATE)
        # A mount copied into a less privileged namespace is locked, and pivot_root wants an unlocked one on top.
        tree = syscall.open_tree(syscall.AT_FDCWD, ".", syscall.OPEN_TREE_CLONE | syscall.AT_RECURSIVE)
        with opened(os.open(".", FOLDER)) as locked:
            syscall.move_mount(tree, locked)
        os.fchdir(tree)
        self.root = Root(tree)

    def _close_others(self) -> None:
        self.told = _only(self.listener, self.told)

    def _listen(self) -> None:
        self.listener.listen(4)
        self.init = Init(self.listener, self.filters, self.request.processes, self.walls,
                         private=self.request.private, disposable=self.request.disposable)

    def _seal(self) -> None:
        listener = _seal(self.filters.init, self.walls)
        if listener is not None and self.init is not None:
            self.init.hand_over(listener, self.born)

    def _tell(self) -> None:
        os.write(self.told, b"ok")
        os.close(self.told)


def _report(told: int, sentence: str) -> None:
    try:
        os.write(told, sentence.encode("utf-8", "backslashreplace")[:4000])
    except OSError:
        return


def _become_root(name: str) -> None:
    os.setgroups([])
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    os.setsid()
    # What `ps` on the host shows, instead of the spawner's own command line.
    prctl.set_name("cage-init")
    prctl.set_proctitle(f"cage-init {name}")
    syscall.keyctl_join_session_keyring()


def _name(name: str) -> None:
    syscall.sethostname(name)
    syscall.setdomainname("(none)")  # the host's is not the cage's business


def _leave_host() -> None:
    """The working directory becomes the root, and there is no other any more."""
    syscall.pivot_root(".", ".")
    syscall.umount2(".", syscall.MNT_DETACH)
    os.chdir("/")


def _limit_namespaces() -> None:
    for name, limit in NAMESPACE_LIMITS.items():
        _set(f"/proc/sys/user/{name}", str(limit))


def _forbid_core_dumps() -> None:
    """A limit of 1 byte, and for all that starts here: at 0, the host's handler of piped dumps would still be run, as
    root, on the memory of whatever crashes (core(5); fs/coredump.c takes 1 for "none at all").  The filter keeps it.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    limit = 1 if hard == resource.RLIM_INFINITY else min(1, hard)
    resource.setrlimit(resource.RLIMIT_CORE, (limit, limit))


def _set(file: str, value: str) -> None:
    """Write a sysctl; one that this kernel lacks is left to `doctor` to tell."""
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        os.write(descriptor, value.encode())
    finally:
        os.close(descriptor)


def _raise_loopback() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as control:
        request = struct.pack("16sh14x", b"lo", 0x1 | 0x40)  # IFF_UP | IFF_RUNNING
        fcntl.ioctl(control, 0x8914, request)  # SIOCSIFFLAGS


def _only(listener: socket.socket, told: int) -> int:
    """Close every descriptor but `listener` and `told` (which moves), and see to 0, 1 and 2 being the cage's null."""
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for number in range(3):
        os.dup2(null, number, inheritable=False)
    kept = fcntl.fcntl(told, fcntl.F_DUPFD_CLOEXEC, 64)
    low = listener.fileno()
    os.closerange(3, low)
    os.closerange(low + 1, kept)
    os.closerange(kept + 1, DESCRIPTORS_END)
    return kept


def _seal(init_filter: Filter, walls: Walls) -> int | None:
    """From here on this process and all it starts can only lose rights (law 6).

    What comes back is the listener of the calls that are mediated, if any is.
    """
    if walls.capabilities:
        # It bounds what exec may give: nothing to those that are started, and cage-init keeps what it holds without.
        capability.drop_bounding_set()
        capability.lock_securebits()
        capability.hold(capability.INIT_CEILING, capability.INIT_USUAL)
    capability.one_way()
    if walls.landlock:
        landlock.enter_scope()
    # What Python might still import would come from the cage's files.
    sys.path.clear()
    sys.meta_path.clear()
    os.environ.clear()
    if not walls.seccomp:
        return None
    listener = init_filter.listen()
    init_filter.load()
    return listener
