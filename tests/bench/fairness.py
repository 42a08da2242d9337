# SPDX-License-Identifier: LGPL-2.1-or-later
"""What one cage feels of another that floods every mediator at once, through its own bus and on its raw gateway.

Law of this room: a round without the flood and one with it follow each other, so that whatever else the machine does
falls on both alike; what is compared is the 99th percentile of the one to that of the other.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from dbus_fast import Message

from tests.bench.figures import Bound, Row
from tests.bench.runtime import Client, Runtime

FIGURE = "fairness"
LIMIT = 2.0
ROUNDS = 100
"""Samples of each operation of which a 99th percentile means something."""
ALONE, BUSY, FLOODED = "alone", "busy", "flooded"
"""What the other cage does: nothing, compute on every processor, ask for all that there is."""
QUIET, LOUD, FRIEND = "quiet", "loud", "friend"
"""The cage that is measured, the one that floods, and the target of both."""
RULES = "".join(f"{service} * {cage} {target} allow\n" for cage in (QUIET, LOUD) for service, target in (
    ("files.Send", FRIEND), ("call.Echo", FRIEND), ("keys.List", FRIEND), ("log.Write", "@core"),
    ("notify.Show", "@core"))) + f"""clipboard.Paste * {FRIEND} {QUIET} allow
clipboard.Paste * {LOUD} {QUIET} allow
open.Uri * * * deny
open.File * * * deny
"""
PREPARE = ("mkdir -p ~/.config/incage/services ~/.config/incage/keys; cd ~/.config/incage; "
           "printf '#!/bin/sh\\nexec cat\\n' >services/Echo; chmod 755 services/Echo; "
           "ssh-keygen -q -t ed25519 -N '' -f keys/work; yes | head -c 4096 | incage copy --pastes 100 --seconds 3600")
OPERATIONS = ("files.Send of 4 KiB", "a call and its answer", "notify", "paste", "a refused open", "log", "keys list")
MEASURED = r"""
import json, os, sys, time
sys.path[:0] = ["/opt/cage-runtime/lib"]
from cage_runtime.sdbus import BusError, Connection
bus = Connection()
file = os.memfd_create("x")
os.write(file, b"x" * 4096)

def ask(name, member, signature, values, returns=""):
    names = (f"org.cageruntime.{name}", f"/org/cageruntime/{name}", f"org.cageruntime.{name}")
    return bus.call(*names, member, signature, values, returns=returns, timeout=60)

def call():
    inward, outward, status = ask("Call1", "Call", "sssa{sv}", ("Echo", "", "friend", {}), "hhh")
    os.write(inward, b"x" * 64)
    got = os.read(outward, 64)
    os.close(inward)
    os.read(status, 100)
    os.close(outward), os.close(status)

def refused():
    try:
        ask("Open1", "Uri", "ssa{sv}", ("https://example.org/", "friend", {}))
    except BusError as error:
        assert error.name.endswith("PolicyRefused"), error

def paste():
    try:
        os.close(ask("Clipboard1", "Paste", "sa{sv}", ("text/plain", {}), "h")[0])
    except BusError as error:  # asked for as often as may be: as long a way
        assert error.name.endswith("PolicyRefused"), error

WORK = (
    lambda: ask("Files1", "Send", "ssha{sv}", ("friend", "x", file, {"conflict": ("s", "replace")}), "s"), call,
    lambda: ask("Notify1", "Show", "ssa{sv}", ("x", "", {}), "u"), paste, refused,
    lambda: ask("Log1", "Write", "asa{sv}", (["x"], {})),
    lambda: ask("Keys1", "List", "sa{sv}", ("friend", {}), "a(say)"))
for line in sys.stdin:
    taken = []
    for work in WORK:
        # Its own share of decisions is not what is measured: ten a second.
        time.sleep(0.1)
        began = time.perf_counter()
        work()
        taken.append((time.perf_counter() - began) * 1000)
    print(json.dumps(taken), flush=True)
"""
FLOOD = r"""
import os, sys
sys.path[:0] = ["/opt/cage-runtime/lib"]
from cage_runtime.errors import RuntimeFailure
from cage_runtime.sdbus import BusError, Connection
file = os.memfd_create("x")
os.write(file, b"x" * 4096)
CALLS = (
    ("Files1", "Send", "ssha{sv}", ("friend", "x", file, {})), ("Files1", "SendTree", "ssa{sv}", ("friend", "x", {})),
    ("Call1", "Call", "sssa{sv}", ("Echo", "", "friend", {})), ("Notify1", "Show", "ssa{sv}", ("x", "", {})),
    ("Clipboard1", "Copy", "sha{sv}", ("text/plain", file, {})),
    ("Clipboard1", "Paste", "sa{sv}", ("text/plain", {})),
    ("Open1", "Uri", "ssa{sv}", ("https://example.org/", "friend", {})), ("Log1", "Write", "asa{sv}", (["x"] * 32, {})),
    ("Keys1", "List", "sa{sv}", ("friend", {})), ("Keys1", "Secret", "ssa{sv}", ("friend", "org.example.X", {})))

