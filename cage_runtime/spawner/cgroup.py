# SPDX-License-Identifier: LGPL-2.1-or-later
"""cgroup v2 (Documentation/admin-guide/cgroup-v2.rst): one cgroup a cage, below a subtree that is ours.

Law of this room: nothing outside what is ours, or was delegated to us, is written, and v1 hierarchies are not looked
at.  The hierarchy is mounted in the spawner's own mount namespace, so that where the host shows it does not matter.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import select
import time
from pathlib import Path
from typing import Protocol

from cage_runtime.errors import CageError, HostUnsupported, RuntimeFailure
from cage_runtime.spawner import syscall
from cage_runtime.spawner.spec import Limits

CPU_PERIOD = 100_000
"""Microseconds, the kernel's default period of cpu.max."""
WANTED = ("cpu", "io", "memory", "pids")
EMPTY_SECONDS = 2.0
"""What is given to a process that has ended, until its cgroup is without it; the kernel needs some milliseconds."""
SWAP = "memory.swap.max"
"""Not on a kernel without swap accounting."""
UUID = re.compile(r"[0-9a-f]{32}")
"""How the cgroup of a cage is called; others are beside one."""
_GONE = (errno.ENOENT, errno.ENODEV)
"""Of a cgroup that was removed, and of a file of it that was open already."""


