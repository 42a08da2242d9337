# SPDX-License-Identifier: LGPL-2.1-or-later
"""Contexts: made, configured, entered and forgotten, and what was refused to each.

A context's number is its xid.  Between two boots none is given twice, because tasks, files and sockets may have it
still when its cage is gone; one that is not configured is denied everything.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import struct
from dataclasses import dataclass
from pathlib import Path

from cage_runtime.errors import HostUnsupported, RuntimeFailure
from cage_runtime.spawner.lsm import libbpf, programs
from cage_runtime.spawner.lsm.operations import BY_NUMBER, Event, Operation, event

PINS = Path("/sys/fs/bpf/cage-runtime")
CORE, WATCH, ANSWERS, FIRST = 0, 1, 2, 16
"""ANSWERS is the core but for one thing: it may look into the processes of private cages (cage-syscalls)."""
UNCONFIGURED = FIRST - 1
"""In `denials`, for all whose context is not configured."""
PLACES = 4096
"""How many contexts there can be at a time (bpf/context.h, CONTEXTS)."""
EVENTS_AT_ONCE = 1024

# linux/socket.h, linux/capability.h
AF_UNIX, AF_INET, AF_INET6, AF_NETLINK = 1, 2, 10, 16
ALL_FAMILIES = frozenset(range(64))
IN_A_NAMESPACE = frozenset((*range(9), *range(10, 16), 18, 19, 21, 23, 24, 25, 27, 31))
"""The capabilities that mean something against a user namespace of the cage's own: not those over modules, raw ports,
audit, the kernel's log, performance counters or BPF, and not CAP_SYS_BOOT.  CAP_SYS_TIME there is over the clocks of a
new time namespace."""
NESTED = 4
"""Of user namespaces below the host's: the cage's own is 1, Flatpak's bubblewrap makes two more, one inside the other,
and a browser in it one for its own."""

EXECUTE_WRITABLE, PRIVATE, WATCHES = 1, 2, 4
_CONFIGURATION = struct.Struct("=IIQQIIIIQQ16x")
_COUNTS = struct.Struct("=32Q")
_RECORD = _CONFIGURATION.size + _COUNTS.size
_NEVER = bytes(_COUNTS.size)
_XID = struct.Struct("=I")


@dataclass(frozen=True, kw_only=True, slots=True)
class Context:
    """What one context may; an xid without one is denied everything."""

    namespace_capabilities: frozenset[int] = IN_A_NAMESPACE
    """Against user namespaces other than the host's; against that one, no context has any."""
    families: frozenset[int] = frozenset((AF_UNIX, AF_INET, AF_INET6, AF_NETLINK))
    """Of sockets."""
    user_namespace_depth: int = NESTED
    """How deep below the host's, which is 0, a user namespace may be that it makes."""
    execute_writable: bool = False
    """It may execute what it can write."""
    private: bool = False
    """The core cannot look into its processes either; it can end them."""
    watch: bool = False
    """It may look into the processes of every context that is not private."""

    def record(self, xid: int) -> bytes:
        """As the programs have it, with all counts at 0."""
        flags = (EXECUTE_WRITABLE * self.execute_writable | PRIVATE * self.private | WATCHES * self.watch)
        capabilities, families = (sum(1 << number for number in numbers)
                                  for numbers in (self.namespace_capabilities, self.families))
        return _CONFIGURATION.pack(xid, flags, capabilities, families, self.user_namespace_depth,
                                   *[0] * 5) + bytes(_COUNTS.size)


