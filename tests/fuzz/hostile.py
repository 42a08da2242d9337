# SPDX-License-Identifier: LGPL-2.1-or-later
"""A hostile cage half: on the gateway of a cage, it says whatever comes into its mind.

Every member of every mediator's interface with values of the right and of wrong types, at their bounds, with
descriptors of every kind; broken headers, half messages, answers that nobody waits for; and it goes away at any moment.

Run by itself it prints one JSON object in the end, how often it did what: hostile.py SOCKET SECONDS SEED [TARGET...].
The same seed makes the same messages; what is answered, and when, is not its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import select
import socket
import sys
import tempfile
import time
from array import array
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dbus_fast import Message, MessageFlag, MessageType

from cage_runtime import handed
from cage_runtime.bus import DBUS, PROPERTIES
from mediators import wire
from tests.fuzz.inputs import KEPT, read
from tests.fuzz.values import TYPES, Taken, types
from tests.privileged import kinds

ERROR = re.compile(rb"org\.[a-z]+\.(?:DBus\.)?Error\.(\w+)\0")
HERE = Path(__file__).parents[2] / "mediators"
NAMES = sorted(file.parent.name for file in HERE.glob("*/interface.xml"))
ACTS, CONNECTION_SECONDS = 60, 2.0
"""Things said on one connection, and how long it lasts, at most; then there is a new one."""
PACES = (10, 30, 100, 400, 2000)
"""Messages in a second, of which each connection has one: those that are slow get further than those that flood."""
HELD_MAX = 32
OFFENCE_SECONDS = 2.0
"""At least between two messages that no honest half sends: each closes a mediator's channel for some seconds, and
nothing is heard there meanwhile."""
STREAMS = [content[1:] for content in read(KEPT / "files_tree")]
HONEST: dict[str, tuple[Any, ...]] = {
    "Call": ("Echo", "", "pit", {}), "Copy": ("text/plain", 0, {}), "Paste": ("text/plain", {}),
    "Send": ("pit", "a.txt", 0, {}), "SendTree": ("pit", "tree", {}),
    "SendReceipted": ("pit", "a.txt", 0, {}), "List": ("pit", {}),
    "Sign": ("pit", "work", b"\0\0\0\x0bssh-ed25519", b"SSHSIG\0\0\0\4file\0\0\0\0\0\0\0\6sha256\0\0\0\x20" + b"d" * 32,
             0, {}),
    "Secret": ("pit", "org.example.App", {}), "Write": (["a line"], {}), "Show": ("summary", "body", {}),
    "Close": (1,), "Wait": ([1, 2],), "Uri": ("https://example.org/", "pit", {}), "File": ("a.txt", "pit", 0, {}),
    "Edited": ("1", {}), "StartFile": ("pit", "a.txt", 0, {}), "StartTree": ("pit", "tree", {}), "ListJobs": (),
    "Services": (),
}
"""What an honest half could say, of which one argument or another is then something else."""
WORDS = ("", "@core", "@default", "@disposable", "@disposable:plain", "@any", "nobody", "a.txt", "Echo", "text/plain",
         "https://example.org/", "mailto:a@b", "rename", "replace", "../x", "-o", "x" * 4000, "\u202e", "\x1b[2J", "é")


@dataclass(frozen=True, kw_only=True, slots=True)
class Member:
    mediator: str
    name: str
    signature: str


def members() -> list[Member]:
    """Of all mediators' interfaces."""
    found = []
    for mediator in NAMES:
        for method in wire.interface(mediator).findall("method"):
            arguments = [a.attrib["type"] for a in method.findall("arg") if a.attrib["direction"] == "in"]
            found.append(Member(mediator=mediator, name=method.attrib["name"], signature="".join(arguments)))
    return found


class Said(Taken):
    """Values of which texts are often what somebody honest would say."""

    def __init__(self, untrusted: bytes, words: tuple[str, ...]) -> None:
        super().__init__(untrusted)
        self._words = words

    def text(self) -> str:
        return str(self.one_of(self._words)) if self.byte() < 170 else super().text()


