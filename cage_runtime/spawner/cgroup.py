# SPDX-License-Identifier: LGPL-2.1-or-later
"""cgroup v2 (Documentation/admin-guide/cgroup-v2.rst): one cgroup a cage, below a subtree that is ours.

Law of this room: nothing outside that subtree is written, and v1 hierarchies are not looked at.  The hierarchy is
mounted in the spawner's own mount namespace, so that where the host shows it does not matter.
"""

from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path

from cage_runtime.errors import HostUnsupported
from cage_runtime.spawner import syscall
from cage_runtime.spawner.spec import Limits

CPU_PERIOD = 100_000
"""Microseconds, the kernel's default period of cpu.max."""
WANTED = ("cpu", "io", "memory", "pids")
SCOPE = "cages.scope"
SWAP = "memory.swap.max"
"""Not on a kernel without swap accounting."""


class Subtree:
    """Where the cages' cgroups are: `cage-runtime` at the top, or below a scope that systemd has delegated."""

    def __init__(self, mount_point: Path, name: str) -> None:
        self._mount = mount_point
        mount_point.mkdir(parents=True, exist_ok=True)
        try:
            flags = syscall.MS_NOSUID | syscall.MS_NODEV | syscall.MS_NOEXEC
            syscall.mount("cgroup2", str(mount_point), "cgroup2", flags)
        except OSError as error:
            raise HostUnsupported(f"cgroup v2 cannot be mounted on this host: {error.strerror}") from error
        self.path = self._delegated(name) if self._is_systemds() else mount_point / name
        self.path.mkdir(exist_ok=True)
        self.controllers = self._enable()

    def _is_systemds(self) -> bool:
        """Whether systemd manages what is mounted here: sd_booted(3), and its own scope is below this root."""
        return Path("/run/systemd/system").is_dir() and (self._mount / "init.scope").is_dir()

    def _delegated(self, name: str) -> Path:
        scope = self._mount / "cages.slice" / SCOPE
        if not scope.is_dir():
            # A process has to hold the scope, or systemd removes it; it outlives us, as the cages do.
            try:
                subprocess.run(
                    ["/usr/bin/systemd-run", "--quiet", "--collect", "--slice=cages.slice", f"--unit={SCOPE}",
                     "--scope", "--property=Delegate=yes", "/bin/sh", "-c", "sleep infinity & echo"],
                    check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, timeout=30,
                    env={"PATH": "/usr/bin:/bin"},
                )
            except subprocess.SubprocessError as error:
                raise HostUnsupported(f"systemd delegates no cgroup to cages: {error}; see its journal") from error
        holder = scope / "holder"
        holder.mkdir(exist_ok=True)
        for pid in (scope / "cgroup.procs").read_text(encoding="ascii").split():
            (holder / "cgroup.procs").write_text(pid, encoding="ascii")
        self._switch_on(scope)
        return scope / name

    def _enable(self) -> frozenset[str]:
        if self.path.parent == self._mount:
            self._switch_on(self._mount)
        return self._switch_on(self.path)

    @staticmethod
    def _switch_on(directory: Path) -> frozenset[str]:
        offered = (directory / "cgroup.controllers").read_text(encoding="ascii").split()
        wanted = [controller for controller in WANTED if controller in offered]
        if wanted:
            (directory / "cgroup.subtree_control").write_text(" ".join(f"+{c}" for c in wanted), encoding="ascii")
        return frozenset(wanted)

    def create(self, uuid: str, limits: Limits) -> Cgroup:
        """A cgroup with `limits` in force; OSError where the kernel takes one of them not."""
        cgroup = Cgroup(self.path / uuid)
        cgroup.path.mkdir()
        try:
            for file, value in settings(limits):
                (cgroup.path / file).write_text(value, encoding="ascii")
            if limits.memory is not None and (cgroup.path / SWAP).exists():
                # Else what is over the limit would be swapped out, for as long as the host has room for that.
                (cgroup.path / SWAP).write_text("0", encoding="ascii")
        except OSError:
            cgroup.path.rmdir()
            raise
        return cgroup

    def close(self) -> None:
        """Remove the subtree, unless cages go on in it."""
        try:
            self.path.rmdir()
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EBUSY):
                raise

    def existing(self) -> list[str]:
        return [entry.name for entry in self.path.iterdir() if entry.is_dir()]


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


class Cgroup:
    """One cage's cgroup."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def open(self) -> int:
        return os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def open_events(self) -> int:
        """cgroup.events: poll it for POLLPRI, then read it from the start."""
        return os.open(self.path / "cgroup.events", os.O_RDONLY | os.O_CLOEXEC)

    def kill(self) -> None:
        (self.path / "cgroup.kill").write_text("1", encoding="ascii")

    def freeze(self, *, frozen: bool) -> None:
        (self.path / "cgroup.freeze").write_text("1" if frozen else "0", encoding="ascii")

    def populated(self) -> bool:
        return "populated 1" in (self.path / "cgroup.events").read_text(encoding="ascii")

    def frozen(self) -> bool:
        return "frozen 1" in (self.path / "cgroup.events").read_text(encoding="ascii")

    def processes(self) -> int:
        """How many there are in it and below."""
        return sum(
            len(Path(directory, "cgroup.procs").read_text(encoding="ascii").split())
            for directory, _, _ in os.walk(self.path)
        )

    def remove(self) -> None:
        """Remove it and what the cage made below it; nothing may be left in it."""
        for directory, _, _ in os.walk(self.path, topdown=False):
            os.rmdir(directory)
