# SPDX-License-Identifier: LGPL-2.1-or-later
"""The steps of which a cage's root is assembled, as values that can be printed and carried out.

Law of this room: every path below is in a directory that only root can write, so that nothing can be swapped
between the steps; a step says what it will do (`describe`) and does just that (`execute`).
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from typing import Protocol

from cage_runtime.spawner import syscall


class Operation(Protocol):
    def describe(self) -> str: ...

    def execute(self, root: str) -> None: ...


_NAMES = {syscall.MS_RDONLY: "ro", syscall.MS_NOSUID: "nosuid", syscall.MS_NODEV: "nodev", syscall.MS_NOEXEC: "noexec"}

SEALED = syscall.MS_NOSUID | syscall.MS_NODEV | syscall.MS_NOEXEC
PROGRAMS = syscall.MS_RDONLY | syscall.MS_NOSUID | syscall.MS_NODEV


def _flags(flags: int) -> str:
    return ",".join(name for bit, name in _NAMES.items() if flags & bit)


@dataclass(frozen=True, kw_only=True, slots=True)
class Tmpfs:
    """A file system in memory with bounds on bytes and inodes, owned by `owner` on the host."""

    target: str
    flags: int
    size: int
    files: int = 4096
    mode: int = 0o755
    owner: int = 0

    def describe(self) -> str:
        return f"tmpfs {self.target or '/'} {_flags(self.flags)} size={self.size} mode={self.mode:o} uid={self.owner}"

    def execute(self, root: str) -> None:
        data = f"size={self.size},nr_inodes={self.files},mode={self.mode:o},uid={self.owner},gid={self.owner}"
        syscall.mount("tmpfs", root + self.target, "tmpfs", self.flags, data)


@dataclass(frozen=True, kw_only=True, slots=True)
class Overlay:
    """Read-only layers as a superblock of the cage's own, so that no lock or watch on them is seen elsewhere."""

    target: str
    layers: tuple[str, ...]
    flags: int = PROGRAMS

    def describe(self) -> str:
        return f"overlay {self.target} {_flags(self.flags)} of {' over '.join(self.layers)}"

    def execute(self, root: str) -> None:
        layers = ":".join(layer.replace("@", root, 1) if layer.startswith("@") else layer for layer in self.layers)
        syscall.mount("overlay", root + self.target, "overlay", self.flags, f"lowerdir={layers}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Bind:
    """A directory of the host, with flags that the cage cannot take off again."""

    source: str
    target: str
    attributes: int

    def describe(self) -> str:
        return f"bind {self.source} {self.target} {_flags(self.attributes)}"

    def execute(self, root: str) -> None:
        syscall.mount(self.source, root + self.target, None, syscall.MS_BIND)
        syscall.mount_setattr(-1, root + self.target, 0, self.attributes)


@dataclass(frozen=True, kw_only=True, slots=True)
class Directory:
    path: str
    mode: int = 0o755
    owner: int = 0

    def describe(self) -> str:
        return f"directory {self.path} {self.mode:o} uid={self.owner}"

    def execute(self, root: str) -> None:
        os.mkdir(root + self.path, self.mode)
        os.chmod(root + self.path, self.mode)
        os.chown(root + self.path, self.owner, self.owner)


@dataclass(frozen=True, kw_only=True, slots=True)
class File:
    path: str
    content: str
    mode: int = 0o644
    owner: int = 0

    def describe(self) -> str:
        return f"file {self.path} {self.mode:o} uid={self.owner} {len(self.content)} bytes"

    def execute(self, root: str) -> None:
        descriptor = os.open(root + self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, self.mode)
        try:
            os.write(descriptor, self.content.encode())
            os.fchmod(descriptor, self.mode)
            os.fchown(descriptor, self.owner, self.owner)
        finally:
            os.close(descriptor)


@dataclass(frozen=True, kw_only=True, slots=True)
class Link:
    path: str
    to: str

    def describe(self) -> str:
        return f"link {self.path} -> {self.to}"

    def execute(self, root: str) -> None:
        os.symlink(self.to, root + self.path)


@dataclass(frozen=True, kw_only=True, slots=True)
class Device:
    """A character device in the cage's own tmpfs: binding the host's would share its superblock."""

    path: str
    major: int
    minor: int

    def describe(self) -> str:
        return f"device {self.path} {self.major}:{self.minor}"

    def execute(self, root: str) -> None:
        os.mknod(root + self.path, stat.S_IFCHR | 0o666, os.makedev(self.major, self.minor))
        os.chmod(root + self.path, 0o666)  # noqa: S103 - as every /dev has it


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadOnly:
    """The mount at `target` can be written no more."""

    target: str

    def describe(self) -> str:
        return f"read-only {self.target or '/'}"

    def execute(self, root: str) -> None:
        syscall.mount_setattr(-1, root + self.target, 0, syscall.MOUNT_ATTR_RDONLY)