# --- descriptors -------------------------------------------------------------------------------------------------
def memory(content: bytes, size: int | None = None) -> int:
    descriptor = os.memfd_create("hostile", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.write(descriptor, content)
    if size is not None:
        os.ftruncate(descriptor, size)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def on_disk(content: bytes, size: int | None = None) -> int:
    with tempfile.TemporaryFile() as file:
        file.write(content)
        file.truncate(size)
        file.seek(0)
        return os.dup(file.fileno())


def end_of(ends: tuple[int, int], which: int) -> int:
    os.close(ends[1 - which])
    return ends[which]


KINDS: dict[str, Callable[[], int]] = {
    "a file": lambda: on_disk(b"what is sent\n"), "an empty file": lambda: on_disk(b""),
    "a sparse file": lambda: on_disk(b"x", 1 << 38), "in memory": lambda: memory(b"text \x1b[201~\n" * 50),
    "in memory, sparse": lambda: memory(b"", 1 << 30), "to write a pipe": lambda: end_of(os.pipe(), 1),
    "a terminal": lambda: end_of(os.openpty(), 0), "to write only": lambda: os.open("/dev/null", os.O_WRONLY),
}
"""Those that more is made of than of the others, which kinds.py has: a socket that lingers is among them."""


ALL_KINDS = (*KINDS, *kinds.KINDS)


def made(kind: str) -> kinds.Made:
    """A descriptor of that kind, and what has to stay there for it to be what it is."""
    if kind in KINDS:
        return KINDS[kind](), []
    with tempfile.TemporaryDirectory() as folder:
        return kinds.KINDS[kind](folder)


# --- messages ----------------------------------------------------------------------------------------------------
class Hostile:
    """Says things, a connection after another, to the bus at the socket `path`."""

    def __init__(self, path: str, seed: int, targets: tuple[str, ...]) -> None:
        self._path, self._random = path, random.Random(seed)
        self._words = (*targets * 6, *WORDS)
        self._members = members()
        self.did: Counter[str] = Counter()
        self._connection: socket.socket | None = None
        self._held: deque[object] = deque(maxlen=HELD_MAX)
        """For the descriptors that were sent last."""
        self._serial = self._left = 0
        self._pace, self._offended = float(PACES[0]), 0.0

    def run(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        due = 0.0
        while (now := time.monotonic()) < end:
            if now < due:
                self._hear(due - now)
                continue
            self._hear(0)
            self._act()
            due = max(due, now - 1) + 1 / self._pace
        self._leave()

    def say(self, count: int) -> None:
        """So many things, as fast as they are taken."""
        for _ in range(count):
            self._hear(0)
            self._act()
        self._leave()
        self._held.clear()

    def _act(self) -> None:
        if self._connection is None or self._left <= 0:
            self._leave()
            self._connect()
        self._left -= 1
        acts = (self._honest, self._wrong_types, self._elsewhere, self._other_kind, self._to_the_bus, self._broken,
                self._half, self._leave_at_once)
        act = self._random.choices(acts, (600, 40 if self._may_offend() else 0, 30, 30, 30, 20, 10, 20))[0]
        self.did[act.__name__.strip("_").replace("_", " ")] += 1
        try:
            act()
        except (BrokenPipeError, ConnectionResetError, TimeoutError):
            self.did["was cut off"] += 1
            self._leave()

    def _connect(self) -> None:
        self._connection = socket.socket(socket.AF_UNIX)
        self._connection.settimeout(5)
        try:
            self._connection.connect(self._path)
            self._connection.sendall(b"\0AUTH ANONYMOUS\r\nNEGOTIATE_UNIX_FD\r\nBEGIN\r\n")
            self._send(self._call(*DBUS, "Hello", "", []), [])
        except OSError:
            self.did["could not connect"] += 1
            self._leave()
        self._pace = float(self._random.choice(PACES))
        self._left = min(ACTS, int(self._pace * CONNECTION_SECONDS))

    def _may_offend(self) -> bool:
        return time.monotonic() >= self._offended + OFFENCE_SECONDS

    def _leave(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = None

    def _values(self, signature: str) -> list[Any]:
        taken = Said(self._random.randbytes(self._random.choice((20, 100, 400, 3000))), self._words)
        return [taken.value(kind) for kind in types(signature)]

    def _call(self, name: str, path: str, interface: str, member: str, signature: str, values: list[Any],
              flags: MessageFlag = MessageFlag.NONE) -> Message:
        self._serial += 1
        return Message(destination=name, path=path, interface=interface, member=member, signature=signature,
                       body=values, serial=self._serial, flags=flags)

    def _to(self, member: Member, signature: str, values: list[Any]) -> Message:
        name = wire.bus_name(member.mediator)
        flags = self._random.choices((MessageFlag.NONE, MessageFlag.NO_REPLY_EXPECTED), (9, 1))[0]
        return self._call(name, wire.path(member.mediator), name, member.name, signature, values, flags)

    def _honest(self) -> None:
        """The right types, whatever is in them."""
        member = self._random.choice(self._members)
        values, others = list(HONEST[member.name]), self._values(member.signature)
        if values and self._random.random() < 0.6:
            for at in self._random.choices(range(len(values)), k=self._random.choice((1, 1, 2, 3))):
                values[at] = others[at]
        descriptors: list[int] = []
        for at, kind in enumerate(types(member.signature)):
            if kind == "h":
                values[at] = 0
                descriptors.append(self._made(self._random.choice((*ALL_KINDS, *("a file", "in memory") * 8))))
        if descriptors and self._may_offend() and self._random.random() < 0.1:
            self._offended = time.monotonic()
            values[types(member.signature).index("h")] = self._random.choice((1, 2, 7, 2**32 - 1))
            descriptors += [KINDS["a file"]() for _ in range(self._random.randrange(3))]
        self._send(self._to(member, member.signature, values), descriptors)

    def _made(self, kind: str) -> int:
        descriptor, held = made(kind)
        self._held += held
        self.did[f"sent {kind}"] += 1
        return descriptor

    def _wrong_types(self) -> None:
        self._offended = time.monotonic()
        member = self._random.choice(self._members)
        signature = "".join(self._random.choices(TYPES, k=self._random.randrange(5)))
        self._send(self._to(member, signature, self._values(signature)), [])

    def _elsewhere(self) -> None:
        """Other objects, interfaces and members, and those that every object has."""
        mediator = self._random.choice(NAMES)
        own = wire.bus_name(mediator)
        path = self._random.choice((wire.path(mediator), "/", "/org", "/org/cageruntime", wire.path(mediator) + "/x"))
        interface, member, signature = self._random.choice((
            (f"{DBUS[0]}.Introspectable", "Introspect", ""), (f"{DBUS[0]}.Peer", "Ping", ""),
            (f"{DBUS[0]}.Peer", "GetMachineId", ""), (PROPERTIES, "Get", "ss"), (PROPERTIES, "GetAll", "s"),
            (PROPERTIES, "Set", "ssv"), (f"{DBUS[0]}.ObjectManager", "GetManagedObjects", ""), (own, "Nothing", "")))
        self._send(self._call(own, path, interface, member, signature, self._values(signature)), [])

    def _other_kind(self) -> None:
        """Answers, errors and signals, some as if they were caged's or the bus's."""
        destination = self._random.choice((*map(wire.bus_name, NAMES), ":1.0", ":1.1", ":1.2", None))
        kind = self._random.choice((MessageType.METHOD_RETURN, MessageType.ERROR, MessageType.SIGNAL))
        self._serial += 1
        values = self._values("us")
        if kind is MessageType.SIGNAL:
            interface, member = self._random.choice(((wire.MEDIATION, "GatewayUp"), (wire.MEDIATION, "Acted"),
                                                     (DBUS[0], "NameOwnerChanged")))
            message = Message(destination=destination, path="/org/cageruntime/Core1", interface=interface,
                              member=member, message_type=kind, signature="us", body=values, serial=self._serial)
        else:
            message = Message(destination=destination, message_type=kind, reply_serial=self._random.randrange(1, 200),
                              error_name="org.cageruntime.Error.PolicyRefused", signature="us", body=values,
                              serial=self._serial)
        self._send(message, [])

    def _to_the_bus(self) -> None:
        member, signature = self._random.choice((
            ("RequestName", "su"), ("ReleaseName", "s"), ("AddMatch", "s"), ("GetNameOwner", "s"), ("Hello", ""),
            ("ListNames", ""), ("StartServiceByName", "su"), ("UpdateActivationEnvironment", "a{ss}"),
            ("GetConnectionCredentials", "s"), ("ReloadConfig", ""), ("BecomeMonitor", "asu")))
        self._send(self._call(*DBUS, member, signature, self._values(signature)), [])

    def _broken(self) -> None:
        """An honest message of which some bytes are others."""
        raw = bytearray(self._marshalled())
        for _ in range(self._random.randrange(1, 6)):
            raw[self._random.randrange(min(len(raw), 200))] = self._random.randrange(256)
        assert self._connection is not None
        self._connection.sendall(raw)

    def _half(self) -> None:
        """The begin of a message, and then nothing."""
        raw = self._marshalled()
        assert self._connection is not None
        self._connection.sendall(raw[: self._random.randrange(1, len(raw))])
        self._leave()

    def _leave_at_once(self) -> None:
        self._honest()
        self._leave()

    def _marshalled(self) -> bytes:
        member = self._random.choice(self._members)
        return bytes(self._to(member, member.signature, self._values(member.signature))._marshall(False))

    # --- the socket ------------------------------------------------------------------------------------------
    def _send(self, message: Message, descriptors: list[int]) -> None:
        try:
            message.unix_fds = descriptors
            raw = bytes(message._marshall(bool(descriptors)))
            ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", descriptors))] if descriptors else []
            assert self._connection is not None
            sent = self._connection.sendmsg([raw], ancillary)
            self._connection.sendall(raw[sent:])
        finally:
            handed.close(descriptors)  # where none of them was taken, nobody waits for one that lingers either

    def _hear(self, seconds: float) -> None:
        """Take what has come, for at most so long; into what looks like an end of a pipe, something is written."""
        if self._connection is None:
            return
        poll = select.poll()
        poll.register(self._connection, select.POLLIN)
        if not poll.poll(seconds * 1000):
            return
        try:
            content, descriptors, _, _ = socket.recv_fds(self._connection, 65536, 16)
        except (ConnectionResetError, TimeoutError):
            content, descriptors = b"", []
        for descriptor in descriptors:
            self._use(descriptor)
        if not content:
            self.did["was disconnected"] += 1
            self._leave()
        for error in ERROR.findall(content):
            self.did[f"was told {error.decode()}"] += 1

    def _use(self, descriptor: int) -> None:
        try:
            if self._random.random() < 0.7:
                os.set_blocking(descriptor, False)
                with contextlib.suppress(OSError):
                    os.write(descriptor, self._random.choice(STREAMS))
                self.did["streams"] += 1
        finally:
            os.close(descriptor)


if __name__ == "__main__":
    where, duration, number, *names = sys.argv[1:]
    hostile = Hostile(where, int(number), tuple(names))
    hostile.run(float(duration))
    sys.stdout.write(json.dumps(hostile.did) + "\n")
