# SPDX-License-Identifier: LGPL-2.1-or-later
"""The birth of a cage, the spawner's side: its root is assembled, its first process cloned, labelled and given its ids.

The child's side is in newborn.py; what fails on either leaves nothing behind.
"""

from __future__ import annotations

import errno
import json
import os
import select
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cage_runtime.errors import HostUnsupported, RuntimeFailure
from cage_runtime.model import ID_RANGE
from cage_runtime.spawner import root, syscall
from cage_runtime.spawner.cgroup import Cgroup
from cage_runtime.spawner.mount import FOLDER, Operation, Root, Source, exact_modes, opened
from cage_runtime.spawner.newborn import Newborn
from cage_runtime.spawner.profile import Filters
from cage_runtime.spawner.security import Label
from cage_runtime.spawner.spec import Birth
from cage_runtime.spawner.walls import ALL, Namespace, Walls

BIRTH_SECONDS = 10.0
"""A birth takes some milliseconds; one that takes this long is ended."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """What all births have in common."""

    programs: str
    empty: str
    proc: str
    """A procfs of the spawner's own, whole and writable whatever the host has put over its /proc."""
    etc: root.SharedEtc
    filters: Filters
    walls: Walls = ALL


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


def root_spec(request: Birth, base: int, home: Source | None, gateway: Source, place: Place) -> root.RootSpec:
    identity = {"name": request.name, "level": request.level, "compartments": request.compartments}
    if Namespace.USER not in place.walls.namespaces:
        base, home = 0, None
    all_memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return root.RootSpec(
        name=request.name, machine_id=request.uuid, identity=json.dumps(identity) + "\n", base=base, home=home,
        home_bytes=request.home_bytes, home_files=request.home_files, exec_home=request.exec_home,
        programs=place.programs, etc=place.etc.path(), empty=place.empty, gateway=gateway, boot_id=str(uuid.uuid4()),
        born=int(time.time()), memory=min(request.limits.memory or all_memory, all_memory),
        processors=tuple(sorted(os.sched_getaffinity(0))),
    )


def bear(request: Birth, spec: root.RootSpec, place: Place, cradle: Cradle, cgroup: Cgroup,
         label: Label) -> tuple[int, int]:
    """(pid, pidfd) of the cage's PID 1, sealed and serving; RuntimeFailure names the step that failed."""
    os.mkdir(cradle.root, 0o700)
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener,
        opened(os.open(cradle.root, FOLDER)) as directory, Root(directory) as assembled,
    ):
        with _doing("its socket"):
            listener.bind(cradle.socket)
            label.admit(listener.fileno())
        try:
            _assemble(root.plan(spec), assembled)
            if spec.home is None:  # any other is on a file system that is not the cage's alone
                with _doing("its home's context"), opened(assembled.open(root.HOME_IN_CAGE)) as home:
                    label.own(home)
            return _clone(request, spec, place, assembled, cgroup, listener, label)
        finally:
            if assembled.descriptor != directory:
                syscall.umount2(cradle.root, syscall.MNT_DETACH | syscall.UMOUNT_NOFOLLOW)


@contextmanager
def _doing(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RuntimeFailure(f"the cage could not be started: {what}: {error}") from error


def _assemble(steps: list[Operation], assembled: Root) -> None:
    with exact_modes():
        for step in steps:
            try:
                step.execute(assembled)
            except OSError as error:
                raise RuntimeFailure(f"the cage's root could not be assembled: {step.describe()}: {error}") from error


def _clone(request: Birth, spec: root.RootSpec, place: Place, assembled: Root, cgroup: Cgroup,
           listener: socket.socket, label: Label) -> tuple[int, int]:
    held: list[int] = []
    try:
        held += os.pipe2(os.O_CLOEXEC)
        held += os.pipe2(os.O_CLOEXEC)
        held.append(cgroup.open())
        go_read, go_write, told_read, told_write, directory = held
        os.fchdir(assembled.descriptor)
        # All that can be made before the clone is: each page that the child writes first has to be copied.
        newborn = Newborn(request=request, base=spec.base, filters=place.filters, walls=place.walls,
                          proc_of_all=place.proc, listener=listener, go=go_read, told=told_write)
        steps = newborn.steps()
        # Every signal is as by default: the kernel drops what PID 1 of a namespace does not handle (signal(7)), and
        # what it starts inherits that.
        flags = place.walls.flags(Namespace.PID) | syscall.CLONE_CLEAR_SIGHAND
        pid, pidfd = syscall.clone3(flags, cgroup=directory)
        if pid == 0:
            newborn.live(steps, (go_write, told_read))
        # The child alone holds it now, so that its end is seen.
        held.remove(told_write)
        os.close(told_write)
        try:
            os.write(go_write, b"!")
            if Namespace.USER in place.walls.namespaces:
                _hear(told_read, "ids")
                # Before that it is root of the host's, which no context is; from here on it changes its credentials.
                with _doing("its context"):
                    label.enter(pidfd)
                with _doing("its id maps"):
                    _map_ids(pid, spec.base)
                os.write(go_write, b"!")
            _hear(told_read, "ok")
        except (OSError, RuntimeFailure):
            cgroup.kill()  # by now it may have another uid than we, who cannot signal everybody
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


def _hear(told: int, awaited: str) -> None:
    """Wait until the child says `awaited`; RuntimeFailure carries the step that it says has failed."""
    poll = select.poll()  # and not select(2), which ends at the descriptor 1023: a few hundred cages have more
    poll.register(told, select.POLLIN)
    ready = poll.poll(BIRTH_SECONDS * 1000)
    said = os.read(told, 4096).decode("utf-8", "backslashreplace") if ready else "no answer"
    if said != awaited:
        raise RuntimeFailure(f"the cage could not be started: {said or 'cage-init ended'}")
