# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the machine under test is made of, and the key under which its image is kept.

Pure: no file is read here.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from enum import StrEnum

from tests.vm.agent import PORT_NAME


class Suite(StrEnum):
    """The distributions on which the runtime is shown, each with its own kernel."""

    BOOKWORM = "bookworm"
    TRIXIE = "trixie"


KERNEL = "linux-image-cloud-amd64"

HOST = (
    KERNEL, "apparmor", "bash-completion", "busybox-static", "ca-certificates", "dbus", "dbus-bin", "e2fsprogs",
    "flatpak", "iproute2", "kmod", "libpam-systemd", "man-db", "nftables", "passwd", "polkitd", "procps", "sudo",
    "systemd", "systemd-container", "systemd-sysv", "udev", "util-linux",
)
"""A stock host, as an administrator has it before the runtime comes."""

FOR_TESTS = ("openssh-client", "python3", "python3-cryptography", "python3-pytest", "python3-prctl",
             "python3-dbus-next", "python3-seccomp", "strace")

UNITS_LEFT_OUT = (
    "apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "e2scrub_all.timer",
    "e2scrub_reap.service", "fstrim.timer", "getty@tty1.service", "man-db.timer", "serial-getty@ttyS0.service",
    "systemd-timesyncd.service",
)
"""They wake up when they like, wait for a terminal or for a network, and cost an emulated machine seconds."""

# Emulation explicitly: where there is a /dev/kvm that does not work, a default would pick it.  One processor, because
# QEMU 7.2 emulates two unsoundly.  virtio-blk, because a machine on nvme cannot be saved.
MACHINE = (
    "-machine", "q35", "-accel", "tcg,thread=multi,tb-size=512", "-cpu", "max", "-smp", "1", "-m", "1280",
    "-nodefaults", "-no-user-config", "-display", "none",
    "-device", "virtio-rng-pci", "-device", "virtio-serial-pci",
    "-device", f"virtserialport,chardev=agent,name={PORT_NAME}",
    "-device", "virtio-blk-pci,drive=root",
)
KERNEL_LINE = "console=ttyS0 quiet panic=-1 systemd.show_status=0"
DISK_BYTES = 4 << 30


@dataclass(frozen=True, kw_only=True)
class Recipe:
    suite: Suite
    packages: tuple[str, ...]
    """By name; what they need comes with them."""
    emulator: str
    """QEMU's version: another one cannot read a saved state."""
    made_by: str
    """A digest of the code that makes the image."""

    @property
    def key(self) -> str:
        """Another one for anything that another image would come of."""
        parts = [self.suite, sorted(self.packages), self.emulator, self.made_by, UNITS_LEFT_OUT, MACHINE, KERNEL_LINE,
                 DISK_BYTES]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def dependencies(field: str) -> tuple[str, ...]:
    """The packages that a Depends field of Debian's names: of alternatives the first, without versions."""
    first = (relation.split("|")[0].split("(")[0].split(":")[0].strip() for relation in field.split(","))
    return tuple(sorted({name for name in first if name}))


def packages(*depends: str) -> tuple[str, ...]:
    """Of the whole image: ours are installed where there is no network, so that what they depend on is there before."""
    return tuple(sorted({*HOST, *FOR_TESTS, *(name for field in depends for name in dependencies(field))}))
