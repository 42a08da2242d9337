# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a context is refused, by name, as the programs number it (bpf/context.h, enum operation)."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import StrEnum


class Operation(StrEnum):
    """In the order of the programs' numbers."""

    PTRACE = "ptrace"
    KILL = "kill"
    CONNECT = "connect"
    SEND = "send"
    SCHEDULE = "schedule"
    LIMIT = "limit"
    IPC = "ipc"
    KEY = "key"
    FILE = "file"
    DESCRIPTOR = "descriptor"
    BPF = "bpf"
    MOUNT = "mount"
    NAMESPACE = "namespace"
    SOCKET = "socket"
    CAPABILITY = "capability"
    EXECUTE = "execute"
    MEMORY = "memory"
    PROC = "proc"
    DEVICE = "device"
    IO_URING = "io-uring"
    PERF = "perf"
    SYSLOG = "syslog"
    TIME = "time"
    MODULE = "module"
    QUOTA = "quota"
    LOCKDOWN = "lockdown"
    FORK = "fork"


BY_NUMBER = tuple(Operation)

_EVENT = struct.Struct("=QQIIII16s")
EVENT_BYTES = _EVENT.size


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """One refusal.  Of a flood of them, so many a second are told (bpf/context.h, EVENTS_A_SECOND)."""

    nanoseconds: int
    """Of CLOCK_MONOTONIC."""
    xid: int
    operation: Operation
    object: int
    """The xid of what was to be acted on; 0 for the core and for what is nobody's."""
    detail: int
    """A number that says more: a signal, a capability, an inode."""
    pid: int
    """As the host's namespace numbers it."""
    untrusted_command: str
    """What the task calls itself; the cage chooses it."""


def event(data: bytes) -> Event:
    """From the ring buffer; ValueError where it is none of ours."""
    if len(data) != EVENT_BYTES:
        raise ValueError(f"an event has {EVENT_BYTES} bytes, and this has {len(data)}")
    nanoseconds, detail, xid, object_, number, pid, command = _EVENT.unpack(data)
    if number >= len(BY_NUMBER):
        raise ValueError(f"there is no operation {number}")
    return Event(nanoseconds=nanoseconds, xid=xid, operation=BY_NUMBER[number], object=object_, detail=detail, pid=pid,
                 untrusted_command=command.partition(b"\0")[0].decode("utf-8", "backslashreplace"))
