# SPDX-License-Identifier: LGPL-2.1-or-later
"""The birth of a cage: root assembled, namespaces cloned, ids mapped, sealed, served (wall.md, "Birth of a cage").

The parent's side is `bear`, the child's `_inside`; what fails on either side leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import resource
import select
import signal
import socket
import struct
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import prctl

from cage_runtime.errors import HostUnsupported, RuntimeFailure
from cage_runtime.model import ID_RANGE
from cage_runtime.spawner import capability, landlock, root, syscall
from cage_runtime.spawner.cgroup import Cgroup
from cage_runtime.spawner.child import DESCRIPTORS_END
from cage_runtime.spawner.filters import Filter
from cage_runtime.spawner.init import Init
from cage_runtime.spawner.mount import Operation
from cage_runtime.spawner.profile import Filters
from cage_runtime.spawner.spec import Birth

NAMESPACES = (syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWIPC
              | syscall.CLONE_NEWUTS | syscall.CLONE_NEWNET | syscall.CLONE_NEWTIME)
"""The cgroup namespace is entered afterwards: made by clone it would show the spawner's cgroup as its root."""

BIRTH_SECONDS = 10.0
"""A birth takes some milliseconds; one that takes this long is ended."""

TERMINALS_MAX = 256
"""Pseudo-terminals of a cage's own devpts, out of those that all share (/proc/sys/kernel/pty/max).  A nested namespace
can mount another devpts, which no mount option of ours bounds."""

NAMESPACE_LIMITS = {
    "max_user_namespaces": 256, "max_mnt_namespaces": 256, "max_pid_namespaces": 256, "max_net_namespaces": 64,
    "max_ipc_namespaces": 64, "max_uts_namespaces": 64, "max_cgroup_namespaces": 64, "max_time_namespaces": 64,
    "max_inotify_instances": 512, "max_inotify_watches": 65536,
}
"""/proc/sys/user of the cage: flatpak makes 3 user namespaces an application; nothing here needs more."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """What all births have in common."""

    programs: str
    empty: str
    proc: str
    """A procfs of the spawner's own, whole and writable whatever the host has put over its /proc."""
    etc: root.SharedEtc
    filters: Filters


@dataclass(frozen=True, kw_only=True, slots=True)
class Cradle:
    """One cage's directory under /run/cage-runtime/cages: RUN/UUID/{root,init.sock,record.json}, root's alone."""

    directory: Path
    gateway: Path

    @property
    def root(self) -> str:
        return str(self.directory / "root")

    @property
    def socket(self) -> str:
        return str(self.directory / "init.sock")


def root_spec(request: Birth, base: int, home: Path | None, place: Place, cradle: Cradle) -> root.RootSpec:
    identity = {"name": request.name, "level": request.level, "compartments": request.compartments}
    return root.RootSpec(
        name=request.name, machine_id=request.uuid, identity=json.dumps(identity) + "\n", base=base,
        home=None if home is None else str(home), home_bytes=request.home_bytes, home_files=request.home_files,
        exec_home=request.exec_home, programs=place.programs, etc=place.etc.path(), empty=place.empty,
        gateway=str(cradle.gateway),
    )


def bear(request: Birth, spec: root.RootSpec, place: Place, cradle: Cradle, cgroup: Cgroup) -> tuple[int, int]:
    """(pid, pidfd) of the cage's PID 1, sealed and serving; RuntimeFailure names the step that failed."""
    os.mkdir(cradle.root, 0o700)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        listener.bind(cradle.socket)
        steps = root.plan(spec)
        _assemble(steps, cradle.root)
        try:
            return _clone(request, spec, place, cradle, cgroup, listener)
        finally:
            syscall.umount2(cradle.root, syscall.MNT_DETACH)
    finally:
        listener.close()


def _assemble(steps: list[Operation], directory: str) -> None:
    for number, step in enumerate(steps):
        try:
            step.execute(directory)
        except OSError as error:
            if number:
                syscall.umount2(directory, syscall.MNT_DETACH)
            raise RuntimeFailure(f"the cage's root could not be assembled: {step.describe()}: {error}") from error


