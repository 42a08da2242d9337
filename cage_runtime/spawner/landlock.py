# SPDX-License-Identifier: LGPL-2.1-or-later
"""Landlock (landlock(7)) for a cage: a domain of its own for abstract sockets and signals, where the kernel has it.

A domain with any file-system right forbids mount(2) and so breaks `flatpak run`; scopes do not.
"""

from __future__ import annotations

import os

from cage_runtime.spawner import syscall

SCOPE_ABI = 6
"""The first ABI with scopes (Linux 6.12)."""
SCOPE_ABSTRACT_UNIX_SOCKET, SCOPE_SIGNAL = 1, 2


def enter_scope() -> bool:
    """Confine this process and all it starts to its own domain; False where the kernel is too old for scopes.

    Needs no_new_privs.
    """
    if syscall.landlock_abi() < SCOPE_ABI:
        return False
    ruleset = syscall.landlock_create_ruleset(scoped=SCOPE_ABSTRACT_UNIX_SOCKET | SCOPE_SIGNAL)
    try:
        syscall.landlock_restrict_self(ruleset)
    finally:
        os.close(ruleset)
    return True