class Contexts:
    """What drives the programs; see `open`."""

    def __init__(self, standing: programs.Programs) -> None:
        self._programs = standing
        self._maps = standing.maps
        self._events: list[Event] = []
        self._ring: libbpf.RingBuffer | None = None

    @classmethod
    def open(cls, pins: Path = PINS, file: Path = programs.OBJECT) -> Contexts:
        """Adopts the pinned programs, or loads, attaches and pins them, and sees them refuse something; HostUnsupported
        says what the host lacks, and what to do about it.  For a single-threaded caller: it forks."""
        contexts = cls(programs.stand(pins, file))
        try:
            contexts._configure(WATCH, Context(families=ALL_FAMILIES, execute_writable=True, watch=True))
            contexts._see_a_refusal()
        except (OSError, RuntimeFailure):
            contexts.close()
            raise
        return contexts

    def close(self) -> None:
        """Our descriptors alone: what is pinned goes on to enforce."""
        if self._ring:
            self._ring.close()
            self._ring = None
        self._programs.close()

    def hooks(self) -> tuple[str, ...]:
        """At which programs are attached."""
        return self._programs.hooks

    # --- life ---------------------------------------------------------------------------------------------------------
    def new(self, context: Context) -> int:
        """A fresh xid, configured; RuntimeFailure where there are as many as there can be."""
        following = max(FIRST, self._next())
        for xid in range(following, following + PLACES):
            if xid % PLACES >= FIRST and not self._in_use(xid):
                # First used up, then used: an end in between loses a number, and never gives one twice.
                libbpf.update(self._maps["next_xid"], _XID.pack(0), _XID.pack(xid + 1))
                self._configure(xid, context)
                return xid
        raise RuntimeFailure(f"there are {PLACES - FIRST} security contexts, and there can be no more at a time")

    def enter(self, pidfd: int, xid: int) -> None:
        """Label a process, for good, and all that it will start; its threads must be one.  OSError where it cannot be,
        FileExistsError where it has a context already.  It must not have run anything but ours, and has to change its
        credentials afterwards, by an exec or otherwise: what was opened with the old ones is the core's."""
        key, label = struct.pack("=i", pidfd), _XID.pack(xid)
        libbpf.update(self._maps["task_labels"], key, label, libbpf.NOEXIST)
        if libbpf.lookup(self._maps["task_labels"], key, _XID.size) != label:
            raise OSError(errno.EIO, os.strerror(errno.EIO), "security context")

    def of(self, pidfd: int) -> int:
        """The xid of a process; CORE where it has none."""
        label = libbpf.lookup(self._maps["task_labels"], struct.pack("=i", pidfd), _XID.size)
        return CORE if label is None else int(_XID.unpack(label)[0])

    def tag_socket(self, descriptor: int, xid: int) -> None:
        """Of a listening or unconnected socket of the core's: that context alone may connect and send to it."""
        libbpf.update(self._maps["socket_labels"], struct.pack("=i", descriptor), _XID.pack(xid))

    def tag_superblock(self, path_descriptor: int, xid: int) -> None:
        """The files of the file system that the descriptor is on are for that context alone.  For as long as the file
        system is mounted: its device number is given to another one later."""
        libbpf.update(self._maps["superblock_labels"], _device(path_descriptor), _XID.pack(xid))

    def forget(self, xid: int) -> None:
        """Teardown: whatever still has it is denied everything.  May be repeated."""
        record = libbpf.lookup(self._maps["contexts"], _place(xid), _RECORD)
        if record is not None and _XID.unpack_from(record)[0] == xid:  # and not another's that has the place by now
            libbpf.update(self._maps["contexts"], _place(xid), bytes(_RECORD))
        for device in list(libbpf.keys(self._maps["superblock_labels"], 4)):
            if libbpf.lookup(self._maps["superblock_labels"], device, _XID.size) == _XID.pack(xid):
                with contextlib.suppress(FileNotFoundError):
                    libbpf.delete(self._maps["superblock_labels"], device)

    def configured(self) -> frozenset[int]:
        """The contexts that there are."""
        records = libbpf.lookup_all(self._maps["contexts"], _RECORD, PLACES)
        return frozenset(_XID.unpack_from(record)[0] for record in records) - {CORE}

    # --- what was refused ---------------------------------------------------------------------------------------------
    def denials(self) -> dict[int, dict[Operation, int]]:
        """How often, since each context was made; those of private cages against the core are the core's."""
        found = {}
        for place, record in enumerate(libbpf.lookup_all(self._maps["contexts"], _RECORD, PLACES)):
            if denied := _denied(record):
                found[_XID.unpack_from(record)[0] or place] = denied
        return found

    def denied(self, xid: int) -> dict[Operation, int]:
        """How often, of one context; nothing of one that is forgotten."""
        record = libbpf.lookup(self._maps["contexts"], _place(xid), _RECORD)
        if record is None or _XID.unpack_from(record)[0] != xid:
            return {}
        return _denied(record)

    def events(self) -> int:
        """A descriptor that is readable when there are events; it stays ours."""
        return self._reader().descriptor()

    def read_events(self) -> list[Event]:
        """Those that have come, a bounded number of them."""
        self._events = []
        self._reader().consume()
        return self._events

    def _reader(self) -> libbpf.RingBuffer:
        if self._ring is None:
            self._ring = libbpf.RingBuffer(self._maps["events"], self._take)
        return self._ring

    def _take(self, data: bytes) -> bool:
        self._events.append(event(data))
        return len(self._events) < EVENTS_AT_ONCE

    # --- inside -------------------------------------------------------------------------------------------------------
    def _next(self) -> int:
        return int(_XID.unpack(libbpf.lookup(self._maps["next_xid"], _XID.pack(0), _XID.size) or bytes(4))[0])

    def _in_use(self, xid: int) -> bool:
        """Is this place taken, by this xid or by another one that shares it?"""
        record = libbpf.lookup(self._maps["contexts"], _place(xid), _RECORD)
        return record is not None and _XID.unpack_from(record)[0] != 0

    def _configure(self, xid: int, context: Context) -> None:
        libbpf.update(self._maps["contexts"], _place(xid), context.record(xid))

    def _see_a_refusal(self) -> None:
        """A process of a throw-away context tries to signal us; HostUnsupported where it can.  Programs that are loaded
        and attached are not run by every kernel that takes them."""
        xid = self.new(Context())
        try:
            allowed = self._signals_us(xid)
            counted = self.denials().get(xid, {}).get(Operation.KILL, 0)
        finally:
            self.forget(xid)
        if allowed or counted != 1:
            raise HostUnsupported("the kernel has taken the programs of the security contexts and does not enforce "
                                  "what they say; look at /sys/kernel/security/lsm and at the kernel's log")

    def _signals_us(self, xid: int) -> bool:
        go, told = os.pipe2(os.O_CLOEXEC)
        child = os.fork()
        if child == 0:
            _try_to_signal(os.getppid(), go, told)
        os.close(go)
        pidfd = os.pidfd_open(child)
        try:
            self.enter(pidfd, xid)
            os.write(told, b"!")
            return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0
        except OSError:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            os.waitpid(child, 0)
            raise
        finally:
            os.close(told)
            os.close(pidfd)


def _denied(record: bytes) -> dict[Operation, int]:
    if record.endswith(_NEVER):  # as almost all, of thousands
        return {}
    counts = zip(BY_NUMBER, _COUNTS.unpack_from(record, _CONFIGURATION.size), strict=False)
    return {operation: count for operation, count in counts if count}


def _try_to_signal(process: int, go: int, told: int) -> None:
    """In the child: ends with 0 where it is refused, and never returns."""
    status = 1
    try:
        os.close(told)
        if os.read(go, 1) == b"!":
            os.kill(process, 0)
    except PermissionError:
        status = 0
    finally:
        os._exit(status)


def _place(xid: int) -> bytes:
    return _XID.pack(xid % PLACES)


def _device(descriptor: int) -> bytes:
    """The number of the file system as the kernel keeps it, and not as stat(2) shows it."""
    number = os.fstat(descriptor).st_dev
    return _XID.pack(os.major(number) << 20 | os.minor(number))
