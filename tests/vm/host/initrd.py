# SPDX-License-Identifier: LGPL-2.1-or-later
"""A small initial file system: the modules that reach a virtio disk with ext4 on it, and a shell that loads them."""

from __future__ import annotations

import lzma
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

WANTED = ("virtio_pci", "virtio_blk", "crc32c_generic", "ext4")
APPLETS = ("sh", "mount", "umount", "insmod", "sleep", "switch_root", "poweroff", "cat", "echo", "[")
INIT = """#!/bin/sh
mount -t devtmpfs dev /dev
for module in $(cat /order); do insmod /modules/$module; done
tries=0
while [ ! -b /dev/vda ] && [ $tries -lt 600 ]; do sleep 0.05; tries=$((tries + 1)); done
mount -t ext4 /dev/vda /root || { echo the root file system cannot be mounted >/dev/console; poweroff -f; }
mount --move /dev /root/dev
exec switch_root /root /sbin/init
"""


@dataclass(frozen=True, kw_only=True)
class Entry:
    name: str
    mode: int
    content: bytes = b""


def archive(entries: Iterable[Entry]) -> bytes:
    """A cpio archive as the kernel reads it (`newc`; Linux, Documentation/driver-api/early-userspace/buffer-format)."""
    out = bytearray()
    for number, entry in enumerate([*entries, Entry(name="TRAILER!!!", mode=0)], start=1):
        name = entry.name.encode() + b"\0"
        fields = (number, entry.mode, 0, 0, 1, 0, len(entry.content), 0, 0, 0, 0, len(name), 0)
        out += b"070701" + b"".join(b"%08X" % field for field in fields) + name
        out += b"\0" * (-len(out) % 4) + entry.content
        out += b"\0" * (-len(out) % 4)
    return bytes(out)


def in_order(wanted: Iterable[str], dependencies: str, builtin: str) -> list[str]:
    """The files of `wanted` modules and of those they need, each after what it needs.

    The two texts are a kernel's modules.dep and modules.builtin; LookupError where neither knows a module.
    """
    needs = {file: needed.split() for file, _, needed in (line.partition(":") for line in dependencies.splitlines())}
    files = {_name(file): file for file in needs}
    there = {_name(file) for file in builtin.splitlines()}
    order: list[str] = []

    def add(file: str) -> None:
        for needed in needs[file]:
            add(needed)
        if file not in order:
            order.append(file)

    for name in wanted:
        if name in files:
            add(files[name])
        elif name not in there:
            raise LookupError(f"this kernel has no module {name}")
    return order


def _name(file: str) -> str:
    return file.rpartition("/")[2].partition(".ko")[0]


def _module(file: Path) -> bytes:
    """A module as insmod takes it."""
    content = file.read_bytes()
    return lzma.decompress(content) if file.suffix == ".xz" else content


def initrd(root: Path) -> bytes:
    """Of the system whose tree is at `root`."""
    (modules,) = (root / "usr/lib/modules").iterdir()
    order = in_order(WANTED, (modules / "modules.dep").read_text(encoding="utf-8"),
                     (modules / "modules.builtin").read_text(encoding="utf-8"))
    entries = [Entry(name=name, mode=stat.S_IFDIR | 0o755) for name in ("bin", "dev", "modules", "root")]
    entries += [Entry(name=f"modules/{_name(file)}", mode=stat.S_IFREG | 0o644, content=_module(modules / file))
                for file in order]
    entries += [Entry(name=f"bin/{applet}", mode=stat.S_IFLNK | 0o777, content=b"busybox") for applet in APPLETS]
    entries += [
        Entry(name="bin/busybox", mode=stat.S_IFREG | 0o755, content=(root / "bin/busybox").read_bytes()),
        Entry(name="order", mode=stat.S_IFREG | 0o644, content="\n".join(map(_name, order)).encode()),
        Entry(name="init", mode=stat.S_IFREG | 0o755, content=INIT.encode()),
    ]
    return archive(entries)
