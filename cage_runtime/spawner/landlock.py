# SPDX-License-Identifier: LGPL-2.1-or-later
"""Landlock (landlock(7)): a scope for every cage, and file rules for what mediates in it.

A domain with any file-system right forbids mount(2) and so breaks `flatpak run`; scopes do not.  Hence sessions get
the scope alone, and the mediators' halves, which mount nothing, get file rules too.  What the kernel is too old for
is left out: namespaces and uids stand without it, and `doctor` says so.
"""

from __future__ import annotations

import os

from cage_runtime.spawner import syscall

SCOPE_ABI = 6
"""The first ABI with scopes (Linux 6.12)."""
SCOPE_ABSTRACT_UNIX_SOCKET, SCOPE_SIGNAL = 1, 2

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
REFER, TRUNCATE, IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15
_KNOWN = {1: (1 << 13) - 1, 2: REFER, 3: TRUNCATE, 5: IOCTL_DEV}
"""The file-system rights that each ABI added."""

READABLE = ("/usr", "/opt", "/etc", "/proc", "/run", "/dev")
"""What a mediator's half may read and execute; no home is among them."""


def enter_scope() -> bool:
    """Confine this process and all it starts to its own domain; False where the kernel is too old for scopes.

    Needs no_new_privs.
    """
    if syscall.landlock_abi() < SCOPE_ABI:
        return False
    ruleset = syscall.landlock_create_ruleset(handled=0, scoped=SCOPE_ABSTRACT_UNIX_SOCKET | SCOPE_SIGNAL)
    try:
        syscall.landlock_restrict_self(ruleset)
    finally:
        os.close(ruleset)
    return True


def file_rules(writable: tuple[str, ...], readable: tuple[str, ...] = READABLE) -> int | None:
    """A ruleset: what is beneath `readable` can be read and executed, /dev/null and `writable` written too.

    None where the kernel has no Landlock.  Made as root, by whom is to be restricted by it.
    """
    abi = syscall.landlock_abi()
    if abi == 0:
        return None
    handled = sum(rights for since, rights in _KNOWN.items() if since <= abi)
    ruleset = syscall.landlock_create_ruleset(handled=handled, scoped=0)
    for path in readable:
        _allow(ruleset, path, EXECUTE | READ_FILE | (READ_DIR if os.path.isdir(path) else 0))
    _allow(ruleset, "/dev/null", WRITE_FILE | READ_FILE | (TRUNCATE & handled))
    for path in writable:
        _allow(ruleset, path, handled & ~EXECUTE & ~IOCTL_DEV)
    return ruleset


def _allow(ruleset: int, path: str, rights: int) -> None:
    directory = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        syscall.landlock_add_rule(ruleset, directory, rights)
    finally:
        os.close(directory)
