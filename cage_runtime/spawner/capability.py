# SPDX-License-Identifier: LGPL-2.1-or-later
"""Capabilities (capabilities(7)): what the spawner keeps of the host's and cage-init of its user namespace's, and that
a session has none.

python-prctl does no_new_privs, dumpable and securebits; its capability lists end at CAP_AUDIT_READ (37), so the
sets themselves are cleared here up to the kernel's last one.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import prctl

from cage_runtime.spawner import syscall

NAMES = (
    "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_SETGID",
    "CAP_SETUID", "CAP_SETPCAP", "CAP_LINUX_IMMUTABLE", "CAP_NET_BIND_SERVICE", "CAP_NET_BROADCAST", "CAP_NET_ADMIN",
    "CAP_NET_RAW", "CAP_IPC_LOCK", "CAP_IPC_OWNER", "CAP_SYS_MODULE", "CAP_SYS_RAWIO", "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE", "CAP_SYS_PACCT", "CAP_SYS_ADMIN", "CAP_SYS_BOOT", "CAP_SYS_NICE", "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME", "CAP_SYS_TTY_CONFIG", "CAP_MKNOD", "CAP_LEASE", "CAP_AUDIT_WRITE", "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP", "CAP_MAC_OVERRIDE", "CAP_MAC_ADMIN", "CAP_SYSLOG", "CAP_WAKE_ALARM", "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ", "CAP_PERFMON", "CAP_BPF", "CAP_CHECKPOINT_RESTORE",
)
"""By number (linux/capability.h)."""
CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_FOWNER, CAP_KILL, CAP_SETGID, CAP_SETUID, CAP_SETPCAP = 0, 1, 3, 5, 6, 7, 8
CAP_SYS_PTRACE, CAP_SYS_ADMIN, CAP_MKNOD = 19, 21, 27

SPAWNER = {
    CAP_CHOWN: "give files and directories to a cage's ids and to the core's other users",
    CAP_DAC_OVERRIDE: "make and delete what is in directories of theirs",
    CAP_FOWNER: "delete what is in a sticky directory of a cage's user, and set the mode of another's folder",
    CAP_SETGID: "map a cage's groups, and start a gateway's bus as caged's group",
    CAP_SETUID: "map a cage's users, and start a gateway's bus as caged",
    CAP_SETPCAP: "take all of these from cage-scopes and from a gateway's bus, and most from cage-syscalls",
    CAP_SYS_PTRACE: "have cage-syscalls write its answers into the memory of who called",
    CAP_SYS_ADMIN: "make mounts and namespaces",
    CAP_MKNOD: "make the devices of a cage",
}
"""What the spawner has to be able to do on the host, and for what: the bounding set of its unit, to which it confines
itself where there is none.  A cage's user namespace is its own, so that it needs no more for what is in there."""

INIT_CEILING = frozenset({CAP_CHOWN, CAP_KILL, CAP_SETGID, CAP_SETUID, CAP_SYS_ADMIN})
"""What cage-init needs for good: give pipes to a session, signal it, become it, and attach the applications
that the spawner hands over.  All of it counts in the cage's user namespace alone."""
INIT_USUAL = INIT_CEILING - {CAP_SYS_ADMIN}
"""What it has in force but while it attaches them."""


def last_capability() -> int:
    with open("/proc/sys/kernel/cap_last_cap", encoding="ascii") as file:
        return int(file.read())


LAST = last_capability()


class _Header(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]


class _Data(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint32) for name in ("effective", "permitted", "inheritable")]


_LIBC = ctypes.CDLL(None, use_errno=True)


def drop_bounding_set(keep: frozenset[int] = frozenset()) -> None:
    """No exec gives another capability than `keep` any more, in this process and all it starts; needs CAP_SETPCAP."""
    for capability in range(LAST + 1):
        if capability not in keep:
            syscall.capbset_drop(capability)


def _mask(capabilities: Iterable[int]) -> int:
    return sum(1 << capability for capability in capabilities)


def _sets(permitted: frozenset[int], effective: frozenset[int]) -> ctypes.Array[_Data]:
    held, used = _mask(permitted), _mask(effective)
    return (_Data * 2)(*(_Data(effective=used >> shift & 0xFFFFFFFF, permitted=held >> shift & 0xFFFFFFFF)
                         for shift in (0, 32)))


_HEADER = _Header(version=0x20080522)  # _LINUX_CAPABILITY_VERSION_3
_NONE = _sets(frozenset(), frozenset())
"""Made once: every command in a cage starts by holding nothing."""


def _held() -> tuple[frozenset[int], frozenset[int]]:
    """What this process may use, and what of it is in force."""
    sets = (_Data * 2)()
    if _LIBC.capget(ctypes.byref(_HEADER), sets) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), "capget")
    masks = sets[0].permitted | sets[1].permitted << 32, sets[0].effective | sets[1].effective << 32
    held, used = (frozenset(number for number in range(LAST + 1) if mask >> number & 1) for mask in masks)
    return held, used


def permitted() -> frozenset[int]:
    """What this process may use."""
    return _held()[0]


def hold(capabilities: frozenset[int], effective: frozenset[int] | None = None) -> None:
    """Drop everything else from the permitted, effective, inheritable and (so) ambient sets.

    `effective` are those in force, all of them unless said otherwise.
    """
    sets = _sets(capabilities, capabilities if effective is None else effective) if capabilities else _NONE
    if _LIBC.capset(ctypes.byref(_HEADER), sets) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), "capset")


def bound(capabilities: frozenset[int]) -> None:
    """Neither this process nor what it starts has others any more; needs CAP_SETPCAP."""
    drop_bounding_set(capabilities)
    hold(capabilities)


@contextmanager
def in_force() -> Iterator[None]:
    """All that is held, for as long as the context lasts, and then what was before."""
    held, usual = _held()
    hold(held)
    try:
        yield
    finally:
        hold(held, usual)


def lock_securebits() -> None:
    """uid 0 has no special meaning at exec, and nothing can change that (capabilities(7), securebits)."""
    prctl.set_securebits(
        prctl.SECBIT_NOROOT | prctl.SECBIT_NOROOT_LOCKED | prctl.SECBIT_KEEP_CAPS_LOCKED
        | prctl.SECBIT_NO_SETUID_FIXUP_LOCKED
    )


def one_way() -> None:
    """no_new_privs, and no process may look into this one (prctl(2), PR_SET_NO_NEW_PRIVS, PR_SET_DUMPABLE)."""
    prctl.set_no_new_privs(1)
    prctl.set_dumpable(0)
