# SPDX-License-Identifier: LGPL-2.1-or-later
"""How a small guest is booted, and which tests want it so.  Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from tests.vm.host.plan import TOP
from tests.vm.host.recipe import Suite


class Kernel(StrEnum):
    """By the version that people know it by: the stock kernel of a suite of Debian's."""

    BOOKWORM = "6.1"
    TRIXIE = "6.12"

    @property
    def suite(self) -> Suite:
        return {Kernel.BOOKWORM: Suite.BOOKWORM, Kernel.TRIXIE: Suite.TRIXIE}[self]


@dataclass(frozen=True, kw_only=True)
class Boot:
    name: str
    folders: tuple[str, ...]
    """Of tests that run in it when all are to."""
    kernel_line: str = ""
    emulation: tuple[str, ...] = ("-accel", "tcg,thread=multi,tb-size=512")


PLAIN = Boot(name="plain", folders=("tests/kernels/lsm",))
BOOTS = (
    PLAIN,
    Boot(name="without-bpf", folders=("tests/kernels/without_bpf",),
         kernel_line="lsm=landlock,lockdown,yama,integrity"),
    Boot(name="preempt", folders=("tests/kernels/preempt",), kernel_line="preempt=full"),
    # One instruction is one nanosecond of the guest's clocks: what they measure is the same on every machine.
    Boot(name="cost", folders=("tests/kernels/cost",),
         emulation=("-accel", "tcg,thread=single,tb-size=512", "-icount", "shift=0")),
)
MACHINE = ("-machine", "q35", "-cpu", "max", "-smp", "1", "-m", "1536", "-nodefaults", "-no-user-config", "-no-reboot",
           "-display", "none", "-serial", "stdio", "-monitor", "none", "-device", "virtio-rng-pci")
KERNEL_LINE = "console=ttyS0 quiet panic=-1 mitigations=off root=/dev/nvme0n1 rw init=/init"


def emulator(boot: Boot, kernel: Path, root: Path, task: Path) -> list[str]:
    """QEMU's arguments.  The root disk's driver is part of the kernel, so that there is no initial file system; the
    task's is another kind, so that the two cannot change places.  What is written to the root disk is forgotten."""
    return [
        *MACHINE, *boot.emulation, "-kernel", str(kernel), "-append", f"{KERNEL_LINE} {boot.kernel_line}".rstrip(),
        "-drive", f"file={root},format=raw,if=none,id=root,snapshot=on", "-device", "nvme,drive=root,serial=root",
        "-drive", f"file={task},format=raw,if=none,id=task,cache=unsafe", "-device", "virtio-blk-pci,drive=task",
    ]


def planned(arguments: Sequence[str], top: Path = TOP) -> list[tuple[Boot, list[str]]]:
    """The boots that are needed, each with pytest's arguments: all of them, or those of the tests that are named.

    A test outside of the folders above, of any tier, runs in the plain one.
    """
    paths = [word for word in arguments if word.startswith("tests/")]
    options = [word for word in arguments if word not in paths]
    if not paths:
        paths = [folder for boot in BOOTS for folder in boot.folders if any((top / folder).glob("test_*.py"))]
    plan: dict[str, tuple[Boot, list[str]]] = {}
    for path in paths:
        boot = _boot_of(path.partition("::")[0])
        plan.setdefault(boot.name, (boot, [*options]))[1].append(path)
    return list(plan.values())


def _boot_of(path: str) -> Boot:
    return next((boot for boot in BOOTS for folder in boot.folders if Path(path).is_relative_to(folder)), PLAIN)
