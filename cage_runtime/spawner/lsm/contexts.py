# SPDX-License-Identifier: LGPL-2.1-or-later
"""Security contexts of cages: one number a cage, which the kernel checks wherever two of them meet."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from cage_runtime.errors import HostUnsupported

CORE, WATCH, FIRST = 0, 1, 16


class Operation(StrEnum):
    PTRACE = "ptrace"
    KILL = "kill"
    CONNECT = "connect"


@dataclass(frozen=True, kw_only=True, slots=True)
class Context:
    namespace_capabilities: frozenset[int] = field(default_factory=frozenset)
    families: frozenset[int] = field(default_factory=frozenset)
    user_namespace_depth: int = 8
    execute_writable: bool = False
    private: bool = False
    watch: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    xid: int
    operation: Operation


class Contexts:
    @classmethod
    def open(cls, pins: Path = Path("/sys/fs/bpf/cage-runtime")) -> Contexts:
        raise HostUnsupported(f"nothing is pinned in {pins}")

    def new(self, context: Context) -> int:
        raise NotImplementedError

    def enter(self, pidfd: int, xid: int) -> None:
        raise NotImplementedError

    def tag_socket(self, descriptor: int, xid: int) -> None:
        raise NotImplementedError

    def tag_superblock(self, path_descriptor: int, xid: int) -> None:
        raise NotImplementedError

    def forget(self, xid: int) -> None:
        raise NotImplementedError

    def denials(self) -> dict[int, dict[Operation, int]]:
        raise NotImplementedError

    def events(self) -> int:
        raise NotImplementedError

    def read_events(self) -> list[Event]:
        raise NotImplementedError

    def hooks(self) -> tuple[str, ...]:
        raise NotImplementedError
