# SPDX-License-Identifier: LGPL-2.1-or-later
"""Imports point down: daemon and cli to their sibling rooms, those to config, model and errors, and nothing back up.

The rooms are read, not run, so that an import inside a function counts as well.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

TOP = Path(__file__).parents[2]
FOUNDATION = {"cage_runtime.errors", "cage_runtime.text", "cage_runtime.decoding", "cage_runtime.model",
              "cage_runtime.config", "cage_runtime.manifest"}
BUS = {"cage_runtime.bus", "cage_runtime.handed", "cage_runtime.objects", "cage_runtime.resources",
       "cage_runtime.shares"}
PROGRAM = {"cage_runtime.arguments", "cage_runtime.confine", "cage_runtime.folders", "cage_runtime.log",
           "cage_runtime.notify", "cage_runtime.watchdog"}
"""What the programs of the core have in common."""
RECEIVING = {f"cage_runtime.{name}" for name in ("filenames", "intree", "packing", "placing")}
"""How a tree is one stream, and becomes a tree again."""
SPAWNER_WORDS = {"cage_runtime.spawner.channel", "cage_runtime.spawner.spec", "cage_runtime.spawner.wire"}
"""What a room on the far side of the spawner's socket may know of it: the words that go over it, and how."""

ALLOWED = {
    "cage_runtime.errors": set(),
    "cage_runtime.text": set(),
    "cage_runtime.decoding": set(),
    "cage_runtime.model": {"cage_runtime.errors", "cage_runtime.text"},
    "cage_runtime.config": {"cage_runtime.errors", "cage_runtime.text", "cage_runtime.model"},
    "cage_runtime.manifest": {"cage_runtime.errors", "cage_runtime.text", "cage_runtime.model", "cage_runtime.config"},
    "cage_runtime.generate": {"cage_runtime.manifest"},
    "cage_runtime.bus": FOUNDATION | BUS | {"cage_runtime.listening"},
    "cage_runtime.listening": set(),
    "cage_runtime.objects": FOUNDATION | {"cage_runtime.resources"},
    "cage_runtime.shares": {"cage_runtime.errors", "cage_runtime.model"},
    "cage_runtime.sdbus": {"cage_runtime.errors"},
    "cage_runtime.arguments": {"cage_runtime.errors", "cage_runtime.log"},
    "cage_runtime.confine": FOUNDATION
    | {f"cage_runtime.spawner.{name}" for name in ("capability", "landlock", "seccomp")},
    "cage_runtime.folders": {"cage_runtime.config", "cage_runtime.errors", "cage_runtime.manifest"},
    "cage_runtime.journald": set(),
    "cage_runtime.log": set(),
    "cage_runtime.notify": set(),
    "cage_runtime.watchdog": BUS | {"cage_runtime.errors", "cage_runtime.notify"},
    "cage_runtime.resources": set(),
    "cage_runtime.policy": FOUNDATION,
    "cage_runtime.trust": FOUNDATION,
    "cage_runtime.audit": FOUNDATION | {"cage_runtime.journald"},
    "cage_runtime.flatpak": FOUNDATION | BUS | PROGRAM,
    "cage_runtime.scopes": FOUNDATION
    | PROGRAM
    | {"cage_runtime.sdbus"}
    | {f"cage_runtime.spawner.{name}" for name in ("capability", "filters", "helper", "landlock", "syscall", "wire")},
    "cage_runtime.syscalls": FOUNDATION
    | PROGRAM
    | {f"cage_runtime.spawner.{name}" for name in ("capability", "filters", "helper", "syscall", "wire")},
    "cage_runtime.spawner": FOUNDATION
    | PROGRAM
    | {"cage_runtime.scopes.spec", "cage_runtime.syscalls.notification", "cage_runtime.syscalls.spec"},
    "cage_runtime.daemon": FOUNDATION
    | BUS
    | PROGRAM
    | SPAWNER_WORDS
    | {f"cage_runtime.{name}" for name in ("attached", "bucket", "filenames", "generate", "packing", "receipt")}
    | {"cage_runtime.pipes"}
    | {"cage_runtime.policy", "cage_runtime.trust", "cage_runtime.audit", "cage_runtime.flatpak"},
    "cage_runtime.attached": {f"cage_runtime.{name}" for name in ("decoding", "errors", "pipes", "spawner.channel")},
    "cage_runtime.bucket": set(),
    "cage_runtime.encrypted": {"cage_runtime.errors"},
    "cage_runtime.receipt": {"cage_runtime.errors", "cage_runtime.model", "cage_runtime.text"},
    "cage_runtime.desktop": {"cage_runtime.errors", "cage_runtime.log", "cage_runtime.model"},
    "cage_runtime.outcome": set(),
    "cage_runtime.packing": set(),
    "cage_runtime.pipes": set(),
    "cage_runtime.filenames": {"cage_runtime.errors", "cage_runtime.text"},
    "cage_runtime.intree": {f"cage_runtime.{name}" for name in ("errors", "filenames", "packing", "text")},
    "cage_runtime.placing": {f"cage_runtime.{name}" for name in ("errors", "filenames", "intree", "packing")},
    "cage_runtime.portal": FOUNDATION | BUS,
    "cage_runtime.cli": FOUNDATION
    | RECEIVING
    | {"cage_runtime.encrypted", "cage_runtime.outcome", "cage_runtime.receipt", "cage_runtime.resources"}
    | {"cage_runtime.sdbus", "cage_runtime.spawner.channel"},
    "mediators": FOUNDATION
    | BUS
    | PROGRAM
    | RECEIVING
    | {f"cage_runtime.{name}" for name in ("attached", "bucket", "encrypted", "journald", "outcome", "pipes")}
    | {"cage_runtime.spawner.channel"}
    | {"cage_runtime.cli.beneath", "cage_runtime.cli.tree"},
}
"""Room → what it may import of the project beside itself."""

