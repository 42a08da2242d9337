# SPDX-License-Identifier: LGPL-2.1-or-later
"""The steps of which a cage's root is assembled, as values that can be printed and carried out.

Law of this room: nothing is named twice.  A step works on what a descriptor is of: the root, a directory beneath it
that was reached without a link, a file system that is not attached yet, a directory of the host that is held open.
So what was looked at is what is used.  A step says what it will do (`describe`) and does just that (`execute`).
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cage_runtime.spawner import syscall

_FLAGS = {
    syscall.MOUNT_ATTR_RDONLY: "ro", syscall.MOUNT_ATTR_NOSUID: "nosuid", syscall.MOUNT_ATTR_NODEV: "nodev",
    syscall.MOUNT_ATTR_NOEXEC: "noexec", syscall.MOUNT_ATTR_NOSYMFOLLOW: "nosymfollow",
}
NOEXEC = syscall.MOUNT_ATTR_NOEXEC
SEALED = syscall.MOUNT_ATTR_NOSUID | syscall.MOUNT_ATTR_NODEV | NOEXEC
PROGRAMS = syscall.MOUNT_ATTR_RDONLY | syscall.MOUNT_ATTR_NOSUID | syscall.MOUNT_ATTR_NODEV

_BENEATH = syscall.RESOLVE_BENEATH | syscall.RESOLVE_NO_SYMLINKS | syscall.RESOLVE_NO_MAGICLINKS
FOLDER = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def _flags(attributes: int) -> str:
    return ",".join(name for bit, name in _FLAGS.items() if attributes & bit)


@contextmanager
def opened(descriptor: int) -> Iterator[int]:
    """The descriptor, closed at the end."""
    try:
        yield descriptor
    finally:
        os.close(descriptor)


class Root:
    """The directory that steps are carried out in: a path of theirs begins there, and never leads out of it."""

    def __init__(self, directory: int) -> None:
        """On the directory whose descriptor it is; it is not ours to close."""
        self._directory, self._mounted = directory, -1

    @property
    def descriptor(self) -> int:
        return self._directory if self._mounted < 0 else self._mounted

    def __enter__(self) -> Root:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._mounted >= 0:
            os.close(self._mounted)
            self._mounted = -1

    def open(self, path: str, flags: int = FOLDER, resolve: int = 0) -> int:
        """What `path` is, reached without a link."""
        return syscall.openat2(self.descriptor, path.lstrip("/") or ".", flags | os.O_NOFOLLOW, _BENEATH | resolve)

    @contextmanager
    def parent(self, path: str) -> Iterator[tuple[int, str]]:
        """The directory that `path` is in, and its name there."""
        directory, _, name = path.lstrip("/").rpartition("/")
        if not directory:
            yield self.descriptor, name
            return
        with opened(self.open(directory)) as descriptor:
            yield descriptor, name

    def is_mount(self, path: str) -> bool:
        """Whether something is mounted at `path`, or above it beneath us."""
        try:
            os.close(self.open(path, resolve=syscall.RESOLVE_NO_XDEV))
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            return True
        return False

    def attach(self, mount: int, target: str) -> None:
        """Attach the detached `mount` at `target`; at "" it is what we begin at from now on."""
        with opened(self.open(target)) as directory:
            held = -1 if target else os.dup(mount)  # first: what is mounted is known to be
            try:
                syscall.move_mount(mount, directory)
            except OSError:
                if held >= 0:
                    os.close(held)
                raise
        if not target:
            self.close()
            self._mounted = held

    def detach(self, target: str) -> None:
        """Take off the mount at `target`, which goes when nobody uses it any more."""
        with opened(self.open(target)) as directory:
            syscall.umount2(f"/proc/self/fd/{directory}", syscall.MNT_DETACH)


@contextmanager
def exact_modes() -> Iterator[None]:
    """Files get the modes that steps say, whatever the umask."""
    mask = os.umask(0)
    try:
        yield
    finally:
        os.umask(mask)


class Operation(Protocol):
    def describe(self) -> str: ...

    def execute(self, root: Root) -> None: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """A directory of the host that is held open: what was looked at is what will be mounted, whatever its name is."""

    name: str
    """For people."""
    descriptor: int

    @staticmethod
    def of(path: Path) -> Source:
        """The directory at `path`, whose parents are root's; its last name may be no link."""
        return Source(name=str(path), descriptor=os.open(path, FOLDER))


