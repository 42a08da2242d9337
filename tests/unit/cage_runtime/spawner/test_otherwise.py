# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a call answers where no condition allows it, by the kernel's own word."""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import stat
import struct

import pytest

from cage_runtime.spawner import otherwise, seccomp
from tests.unit.cage_runtime.spawner.test_seccomp import PROFILES, errno_under

LIBC = ctypes.CDLL(None, use_errno=True)


def raw_socket(family: int, kind: int, protocol: int) -> None:
    if LIBC.syscall(41, ctypes.c_long(family), ctypes.c_long(kind), ctypes.c_long(protocol)) < 0:
        raise OSError(ctypes.get_errno(), "socket")


@pytest.mark.parametrize(("family", "protocol", "error"), [
    (socket.AF_UNIX, 0, 0), (socket.AF_INET, 0, 0), (socket.AF_INET6, 0, 0), (socket.AF_NETLINK, 0, 0),
    (socket.AF_NETLINK, 15, 0), (socket.AF_NETLINK, 9, errno.EAFNOSUPPORT), (socket.AF_VSOCK, 0, errno.EAFNOSUPPORT),
    (0, 0, errno.EAFNOSUPPORT), (3, 0, errno.EAFNOSUPPORT), (-1, 0, errno.EAFNOSUPPORT),
    (socket.AF_ALG | 1 << 32, 0, errno.EAFNOSUPPORT), (1 << 40, 0, errno.EAFNOSUPPORT),
])
def test_a_family_that_is_not_allowed_is_not_supported(family: int, protocol: int, error: int) -> None:
    kind = socket.SOCK_RAW if family == socket.AF_NETLINK else socket.SOCK_DGRAM
    assert errno_under((seccomp.build(PROFILES, "session"),), lambda: raw_socket(family, kind, protocol)) == error


def test_no_device_is_made_and_no_namespace_entered() -> None:
    session = (seccomp.build(PROFILES, "session"),)
    assert errno_under(session, lambda: os.mknod("/nowhere/x", stat.S_IFCHR | 0o600)) == errno.EPERM
    assert errno_under(session, lambda: os.mknod("/nowhere/x", stat.S_IFIFO | 0o600)) == errno.ENOENT


def test_all_alternatives_and_all_of_their_conditions_are_looked_at() -> None:
    code = otherwise.program([otherwise.Call(
        number=1, error=errno.EPERM, allowed=[[(0, 0xFFFFFFFF, 1), (2, 1 << 63, 0)], [(1, 7, 7)]])])
    assert errno_under((seccomp.Filter(programs=(code,), unknown=()),), os.getppid) == 0
    assert len(code) == 8 * (4 + 2 + 3 * 2 + 1 + 3 + 1 + 1 + 1)
    assert struct.unpack("=HBBI", code[-8:]) == (0x06, 0, 0, 0x7FFF0000)
