# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which walls this host has, and what becomes of a cage that requires one that it lacks.

Law of this room: a wall is there when the kernel was seen to enforce it, and what requires one that is not there does
not run (law 1).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cage_runtime.config import Definition
from cage_runtime.errors import HostUnsupported
from cage_runtime.model import Wall
from cage_runtime.spawner.spec import Enforcement, Host

LANDLOCK_ADDED = {1: "files (Linux 5.13)", 4: "TCP (6.7)", 6: "abstract sockets and signals (6.12)"}
"""What the rules of Landlock that cages have are about, by the first ABI that has them (landlock(7))."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Standing:
    """How one wall stands around one cage."""

    wall: Wall
    enforced: bool
    detail: str
    """What of it there is, or why it is not there."""


def landlock_lacks(abi: int) -> str:
    """What Landlock's rules cannot be about on a kernel of that ABI; empty where it has all that cages use."""
    return ", ".join(what for since, what in LANDLOCK_ADDED.items() if abi < since)


def missing(host: Host) -> dict[Wall, str]:
    """The walls that this host lacks, of those that a definition can require, and why, a sentence each."""
    found = {Wall.LSM: host.lsm} if host.lsm else {}
    if lacks := landlock_lacks(host.landlock_abi):
        found[Wall.LANDLOCK] = f"this kernel's Landlock, ABI {host.landlock_abi}, has no rules about {lacks}"
    return found


def check_required(definition: Definition, lacking: Mapping[Wall, str]) -> None:
    """HostUnsupported unless this host has what the definition requires."""
    for name in definition.require:
        if why := lacking.get(Wall(name)):
            raise HostUnsupported(f'the definition requires "{name}", which is not enforced here: {why}')


def around(enforcement: Enforcement, host: Host) -> list[Standing]:
    """The walls around a cage that runs."""
    lacks = landlock_lacks(host.landlock_abi)
    landlock = f"ABI {host.landlock_abi}" + (f", without rules about {lacks}" if lacks else "")
    return [
        Standing(wall=Wall.NAMESPACES, enforced=True, detail="of its own"),
        Standing(wall=Wall.SECCOMP, enforced=True, detail="an allow-list of system calls"),
        Standing(wall=Wall.LANDLOCK, enforced=not lacks, detail=landlock),
        Standing(wall=Wall.LSM, enforced=not enforcement.lsm, detail=enforcement.lsm or f"context {enforcement.xid}"),
    ]