def names(name):
    return f"org.cageruntime.{name}", f"/org/cageruntime/{name}", f"org.cageruntime.{name}"

def flood():
    # Whoever says more than the bus takes is sent away, and comes again.
    while True:
        try:
            buses = [Connection() for _ in range(4)]
            while True:
                for bus in buses:
                    for name, member, signature, values in CALLS:
                        bus.post(*names(name), member, signature, values)
                    while bus.take() is not None:
                        pass
        except (OSError, RuntimeFailure):
            pass

def settle():
    # What is still under way is given up once its caller is gone; who is answered now is the last of them.
    bus = Connection()
    for name in {name for name, *_ in CALLS}:
        try:
            bus.call(*names(name), "None", timeout=60)
        except BusError:
            pass
    bus.close()

def compute():
    while True:
        pass

# A flood is one program; what only computes is as many as a flood has work for.
WORK = {b"+": [flood], b"=": [compute] * 4, b"-": []}
going = []
while word := os.read(0, 1):
    for pid in going:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
    if going:
        settle()
    going = []
    for work in WORK[word]:
        going.append(os.fork())
        if not going[-1]:
            work()
    os.write(1, b".")
"""


HALF = r"""
import select, socket, sys
path, *said = sys.argv[1:]
hello, *calls = map(bytes.fromhex, said)

class Gateway:
    def __init__(self):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(path)
        self.socket.sendall(b"\0AUTH ANONYMOUS\r\nBEGIN\r\n" + hello)
        self.socket.setblocking(False)
        self.serial, self.waits = 1, b""

    def fileno(self):
        return self.socket.fileno()

    def say(self):
        if not self.waits:
            for call in calls:
                self.serial += 1
                self.waits += call[:8] + self.serial.to_bytes(4, "little") + call[12:]
        self.waits = self.waits[self.socket.send(self.waits):]

gateways = []
while not select.select([0], [], [], 0)[0]:
    try:
        gateways = gateways or [Gateway() for _ in range(4)]
        heard, free, _ = select.select(gateways, gateways, [])
        for gateway in heard:
            if not gateway.socket.recv(1 << 16):
                raise OSError("sent away")
        for gateway in free:
            gateway.say()
    except BlockingIOError:
        pass
    except OSError:
        gateways = []