FORBIDDEN = {
    "cage_runtime.policy": {"asyncio", "ctypes", "socket", "subprocess", "dbus_fast", "pyroute2"},
    "cage_runtime.trust": {"asyncio", "ctypes", "socket", "subprocess", "dbus_fast", "pyroute2"},
    "cage_runtime.daemon": {"ctypes", "prctl", "pyseccomp", "pyroute2"},
    "cage_runtime.spawner": {"asyncio", "dbus_fast", "jeepney", "cryptography"},
    "cage_runtime.scopes": {"asyncio", "dbus_fast", "jeepney", "cryptography"},
    "cage_runtime.syscalls": {"asyncio", "dbus_fast", "jeepney", "cryptography"},
    "cage_runtime.desktop": {"asyncio", "ctypes", "dbus_fast", "subprocess"},
    "cage_runtime.cli": {"asyncio", "dbus_fast", "pyroute2", "cryptography"},
}
"""Room → outside modules that it must not import: pure rooms have no system, caged makes no system calls of its own,
the process that clones knows no bus, and cagectl starts fast."""


def modules() -> dict[str, Path]:
    found = {}
    for package in ("cage_runtime", "mediators"):
        for path in sorted((TOP / package).rglob("*.py")):
            parts = path.relative_to(TOP).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imports_of(name: str) -> set[str]:
    """Every module that `name` imports, anywhere in it; `from package import module` names the module."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(MODULES[name].read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} line {node.lineno}: a relative import; name the room in full"
            inside = {f"{node.module}.{alias.name}" for alias in node.names} & MODULES.keys()
            found.update(inside or {str(node.module)})
    return found


def within(module: str, rooms: set[str]) -> bool:
    return any(module == room or module.startswith(f"{room}.") for room in rooms)


def room_of(module: str) -> str | None:
    return next((room for room in ALLOWED if within(module, {room})), None)


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down(module: str) -> None:
    room = room_of(module)
    ours = {name for name in imports_of(module) if within(name, {"cage_runtime", "mediators"})}
    allowed = ALLOWED[room] | {room} if room else set()
    upward = sorted(name for name in ours if not within(name, allowed))
    assert not upward, f"{module} may not import {', '.join(upward)}"


@pytest.mark.parametrize("room", FORBIDDEN)
def test_rooms_keep_out_of_what_is_not_theirs(room: str) -> None:
    for module in MODULES:
        if within(module, {room}):
            found = {name.partition(".")[0] for name in imports_of(module)} & FORBIDDEN[room]
            assert not found, f"{module} may not import {', '.join(sorted(found))}"


def test_halves_of_a_mediator_do_not_know_each_other() -> None:
    for module in MODULES:
        package, _, half = module.rpartition(".")
        if half in {"core", "cage"} and package.startswith("mediators."):
            other = f"{package}.{'cage' if half == 'core' else 'core'}"
            assert other not in imports_of(module), f"{module} imports {other}; what both need is in protocol.py"


def test_mediators_do_not_know_each_other() -> None:
    for module in MODULES:
        parts = module.split(".")
        if parts[0] == "mediators" and len(parts) > 2:
            strangers = {
                name
                for name in imports_of(module)
                if name.startswith("mediators.") and name.count(".") > 1 and name.split(".")[1] != parts[1]
            }
            assert not strangers, f"{module} imports another mediator: {', '.join(sorted(strangers))}"


def test_only_known_libraries_are_imported() -> None:
    """A new dependency is a decision: it goes into pyproject.toml first."""
    libraries = {"cryptography", "dbus_fast", "gi", "msgspec", "prctl", "pyroute2", "pyseccomp"}
    known = libraries | {"cage_runtime", "mediators"}
    for module in MODULES:
        outside = {name.partition(".")[0] for name in imports_of(module)} - sys.stdlib_module_names - known
        assert not outside, f"{module} imports {', '.join(sorted(outside))}"