class Cgroup:
    """One cage's cgroup, which may be gone: systemd removes those of a scope that has emptied, beside us."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def beside(self, what: str) -> Cgroup:
        """Its sibling for `what` belongs to the cage and is not in it."""
        return Cgroup(self.path.with_name(f"{self.path.name}.{what}"))

    def open(self) -> int:
        return os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def open_events(self) -> int:
        """cgroup.events: poll it for POLLPRI, then ask `is_populated`; -1 where it is gone."""
        try:
            return os.open(self.path / "cgroup.events", os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            if error.errno in _GONE:
                return -1
            raise

    def kill(self) -> None:
        """SIGKILL to all in it and below."""
        try:
            (self.path / "cgroup.kill").write_text("1", encoding="ascii")
        except OSError as error:
            if error.errno not in _GONE:
                raise

    def freeze(self, *, frozen: bool) -> None:
        (self.path / "cgroup.freeze").write_text("1" if frozen else "0", encoding="ascii")

    def frozen(self) -> bool:
        return "frozen 1" in _read(self.path / "cgroup.events")

    def processes(self) -> int:
        """How many there are in it and below."""
        return sum(len(_read(Path(directory, "cgroup.procs")).split()) for directory, _, _ in os.walk(self.path))

    def wait_empty(self) -> None:
        """Until the kernel says that nothing is in it: a process that has been waited for may still be (Linux 6.18).

        TimeoutError where something stays there.
        """
        events = self.open_events()
        if events < 0:
            return
        try:
            poll = select.poll()
            poll.register(events, select.POLLPRI)
            deadline = time.monotonic() + EMPTY_SECONDS
            while is_populated(events):
                if time.monotonic() > deadline:
                    raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT), str(self.path))
                poll.poll(EMPTY_SECONDS * 1000)
        finally:
            os.close(events)

    def remove(self) -> None:
        """Remove it and what the cage made below it; nothing may be left in it."""
        for directory, _, _ in os.walk(self.path, topdown=False):
            with contextlib.suppress(FileNotFoundError):
                os.rmdir(directory)


def is_populated(events: int) -> bool:
    """Whether there are processes, says cgroup.events, open as `events`."""
    try:
        return b"populated 1" in os.pread(events, 4096, 0)
    except OSError as error:
        if error.errno in _GONE:
            return False
        raise


def _read(file: Path) -> str:
    """Nothing where the cgroup is gone."""
    try:
        return file.read_text(encoding="ascii")
    except OSError as error:
        if error.errno in _GONE:
            return ""
        raise


class Made(Protocol):
    """What is done with a cgroup that was asked for: there it is, or there is none and why."""

    def __call__(self, outcome: Cgroup | CageError) -> None: ...


class Cgroups(Protocol):
    """Where the cgroups of cages are made."""

    path: Path
    """What all of them are below."""
    controllers: frozenset[str]
    """Those that limits can be put in force with."""

    def existing(self) -> dict[str, Cgroup]:
        """The cgroups that are there, by uuid."""

    def make(self, name: str, uuid: str, limits: Limits, made: Made) -> None:
        """A cgroup with `limits` in force; `made` is told, now or later."""

    def born(self, name: str, uuid: str, pid: int) -> None:
        """The cage is in its cgroup, `pid` its first process."""

    def ended(self, cgroup: Cgroup) -> None:
        """Nothing of the cage is left in its cgroup, which is removed."""

    def unmake(self, uuid: str) -> None:
        """It is not, and the cgroup is not wanted."""

    def close(self) -> None:
        """Leave nothing behind but what cages go on in."""


class Subtree:
    """Where nobody else manages cgroups: all in one of ours at the top."""

    def __init__(self, mount_point: Path, name: str) -> None:
        self.path = mount_point / name
        self.path.mkdir(exist_ok=True)
        switch_on(mount_point)
        self.controllers = switch_on(self.path)

    def existing(self) -> dict[str, Cgroup]:
        return {entry.name: Cgroup(entry) for entry in self.path.iterdir() if UUID.fullmatch(entry.name)}

    def make(self, name: str, uuid: str, limits: Limits, made: Made) -> None:  # noqa: ARG002
        cgroup = Cgroup(self.path / uuid)
        try:
            cgroup.path.mkdir()
            try:
                put_in_force(cgroup.path, limits)
            except OSError:
                cgroup.path.rmdir()
                raise
        except OSError as error:
            made(not_in_force(error))
        else:
            made(cgroup)

    def born(self, name: str, uuid: str, pid: int) -> None:
        """Nobody has to know."""

    def ended(self, cgroup: Cgroup) -> None:
        """As with the birth."""

    def unmake(self, uuid: str) -> None:
        cgroup = Cgroup(self.path / uuid)
        cgroup.wait_empty()
        cgroup.remove()

    def close(self) -> None:
        try:
            self.path.rmdir()
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EBUSY):
                raise


def mounted(mount_point: Path) -> Path:
    """The hierarchy, mounted at `mount_point`; HostUnsupported where the host has none."""
    mount_point.mkdir(parents=True, exist_ok=True)
    try:
        flags = syscall.MS_NOSUID | syscall.MS_NODEV | syscall.MS_NOEXEC
        syscall.mount("cgroup2", str(mount_point), "cgroup2", flags)
    except OSError as error:
        raise HostUnsupported(f"cgroup v2 cannot be mounted on this host: {error.strerror}") from error
    return mount_point


def is_systemds(mount_point: Path) -> bool:
    """Whether systemd manages what is mounted here: sd_booted(3), and its own scope is below this root."""
    return Path("/run/systemd/system").is_dir() and (mount_point / "init.scope").is_dir()


def offered(directory: Path) -> frozenset[str]:
    """The controllers of WANTED that are there for what is below."""
    controllers = (directory / "cgroup.controllers").read_text(encoding="ascii").split()
    return frozenset(controllers) & frozenset(WANTED)


def switch_on(directory: Path) -> frozenset[str]:
    """Give the controllers of WANTED to what is below; which they are."""
    wanted = offered(directory)
    if wanted:
        names = " ".join(f"+{controller}" for controller in sorted(wanted))
        (directory / "cgroup.subtree_control").write_text(names, encoding="ascii")
    return wanted


def put_in_force(cgroup: Path, limits: Limits) -> None:
    """OSError where the kernel does not take one of them."""
    for file, value in settings(limits):
        (cgroup / file).write_text(value, encoding="ascii")
    if limits.memory is not None and (cgroup / SWAP).exists():
        # Else what is over the limit would be swapped out, for as long as the host has room for that.
        (cgroup / SWAP).write_text("0", encoding="ascii")


def not_in_force(error: OSError) -> RuntimeFailure:
    return RuntimeFailure(f"the cage's limits cannot be put in force: {error}")


def settings(limits: Limits) -> list[tuple[str, str]]:
    """The files and values that put `limits` in force."""
    values = {
        "memory.max": limits.memory,
        "memory.min": limits.memory_guarantee,
        "cpu.max": f"{int(limits.cpus * CPU_PERIOD)} {CPU_PERIOD}" if limits.cpus else None,
        "cpu.weight": limits.cpu_weight,
        "pids.max": limits.tasks,
        "io.weight": limits.io_weight,
    }
    return [(file, str(value)) for file, value in values.items() if value is not None]
