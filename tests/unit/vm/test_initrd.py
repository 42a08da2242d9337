# SPDX-License-Identifier: LGPL-2.1-or-later
"""The small initial file system: what other tools read in it, and the order of its modules."""

from __future__ import annotations

import stat
import subprocess
from pathlib import Path

import pytest

from tests.vm.host.initrd import Entry, archive, in_order

DEPENDENCIES = """kernel/ext4.ko.xz: kernel/mbcache.ko.xz kernel/jbd2.ko.xz
kernel/jbd2.ko.xz:
kernel/mbcache.ko.xz:
kernel/virtio.ko:
kernel/virtio_ring.ko: kernel/virtio.ko
kernel/virtio_blk.ko: kernel/virtio_ring.ko kernel/virtio.ko
"""
BUILTIN = "kernel/crc32c_generic.ko\n"


def test_the_archive_is_what_cpio_reads(tmp_path: Path) -> None:
    entries = [Entry(name="bin", mode=stat.S_IFDIR | 0o755),
               Entry(name="bin/busybox", mode=stat.S_IFREG | 0o755, content=b"program"),
               Entry(name="bin/sh", mode=stat.S_IFLNK | 0o777, content=b"busybox"),
               Entry(name="odd", mode=stat.S_IFREG | 0o600, content=b"12345")]
    subprocess.run(["busybox", "cpio", "-i"], input=archive(entries), cwd=tmp_path, check=True, capture_output=True)
    assert (tmp_path / "bin/sh").readlink() == Path("busybox")
    assert (tmp_path / "bin/sh").read_bytes() == b"program"
    assert (tmp_path / "bin/busybox").stat().st_mode == stat.S_IFREG | 0o755
    assert (tmp_path / "odd").read_bytes() == b"12345"


def test_a_module_comes_after_what_it_needs_and_once() -> None:
    order = in_order(("virtio_blk", "ext4", "virtio_ring"), DEPENDENCIES, BUILTIN)
    assert [Path(file).name for file in order] == [
        "virtio.ko", "virtio_ring.ko", "virtio_blk.ko", "mbcache.ko.xz", "jbd2.ko.xz", "ext4.ko.xz"]


def test_what_is_built_in_needs_no_file() -> None:
    assert in_order(("crc32c_generic",), DEPENDENCIES, BUILTIN) == []


def test_a_module_that_there_is_not_is_an_error() -> None:
    with pytest.raises(LookupError, match="this kernel has no module nvme"):
        in_order(("nvme",), DEPENDENCIES, BUILTIN)