"""
CALLS: tuple[tuple[str, str, str, list[Any]], ...] = (
    ("Files1", "SendTree", "ssa{sv}", [FRIEND, "x", {}]), ("Call1", "Call", "sssa{sv}", ["Echo", "", FRIEND, {}]),
    ("Notify1", "Show", "ssa{sv}", ["x", "", {}]), ("Clipboard1", "Paste", "sa{sv}", ["text/plain", {}]),
    ("Open1", "Uri", "ssa{sv}", ["https://example.org/", FRIEND, {}]), ("Log1", "Write", "asa{sv}", [["x"] * 32, {}]),
    ("Keys1", "List", "sa{sv}", [FRIEND, {}]))


def _half(gateway: Path) -> subprocess.Popen[bytes]:
    """A hostile half that says all of them again and again, until its standard input ends."""
    bus = "org.freedesktop.DBus"
    said = [Message(destination=bus, path="/org/freedesktop/DBus", interface=bus, member="Hello", serial=1)]
    for name, member, signature, values in CALLS:
        said.append(Message(destination=f"org.cageruntime.{name}", path=f"/org/cageruntime/{name}", serial=1,
                            interface=f"org.cageruntime.{name}", member=member, signature=signature, body=values))
    words = [message._marshall(False).hex() for message in said]
    return subprocess.Popen([sys.executable, "-ISc", HALF, str(gateway), *words], stdin=subprocess.PIPE,
                            start_new_session=True)  # as all that is in a cage


class Floods:
    """What the loud cage does: as its user in the cage, and as a half on its gateway."""

    def __init__(self, inside: subprocess.Popen[bytes], gateway: Path) -> None:
        self._inside, self._gateway = inside, gateway
        self._half: subprocess.Popen[bytes] | None = None

    def go(self, how: str) -> None:
        """Flood, compute, or neither; nothing of what it did before is under way any more then."""
        self.end_half()
        if how == FLOODED:
            self._half = _half(self._gateway)
        assert self._inside.stdin is not None
        assert self._inside.stdout is not None
        self._inside.stdin.write({FLOODED: b"+", BUSY: b"=", ALONE: b"-"}[how])
        self._inside.stdin.flush()
        if self._inside.stdout.read(1) != b".":
            raise RuntimeError("whoever floods has ended")

    def end_half(self) -> None:
        if self._half is not None:
            assert self._half.stdin is not None
            self._half.stdin.close()
            if self._half.wait(30):
                raise RuntimeError("the half that floods has failed")
            self._half = None

    def end(self) -> None:
        self.end_half()
        self._inside.kill()
        self._inside.wait(30)


Start = Callable[..., "subprocess.Popen[bytes]"]
"""A command in the cage of that name, with pipes at its standard input and output."""


def measured(start: Start, gateway: Path, rounds: int, *, beside: str = ALONE) -> dict[str, dict[str, list[float]]]:
    """The times of each operation, in ms, as `beside` says and flooded, by turns; the first of each is not counted."""
    python = ("/usr/bin/python3", "-IS", "-c")
    quiet, flooding = start(QUIET, *python, MEASURED), start(LOUD, *python, FLOOD)
    floods = Floods(flooding, gateway)
    taken: dict[str, dict[str, list[float]]] = {what: {beside: [], FLOODED: []} for what in OPERATIONS}
    try:
        for number in range(rounds + 1):
            for how in (beside, FLOODED):
                floods.go(how)
                for what, took in zip(OPERATIONS, _round(quiet), strict=True):
                    if number:
                        taken[what][how].append(took)
    finally:
        floods.end()
        assert quiet.stdin is not None
        quiet.stdin.close()
        quiet.wait(60)
    return taken


def _round(quiet: subprocess.Popen[bytes]) -> list[float]:
    assert quiet.stdin is not None
    assert quiet.stdout is not None
    quiet.stdin.write(b"again\n")
    quiet.stdin.flush()
    line = quiet.stdout.readline()
    if not line:
        raise RuntimeError("whoever is measured has ended")
    took: list[float] = json.loads(line)
    return took


def everything(runtime: Runtime, client: Client, rounds: int) -> Iterator[Row]:
    """The rows, of a runtime that has no cage yet."""
    file = runtime.administrator / "policy.d/10-fairness.policy"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(RULES, encoding="ascii")
    subprocess.run([runtime.cagectl, "policy", "reload"], check=True, stdout=subprocess.DEVNULL)
    for name in (QUIET, LOUD, FRIEND):
        client.create(name, ephemeral=True)
    if client.enter(FRIEND, "/bin/sh", "-c", PREPARE):
        raise RuntimeError("the target could not be prepared")
    for name in (QUIET, LOUD):
        client.enter(name, "/bin/sh", "-c", f"incage call Nothing {FRIEND}")  # so that the gateway is there
    status = subprocess.run([runtime.cagectl, "--json=short", "status", LOUD], check=True, stdout=subprocess.PIPE)
    gateway = runtime.sockets / "gateways" / json.loads(status.stdout)["uuid"] / "bus"

    def start(name: str, *command: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen([runtime.cagectl, "enter", name, "--", *command], stdin=subprocess.PIPE,
                                stdout=subprocess.PIPE)

    yield from rows(measured(start, gateway, rounds))
    for name in (QUIET, LOUD, FRIEND):
        client.destroy(name)


def p99(samples: list[float]) -> float:
    """The smallest that 99 of a hundred do not exceed."""
    return sorted(samples)[max(0, -(-99 * len(samples) // 100) - 1)]


def rows(taken: dict[str, dict[str, list[float]]]) -> Iterator[Row]:
    """Of which the middle is the 99th percentile."""
    for what, by in taken.items():
        for how, samples in by.items():
            yield Row(figure=FIGURE, contender=named(what, how), unit="ms", runs=len(samples), median=p99(samples),
                      minimum=min(samples), maximum=max(samples))


def named(what: str, how: str) -> str:
    return f"p99 of {what}, {how}"


BOUNDS = tuple(Bound(figure=FIGURE, ours=named(what, FLOODED), peer=named(what, ALONE), limit=LIMIT)
               for what in OPERATIONS)


def shown(taken: dict[str, dict[str, list[float]]]) -> None:
    """One line each on standard error, for whoever waits."""
    for what, by in taken.items():
        sys.stderr.write(f"{what}: " + ", ".join(
            f"{how} {statistics.median(samples):.1f} ms, p99 {p99(samples):.1f}" for how, samples in by.items()) + "\n")
