# SPDX-License-Identifier: LGPL-2.1-or-later
"""What is known to get through, and why; its test fails as soon as it is held, so that it goes from this list."""

from __future__ import annotations

from pathlib import Path

KNOWN: dict[tuple[int, str], str] = {
    (40, "mountinfo: roots"): "a bind says where on its file system it is from: that names the cage's own uuid",
    (40, "mountinfo: devices"): "a bind says which device its file system is on",
}
"""By attack and attempt: why a cage cannot hold it."""
WITHOUT_CONTEXTS: dict[tuple[int, str], str] = {
    (28, "write through /proc/self/mem"): "the kernel ignores the protection of pages there (proc_mem.force_override)",
    (33, "user namespaces in user namespaces"): "nothing else counts how deep they are",
    (39, "/proc/self/timens_offsets"): "a time namespace says by how much its clocks differ from the host's",
    (39, "nested: read /proc/kallsyms of another proc"): "bubblewrap mounts a proc of its own, which no mask is over",
}
"""The same, of a cage that has no security context."""


def known(attack: int, attempt: str, *, contexts: bool) -> str | None:
    """Why it gets through on this host; None where it does not."""
    if contexts or (attack == 28 and "proc_mem.force_override=never" in Path("/proc/cmdline").read_text()):
        return KNOWN.get((attack, attempt))
    return (KNOWN | WITHOUT_CONTEXTS).get((attack, attempt))