# --- mounts ------------------------------------------------------------------------------------------------------
def file_system(kind: str, attributes: int, **options: str) -> int:
    """A new file system as a detached mount."""
    with opened(syscall.fsopen(kind)) as context:
        syscall.fsconfig(context, syscall.FSCONFIG_SET_STRING, "source", kind)
        for key, value in options.items():
            syscall.fsconfig(context, syscall.FSCONFIG_SET_STRING, key, value)
        if attributes & syscall.MOUNT_ATTR_RDONLY:
            syscall.fsconfig(context, syscall.FSCONFIG_SET_FLAG, "ro")
        syscall.fsconfig(context, syscall.FSCONFIG_CMD_CREATE)
        return syscall.fsmount(context, attributes)


def tree_of(descriptor: int, attributes: int) -> int:
    """The mount that the descriptor is in, from there on, detached and with `attributes`: without those on it."""
    tree = _clone(descriptor)
    try:
        syscall.mount_setattr(tree, "", syscall.AT_EMPTY_PATH, attributes)
    except OSError:
        os.close(tree)
        raise
    return tree


@dataclass(frozen=True, kw_only=True, slots=True)
class FileSystem:
    """A file system of the kernel's own, with its options."""

    kind: str
    target: str
    attributes: int
    options: tuple[tuple[str, str], ...] = ()

    def describe(self) -> str:
        options = "".join(f" {key}={value}" for key, value in self.options)
        return f"{self.kind} {self.target} {_flags(self.attributes)}{options}"

    def execute(self, root: Root) -> None:
        with opened(file_system(self.kind, self.attributes, **dict(self.options))) as mount:
            root.attach(mount, self.target)


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

    def execute(self, root: Root) -> None:
        owner = {} if self.owner == 0 else {"uid": str(self.owner), "gid": str(self.owner)}
        bounds = {"size": str(self.size), "nr_inodes": str(self.files), "mode": f"{self.mode:o}"}
        with opened(file_system("tmpfs", self.flags, **bounds, **owner)) as mount:
            root.attach(mount, self.target)


@dataclass(frozen=True, kw_only=True, slots=True)
class Overlay:
    """Read-only layers as a superblock of the cage's own, so that no lock or watch on them is seen elsewhere.

    They are named by descriptors, so that the cage's table of mounts says nothing of where they are.
    """

    target: str
    layers: tuple[str, ...]
    """Paths of the host, root's; one with "@" is of what is assembled."""
    flags: int = PROGRAMS

    def describe(self) -> str:
        return f"overlay {self.target} {_flags(self.flags)} of {' over '.join(self.layers)}"

    def execute(self, root: Root) -> None:
        held: list[int] = []
        try:
            for layer in self.layers:
                inside = layer.startswith("@")
                held.append(root.open(layer[1:]) if inside else os.open(layer, FOLDER & ~os.O_NOFOLLOW))
            names = ":".join(f"/proc/self/fd/{descriptor}" for descriptor in held)
            with opened(file_system("overlay", self.flags, lowerdir=names)) as mount:
                root.attach(mount, self.target)
        finally:
            for descriptor in held:
                os.close(descriptor)


@dataclass(frozen=True, kw_only=True, slots=True)
class Bind:
    """A directory of the host, with flags that the cage cannot take off again."""

    source: Source
    target: str
    attributes: int

    def describe(self) -> str:
        return f"bind {self.source.name} {self.target} {_flags(self.attributes)}"

    def execute(self, root: Root) -> None:
        with opened(tree_of(self.source.descriptor, self.attributes)) as tree:
            root.attach(tree, self.target)


@dataclass(frozen=True, kw_only=True, slots=True)
class Again:
    """A mount that is in the root already, at a second place."""

    source: str
    target: str

    def describe(self) -> str:
        return f"{self.source} again at {self.target}"

    def execute(self, root: Root) -> None:
        with opened(root.open(self.source)) as source, opened(_clone(source)) as tree:
            root.attach(tree, self.target)