def _clone(request: Birth, spec: root.RootSpec, place: Place, cradle: Cradle, cgroup: Cgroup,
           listener: socket.socket) -> tuple[int, int]:
    held: list[int] = []
    try:
        held += os.pipe2(os.O_CLOEXEC)
        held += os.pipe2(os.O_CLOEXEC)
        held.append(cgroup.open())
        go_read, go_write, told_read, told_write, directory = held
        os.chdir(cradle.root)
        # Every signal is as by default: the kernel drops what PID 1 of a namespace does not handle (signal(7)), and
        # what it starts inherits that.
        pid, pidfd = syscall.clone3(NAMESPACES | syscall.CLONE_CLEAR_SIGHAND, cgroup=directory)
        if pid == 0:
            _inside(request, place, listener, go_read, told_write, (go_write, told_read))
        # The child alone holds it now, so that its end is seen.
        held.remove(told_write)
        os.close(told_write)
        try:
            _map_ids(pid, spec.base)
            os.write(go_write, b"!")
            _hear(told_read)
        except (OSError, RuntimeFailure):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            os.close(pidfd)
            raise
        return pid, pidfd
    except OSError as error:
        raise _not_cloned(error) from error
    finally:
        os.chdir("/")
        for descriptor in held:
            os.close(descriptor)


def check_namespaces() -> None:
    """HostUnsupported where the host has switched user namespaces off: better said before anything is made."""
    if user_namespaces() == 0:
        raise _no_namespaces("user.max_user_namespaces is 0")


def user_namespaces() -> int:
    """How many there may be; 0 also where the kernel was built without them."""
    try:
        with open("/proc/sys/user/max_user_namespaces", encoding="ascii") as file:
            return int(file.read())
    except FileNotFoundError:
        return 0


def _no_namespaces(why: str) -> HostUnsupported:
    return HostUnsupported(
        f"this host gives no user namespace to a cage ({why}); set the sysctl user.max_user_namespaces to 10000 or more"
    )


def _not_cloned(error: OSError) -> RuntimeFailure:
    # What clone(2) answers where namespaces are what it cannot give; anything else is not the namespaces' fault.
    if error.filename == "clone3" and error.errno in (errno.ENOSPC, errno.EPERM, errno.EINVAL, errno.EUSERS):
        return _no_namespaces(str(error.strerror))
    return RuntimeFailure(f"the cage could not be started: {error}")


