# SPDX-License-Identifier: LGPL-2.1-or-later
"""Capabilities (capabilities(7)): what cage-init keeps of its user namespace's, and that a session has none.

python-prctl does no_new_privs, dumpable and securebits; its capability lists end at CAP_AUDIT_READ (37), so the
sets themselves are cleared here up to the kernel's last one.
"""

from __future__ import annotations

import ctypes
import os

import prctl

from cage_runtime.spawner import syscall

CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_KILL, CAP_SETGID, CAP_SETUID, CAP_SETPCAP = 0, 1, 5, 6, 7, 8
CAP_SYS_PTRACE, CAP_SYS_ADMIN = 19, 21

INIT_CEILING = frozenset({CAP_CHOWN, CAP_KILL, CAP_SETGID, CAP_SETUID, CAP_SYS_ADMIN})
"""What cage-init needs for good: give pipes to a session, signal it, become it, and attach the applications
that the spawner hands over.  All of it counts in the cage's user namespace alone."""


def last_capability() -> int:
    with open("/proc/sys/kernel/cap_last_cap", encoding="ascii") as file:
        return int(file.read())


LAST = last_capability()


class _Header(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]


class _Data(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint32) for name in ("effective", "permitted", "inheritable")]


_LIBC = ctypes.CDLL(None, use_errno=True)


def drop_bounding_set() -> None:
    """No exec gives a capability any more, in this process and all it starts; needs CAP_SETPCAP."""
    for capability in range(LAST + 1):
        syscall.capbset_drop(capability)


def _sets(capabilities: frozenset[int]) -> ctypes.Array[_Data]:
    mask = sum(1 << capability for capability in capabilities)
    return (_Data * 2)(*(_Data(effective=part, permitted=part) for part in (mask & 0xFFFFFFFF, mask >> 32)))


_HEADER = _Header(version=0x20080522)  # _LINUX_CAPABILITY_VERSION_3
_NONE = _sets(frozenset())
"""Made once: every command in a cage starts by holding nothing."""


def hold(capabilities: frozenset[int]) -> None:
    """Drop everything else from the permitted, effective, inheritable and (so) ambient sets."""
    sets = _sets(capabilities) if capabilities else _NONE
    if _LIBC.capset(ctypes.byref(_HEADER), sets) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), "capset")


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
