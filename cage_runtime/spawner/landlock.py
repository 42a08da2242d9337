# SPDX-License-Identifier: LGPL-2.1-or-later
"""Landlock (landlock(7)): a scope for every cage, and what is left of files and of TCP for what mediates in it.

A domain with any file-system right forbids mount(2) and so breaks `flatpak run`; scopes do not.  Hence sessions get
the scope alone: a TCP rule knows ports and no addresses, and a cage without a network has nothing to reach but the
loopback of its own namespace, which programs need for themselves.  The mediators' halves, the buses and the programs
of the core mount nothing and have no business with TCP, so they get rules for both.  What the kernel is too old for
is left out: namespaces and uids stand without it, and `doctor` says so.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass

from cage_runtime.spawner import syscall

TCP_ABI, SCOPE_ABI, LOG_ABI = 4, 6, 7
"""The first ABI with rules for TCP (Linux 6.7), with scopes (6.12), and with a say in what is logged (6.15)."""
SCOPE_ABSTRACT_UNIX_SOCKET, SCOPE_SIGNAL = 1, 2
BIND_TCP, CONNECT_TCP = 1, 2
LOG_NEW_EXEC_ON, LOG_SUBDOMAINS_OFF = 2, 4

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR, REMOVE_DIR, REMOVE_FILE = 1 << 0, 1 << 1, 1 << 2, 1 << 3, 1 << 4, 1 << 5
MAKE_CHAR, MAKE_DIR, MAKE_REG, MAKE_SOCK, MAKE_FIFO = 1 << 6, 1 << 7, 1 << 8, 1 << 9, 1 << 10
MAKE_BLOCK, MAKE_SYM, REFER, TRUNCATE, IOCTL_DEV = 1 << 11, 1 << 12, 1 << 13, 1 << 14, 1 << 15
_KNOWN = {1: (1 << 13) - 1, 2: REFER, 3: TRUNCATE, 5: IOCTL_DEV}
"""The file-system rights that each ABI added."""
_OF_FILES = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV
"""Those that a rule on something else than a directory can give."""
_READ = READ_FILE | READ_DIR
_WRITE = _READ | WRITE_FILE | TRUNCATE | MAKE_REG | MAKE_DIR | REMOVE_FILE | REMOVE_DIR
_SPECIAL = MAKE_SOCK | MAKE_SYM | MAKE_FIFO | REFER

LINKER = ("/lib64/ld-linux-x86-64.so.2", "/lib/ld-linux-aarch64.so.1")
"""What the kernel executes first of every program."""
LIBRARIES = ("/usr/lib", "/usr/lib64", "/lib", "/lib64", "/usr/local/lib")
NAMES = tuple(f"/etc/{name}" for name in ("group", "ld.so.cache", "localtime", "nsswitch.conf", "passwd"))
"""What the C library reads of itself."""
PYTHON = os.path.realpath("/usr/bin/python3")
"""The interpreter of the runtime's programs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reach:
    """What a process can do with files by their path, below each of these; nothing anywhere else.

    No device is made, and no TCP port bound or connected to; one that is not there is left out.
    """

    readable: tuple[str, ...] = ()
    executable: tuple[str, ...] = ()
    """Read, too; the dynamic linker of a program that is to be executed has to be among them."""
    writable: tuple[str, ...] = ()
    """Regular files and directories, each for itself: nothing is moved or linked from one directory to another."""
    special: tuple[str, ...] = ()
    """Sockets, links and FIFOs besides, and moves.  (Below a scope alone, which a cage has, there are no moves: a layer
    of Landlock that says nothing of files denies them where another one does.)"""
    tcp: bool = False
    """Whatever the network allows."""

    def restrict(self, *, logged: bool = False) -> None:
        """Confine this process and all it starts to it; needs no_new_privs, and nothing of it can be undone.

        `logged`: the kernel's audit log has what is refused to what this process executes, too.
        """
        abi = syscall.landlock_abi()
        if abi == 0:
            return
        files = sum(rights for since, rights in _KNOWN.items() if since <= abi)
        ruleset = syscall.landlock_create_ruleset(
            files=files, network=BIND_TCP | CONNECT_TCP if abi >= TCP_ABI and not self.tcp else 0, scoped=_scopes(abi))
        try:
            for paths, rights in (
                (self.readable, _READ), (self.executable, _READ | EXECUTE), (("/dev/null",), READ_FILE | WRITE_FILE),
                ((*self.writable, *self.special), _WRITE), (self.special, _SPECIAL),
            ):
                _allow(ruleset, paths, rights & files)
            syscall.landlock_restrict_self(ruleset, LOG_NEW_EXEC_ON if logged and abi >= LOG_ABI else 0)
        finally:
            os.close(ruleset)


def enter_scope() -> bool:
    """Confine this process and all it starts to its own domain; False where the kernel is too old for scopes.

    Needs no_new_privs.  What is refused by a domain of a program's own is not logged: it could fill
    the host's audit log with that.
    """
    abi = syscall.landlock_abi()
    if abi < SCOPE_ABI:
        return False
    ruleset = syscall.landlock_create_ruleset(files=0, network=0, scoped=_scopes(abi))
    try:
        syscall.landlock_restrict_self(ruleset, LOG_SUBDOMAINS_OFF if abi >= LOG_ABI else 0)
    finally:
        os.close(ruleset)
    return True


def _scopes(abi: int) -> int:
    return SCOPE_ABSTRACT_UNIX_SOCKET | SCOPE_SIGNAL if abi >= SCOPE_ABI else 0


def _allow(ruleset: int, paths: Iterable[str], rights: int) -> None:
    for path in paths:
        try:
            beneath = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        try:
            syscall.landlock_add_rule(ruleset, beneath, rights if os.path.isdir(path) else rights & _OF_FILES)
        finally:
            os.close(beneath)