def _map_ids(pid: int, base: int) -> None:
    line = f"0 {base} {ID_RANGE}\n".encode()
    for kind in ("uid_map", "gid_map"):
        descriptor = os.open(f"/proc/{pid}/{kind}", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(descriptor, line)
        finally:
            os.close(descriptor)


def _hear(told: int) -> None:
    """Wait until the child serves; RuntimeFailure carries the step that it says has failed."""
    poll = select.poll()  # and not select(2), which ends at the descriptor 1023: a few hundred cages have more
    poll.register(told, select.POLLIN)
    ready = poll.poll(BIRTH_SECONDS * 1000)
    said = os.read(told, 4096).decode("utf-8", "backslashreplace") if ready else "no answer"
    if said != "ok":
        raise RuntimeFailure(f"the cage could not be started: {said or 'cage-init ended'}")


# --- the child's side ------------------------------------------------------------------------------------------
def _inside(request: Birth, place: Place, listener: socket.socket, go: int, told: int,
            parents: tuple[int, int]) -> None:
    """In the new namespaces: never returns.  `parents` are the other ends of the pipes `go` and `told`."""
    step = "waiting for ids"
    status = 1
    try:
        # Held here too, they would hide that the spawner has ended, and we would wait with all that it had open.
        for descriptor in parents:
            os.close(descriptor)
        if os.read(go, 1) == b"!":
            step = "its memory files"
            _forbid_executable_memfds(place.proc)
            step = "its clocks"
            born = time.clock_gettime(time.CLOCK_BOOTTIME)
            _start_clocks(place.proc)
            step = "becoming its root"
            _become_root(request.name)
            step = "entering its root"
            _enter_root()
            step = "its limits"
            _limit_namespaces()
            _forbid_core_dumps()
            _raise_loopback()
            step = "its descriptors"
            told = _only(listener, told)
            step = "its buses"
            listener.listen(4)
            init = Init(listener, place.filters, request.processes)
            step = "the seal"
            listener_of_calls = _seal(place.filters.init)
            if listener_of_calls is not None:
                init.hand_over(listener_of_calls, born)
            os.write(told, b"ok")
            os.close(told)
            step = "serving"
            init.serve()
            status = 0
    except OSError as error:
        _report(told, f"{step}: {error}")
    finally:
        # Whatever else is raised is our own fault: the parent sees the pipe close, and nothing runs on.
        os._exit(status)


def _report(told: int, sentence: str) -> None:
    try:
        os.write(told, sentence.encode("utf-8", "backslashreplace")[:4000])
    except OSError:
        return


def _forbid_executable_memfds(proc: str) -> None:
    """A memfd is no way around write xor execute; the sysctl is this pid namespace's, and the host's root sets it."""
    try:
        descriptor = os.open(f"{proc}/sys/vm/memfd_noexec", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:  # before Linux 6.3
        return
    try:
        if os.read(descriptor, 2)[:1] == b"0":
            os.pwrite(descriptor, b"1", 0)
    finally:
        os.close(descriptor)


def _start_clocks(proc: str) -> None:
    """The cage's clocks begin with it (time_namespaces(7)): how long the host has been up is not for it to know.

    The namespace that clone3 made has us in it already, which fixes its offsets: another one, and we enter that.
    """
    syscall.unshare(syscall.CLONE_NEWTIME)
    offsets = "".join(f"{name} {-int(time.clock_gettime(clock))} 0\n"
                      for name, clock in (("monotonic", time.CLOCK_MONOTONIC), ("boottime", time.CLOCK_BOOTTIME)))
    _write(f"{proc}/self/timens_offsets", offsets)
    namespace = os.open(f"{proc}/self/ns/time_for_children", os.O_RDONLY | os.O_CLOEXEC)
    try:
        syscall.setns(namespace, syscall.CLONE_NEWTIME)
    finally:
        os.close(namespace)


def _become_root(name: str) -> None:
    os.setgroups([])
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    os.setsid()
    # What `ps` on the host shows, instead of the spawner's own command line.
    prctl.set_name("cage-init")
    prctl.set_proctitle(f"cage-init {name}")
    syscall.unshare(syscall.CLONE_NEWCGROUP)
    syscall.keyctl_join_session_keyring()
    syscall.sethostname(name)


def _enter_root() -> None:
    """Make the root that the spawner assembled, our working directory, the only one.

    By then the path that leads to it is out of reach: it is root's on the host, and we are not any more.
    """
    syscall.mount(None, "/", None, syscall.MS_REC | syscall.MS_PRIVATE)
    # A mount copied into a less privileged namespace is locked, and pivot_root wants an unlocked one on top.
    tree = syscall.open_tree(syscall.AT_FDCWD, ".", syscall.OPEN_TREE_CLONE | syscall.AT_RECURSIVE)
    syscall.move_mount(tree, ".")
    os.fchdir(tree)
    options = f"newinstance,ptmxmode=0666,mode=0620,gid=0,max={TERMINALS_MAX}"
    syscall.mount("devpts", "dev/pts", "devpts", syscall.MS_NOSUID | syscall.MS_NOEXEC, options)
    flags = syscall.MS_NOSUID | syscall.MS_NODEV | syscall.MS_NOEXEC
    syscall.mount("proc", "proc", "proc", flags, "hidepid=2")
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
    with contextlib.suppress(FileNotFoundError):
        _write(file, value)


def _write(file: str, value: str) -> None:
    descriptor = os.open(file, os.O_WRONLY | os.O_CLOEXEC)
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


def _seal(init_filter: Filter) -> int | None:
    """From here on this process and all it starts can only lose rights (law 6).

    What comes back is the listener of the calls that are mediated, if any is.
    """
    # It bounds what exec may give: nothing to those that are started, and cage-init keeps what it holds without.
    capability.drop_bounding_set()
    capability.lock_securebits()
    capability.hold(capability.INIT_CEILING)
    capability.one_way()
    landlock.enter_scope()
    # What Python might still import would come from the cage's files.
    sys.path.clear()
    sys.meta_path.clear()
    os.environ.clear()
    listener = init_filter.listen()
    init_filter.load()
    return listener