@dataclass(frozen=True, kw_only=True, slots=True)
class Masks:
    """Over files and directories of the root's own procfs: others of the root, if this kernel has what they hide.

    What is masked is what the procfs has there itself: nothing that is mounted on it, and no link (attacks that mask
    something else by a swap, as CVE-2025-31133).  What masks is on a mount that is sealed and read-only already.
    """

    over: tuple[tuple[str, str], ...]
    """(beneath the procfs, what is put there)."""
    proc: str = "/proc"

    def describe(self) -> str:
        return f"masks over {self.proc}: {' '.join(name for name, _ in self.over)}"

    def execute(self, root: Root) -> None:
        with opened(root.open(self.proc)) as proc:
            if syscall.file_system(proc) != syscall.PROC_SUPER_MAGIC:
                raise OSError(errno.ENOTUNIQ, "not a procfs", self.proc)
            for mask in sorted({mask for _, mask in self.over}):
                with opened(root.open(mask, os.O_PATH)) as source:
                    for name in (name for name, its in self.over if its == mask):
                        _cover(Root(proc), name, source)


def _cover(proc: Root, name: str, source: int) -> None:
    try:
        target = proc.open(name, os.O_PATH, syscall.RESOLVE_NO_XDEV)
    except FileNotFoundError:  # this kernel was built without it
        return
    with opened(target), opened(_clone(source)) as tree:
        syscall.move_mount(tree, target)


def _clone(descriptor: int) -> int:
    return syscall.open_tree(descriptor, "", syscall.AT_EMPTY_PATH | syscall.OPEN_TREE_CLONE)


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadOnly:
    """The mount at `target` can be written no more."""

    target: str

    def describe(self) -> str:
        return f"read-only {self.target or '/'}"

    def execute(self, root: Root) -> None:
        with opened(root.open(self.target)) as directory:
            syscall.mount_setattr(directory, "", syscall.AT_EMPTY_PATH, syscall.MOUNT_ATTR_RDONLY)


# --- files -------------------------------------------------------------------------------------------------------
def _give(parent: int, name: str, owner: int) -> None:
    if owner:
        os.chown(name, owner, owner, dir_fd=parent, follow_symlinks=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class Directory:
    path: str
    mode: int = 0o755
    owner: int = 0

    def describe(self) -> str:
        return f"directory {self.path} {self.mode:o} uid={self.owner}"

    def execute(self, root: Root) -> None:
        with root.parent(self.path) as (parent, name):
            os.mkdir(name, self.mode, dir_fd=parent)
            _give(parent, name, self.owner)


@dataclass(frozen=True, kw_only=True, slots=True)
class File:
    path: str
    content: str
    mode: int = 0o644
    owner: int = 0

    def describe(self) -> str:
        return f"file {self.path} {self.mode:o} uid={self.owner} {len(self.content)} bytes"

    def execute(self, root: Root) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with root.parent(self.path) as (parent, name), opened(os.open(name, flags, self.mode, dir_fd=parent)) as file:
            os.write(file, self.content.encode())
            if self.owner:
                os.fchown(file, self.owner, self.owner)


@dataclass(frozen=True, kw_only=True, slots=True)
class Link:
    path: str
    to: str

    def describe(self) -> str:
        return f"link {self.path} -> {self.to}"

    def execute(self, root: Root) -> None:
        with root.parent(self.path) as (parent, name):
            os.symlink(self.to, name, dir_fd=parent)


@dataclass(frozen=True, kw_only=True, slots=True)
class Device:
    """A character device in the cage's own tmpfs: binding the host's would share its superblock."""

    path: str
    major: int
    minor: int

    def describe(self) -> str:
        return f"device {self.path} {self.major}:{self.minor}"

    def execute(self, root: Root) -> None:
        with root.parent(self.path) as (parent, name):
            os.mknod(name, stat.S_IFCHR | 0o666, os.makedev(self.major, self.minor), dir_fd=parent)
