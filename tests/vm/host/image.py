# SPDX-License-Identifier: LGPL-2.1-or-later
"""The disk of the machine under test: a stock distribution from its packages, with the agent in it.

Needs root and the distribution's archive; makes no mount of its own and no loop device.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.vm.agent import PORT_NAME
from tests.vm.host.initrd import initrd
from tests.vm.host.recipe import DISK_BYTES, UNITS_LEFT_OUT, Recipe

AGENT = Path(__file__).parents[1] / "agent.py"
INSTALLED_AGENT = "/usr/local/sbin/test-agent"
PORT = f"/dev/virtio-ports/{PORT_NAME}"
SERVICE = f"""[Unit]
Description=Agent of the tests
BindsTo=dev-virtio\\x2dports-{PORT_NAME}.device
After=dev-virtio\\x2dports-{PORT_NAME}.device dbus.service systemd-logind.service

[Service]
ExecStart=/usr/bin/python3 -IS {INSTALLED_AGENT} {PORT}
# What a test leaves running is the test's, and must not depend on the agent's life.
KillMode=process
Delegate=yes
OOMScoreAdjust=-900

[Install]
WantedBy=multi-user.target
"""
# Of another file system's options, mmdebstrap leaves these two behind; a stock host has neither.
LEFT_BEHIND = ("etc/apt/apt.conf.d/99mmdebstrap", "etc/dpkg/dpkg.cfg.d/99mmdebstrap")


@dataclass(frozen=True, kw_only=True)
class Files:
    """What a machine starts from, in one directory."""

    directory: Path

    @property
    def kernel(self) -> Path:
        return self.directory / "vmlinuz"

    @property
    def initrd(self) -> Path:
        return self.directory / "initrd"

    @property
    def disk(self) -> Path:
        """The distribution as it was installed, raw."""
        return self.directory / "root.ext4"

    @property
    def booted_disk(self) -> Path:
        """What the first boot has written, over `disk`."""
        return self.directory / "booted.qcow2"

    @property
    def memory(self) -> Path:
        """The machine as it was when its first boot had come to rest, without its disk."""
        return self.directory / "memory.zst"


def build(recipe: Recipe, directory: Path) -> Files:
    """Make kernel, initial file system and disk in an empty directory; CalledProcessError where a tool fails."""
    files = Files(directory=directory)
    root = directory / "root"
    install(recipe, root)
    _arrange(root)
    copy_kernel(root, files.kernel)
    files.initrd.write_bytes(initrd(root))
    make_disk(root, files.disk, DISK_BYTES)
    shutil.rmtree(root)
    return files


def copy_kernel(root: Path, place: Path) -> None:
    (kernel,) = (root / "boot").glob("vmlinuz-*")
    shutil.copy(kernel, place)


def make_disk(tree: Path, disk: Path, size: int) -> None:
    """An ext4 file system of `size` bytes in a new file, with what is in the directory `tree`."""
    with disk.open("wb") as file:
        file.truncate(size)
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-E", "lazy_itable_init=0,lazy_journal_init=0", "-d", tree, "-L",
                    "root", disk], check=True)


def install(recipe: Recipe, root: Path) -> None:
    """The packages; an initial file system is not made of them, because we have our own."""
    subprocess.run(["mmdebstrap", "--quiet", "--variant=apt", "--mode=root", "--format=directory",
                    f"--include={','.join(recipe.packages)}", '--aptopt=APT::Install-Recommends "false"',
                    '--aptopt=Acquire::Languages "none"', "--dpkgopt=force-unsafe-io", recipe.suite, root],
                   check=True, stdin=subprocess.DEVNULL, env={**os.environ, "INITRD": "No"})


def _arrange(root: Path) -> None:
    for name in LEFT_BEHIND:
        (root / name).unlink()
    (root / "etc/hostname").write_text("machine\n", encoding="utf-8")
    (root / "etc/machine-id").write_text("", encoding="utf-8")
    (root / "etc/fstab").write_text("", encoding="utf-8")
    units = root / "etc/systemd/system"
    for unit in UNITS_LEFT_OUT:
        (units / unit).unlink(missing_ok=True)
        (units / unit).symlink_to("/dev/null")
    agent = root / INSTALLED_AGENT.lstrip("/")
    shutil.copyfile(AGENT, agent)
    (units / "test-agent.service").write_text(SERVICE, encoding="utf-8")
    wants = units / "multi-user.target.wants"
    wants.mkdir(exist_ok=True)
    (wants / "test-agent.service").symlink_to("../test-agent.service")
