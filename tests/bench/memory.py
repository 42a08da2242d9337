# SPDX-License-Identifier: LGPL-2.1-or-later
"""P6: the memory that is used because a cage stands, as the difference that many cages make.

The measure is PSS (Documentation/filesystems/proc.rst, smaps_rollup) of all processes of the runtime: cage-inits,
what runs in cages, and what the core's processes grow by.  The kernel's own memory is not in it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.bench.figures import Row
from tests.bench.runtime import Client, Runtime

MIB = 1024.0
BUS_USE = ("/usr/bin/dbus-send", "--system", "--print-reply", "--dest=org.freedesktop.DBus", "/org/freedesktop/DBus",
           "org.freedesktop.DBus.ListNames")
MEDIATOR_USE = ("/bin/sh", "-c", "echo . > note; /opt/cage-runtime/bin/incage send note --to nowhere; test $? = 126")
"""A request to the core that is refused: it goes all the way."""

CREATED, ENTERED = "a cage, created", "a cage, entered once"
STATES: tuple[tuple[str, tuple[str, ...]], ...] = (
    (ENTERED, ("/bin/true",)),
    ("a cage, its bus used once", BUS_USE),
    ("a cage, a mediator used once", MEDIATOR_USE),
)


def pss(pid: int) -> float:
    """Proportional set size in KiB; 0 for a process that has just ended."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return float(next((line.split()[1] for line in text.splitlines() if line.startswith("Pss:")), "0"))


def total(runtime: Runtime) -> float:
    """All that the runtime's processes and its bus use, in KiB."""
    return sum(pss(pid) for pid in (*runtime.processes(), runtime.bus))


def core_rows(runtime: Runtime) -> list[Row]:
    """What stands before any cage does, a row for each process."""
    used = [(name, pss(pid)) for pid, name in runtime.processes().items()]
    seen: Counter[str] = Counter()
    rows = []
    for name, size in used:
        seen[name] += 1
        rows.append(_row(f"core: {name}" + (f" {seen[name]}" if seen[name] > 1 else ""), [size / MIB]))
    return [*rows, _row("core: all of it", [sum(size for _, size in used) / MIB])]


def cage_rows(runtime: Runtime, client: Client, cages: int, say: Callable[[str], None]) -> Iterator[Row]:
    """What each of `cages` cages uses in each state; they are destroyed again."""
    names = [f"idle-{number}" for number in range(cages)]
    say(f"P6: {cages} cages")
    before = total(runtime)
    for name in names:
        client.create(name, ephemeral=True)
    yield _row(CREATED, [(total(runtime) - before) / cages / MIB])
    for state, command in STATES:
        for name in names:
            status = client.enter(name, *command)
            if status:
                raise RuntimeError(f"{command[0]} in {name} ended with status {status}")
        yield _row(state, [(total(runtime) - before) / cages / MIB])
    for name in names:
        client.destroy(name)


def _row(contender: str, samples: list[float]) -> Row:
    return Row(figure="P6", contender=contender, unit="MiB", runs=len(samples), median=samples[0],
               minimum=samples[0], maximum=samples[0])
