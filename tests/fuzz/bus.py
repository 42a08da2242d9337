# SPDX-License-Identifier: LGPL-2.1-or-later
"""A hostile cage half (hostile.py) at a real core, and what has to be as it was afterwards: scripts/fuzz bus.

The core's processes are the same, none has failed inside, each has the descriptors and the memory that it had, no
question of the cage's waits, the audit chain is whole; and meanwhile another cage was served as before.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import random
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jeepney import message_bus
from jeepney.io.blocking import DBusConnection

from mediators.wire import bus_name
from tests.fuzz.hostile import NAMES, memory
from tests.privileged.gateways import ask, gateway
from tests.privileged.rules import policy, until
from tests.privileged.runtime import TOP, Cage, Runtime, wait_readable

RULES = """
files.Send       *  hostile  pit       allow   max-size=1M
files.Move       *  hostile  pit       allow   max-size=1M
call.Echo        *  hostile  pit       allow
keys.List        *  hostile  pit       allow
keys.Sign        *  hostile  pit       allow
clipboard.Paste  *  hostile  pit       allow
open.Uri         *  hostile  pit       allow
open.File        *  hostile  pit       allow   max-size=1M
open.Uri         *  hostile  @default  ask     default-target=pit
open.File        *  hostile  @default  ask     default-target=pit
notify.Show      *  hostile  @core     allow
log.Write        *  hostile  @core     allow
files.Send       *  good     sink      allow
call.Echo        *  good     sink      allow
notify.Show      *  good     @core     allow
"""
ECHO = "#!/bin/sh\nexec cat\n"
LOUD_SECONDS, QUIET_SECONDS, LINGER_SECONDS = 20.0, 10.0, 2.0
"""In turn it is hostile and stopped, so that what else the host does falls on both; what it has begun ends meanwhile,
and its last seconds count for neither."""
WARM_SECONDS = 5.0
"""Of hostility before anything is measured: what is imported and made once is there then."""
MEMORY_GROWTH_MAX = 16 * 1024
"""KiB of resident memory that a process may have more in the end: what a heap in pieces has."""
PAUSE_SECONDS = 0.1
"""Of the other cage between two requests, which else would be told that it asks too often."""
SLOWER = 2.0
"""So many times may the 99th percentile of another cage be, of what it was before (M13)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Process:
    """One of the core's: who it is, and what it has."""

    pid: int
    descriptors: int
    memory: int
    """KiB that are resident."""


def processes(runtime: Runtime, cage: Cage) -> dict[str, Process]:
    """Those of the core, and the bus of the cage's gateway."""
    pids = {name: runtime.process(name) for name in ("caged", "cage-spawner")}
    pids |= {name: runtime.process(f"cage-mediator {name}") for name in NAMES}
    (pids["gateway"],) = runtime.gateway_bus(cage.uuid)
    return {name: _process(pid) for name, pid in pids.items()}


def _process(pid: int) -> Process:
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    resident = next(int(line.split()[1]) for line in status if line.startswith("VmRSS:"))
    return Process(pid=pid, descriptors=len(os.listdir(f"/proc/{pid}/fd")), memory=resident)


# --- another cage ------------------------------------------------------------------------------------------------
class Neighbour:
    """The cage `good`, which uses three mediators in turn, and how long each takes."""

    def __init__(self, half: DBusConnection) -> None:
        self.half = half
        self.took: dict[str, list[float]] = {"files.Send": [], "call.Echo": [], "notify.Show": []}

    def work(self, goes_on: Callable[[], bool]) -> None:
        works = {"files.Send": self._send, "call.Echo": self._call, "notify.Show": self._show}
        while goes_on():
            for service, work in works.items():
                began = time.perf_counter()
                work()
                self.took[service].append(time.perf_counter() - began)
                select.select([], [], [], PAUSE_SECONDS)

    def _ask(self, *words: Any) -> Any:
        error, body = ask(self.half, *words)
        assert error == "", f"{words}: {error}: {body}"
        return body

    def _send(self) -> None:
        with os.fdopen(memory(b"of the good one\n")) as file:
            body = self._ask("Files1", "Send", "ssha{sv}", "sink", "a.txt", file, {"conflict": ("s", "replace")})
        assert body[0].endswith("a.txt"), body

    def _call(self) -> None:
        inward, outward, status = (end.to_raw_fd() for end in self._ask("Call1", "Call", "sssa{sv}", "Echo", "",
                                                                         "sink", {}))
        with open(inward, "wb") as into, open(outward, "rb") as out, open(status, "rb") as ended:
            into.write(b"hello")
            into.close()
            assert out.read() == b"hello"
            wait_readable(ended.fileno(), "how the call ended")

    def _show(self) -> None:
        self._ask("Notify1", "Show", "ssa{sv}", "all is well", "", {})

    def percentiles(self) -> dict[str, float]:
        """The 99th, in milliseconds."""
        return {service: round(sorted(took)[int(len(took) * 0.99)] * 1000, 1) for service, took in self.took.items()}


# --- the run -----------------------------------------------------------------------------------------------------
@dataclass(kw_only=True, slots=True)
class Report:
    """What has come of it."""

    did: dict[str, int]
    before: dict[str, Process]
    after: dict[str, Process]
    percentiles: tuple[dict[str, float], dict[str, float]]
    """Of the neighbour alone, and beside the hostile one."""
    served: int
    """How often it was, meanwhile."""
    faults: list[str] = field(default_factory=list)


@contextlib.contextmanager
def hostile(runtime: Runtime, cage: Cage, seconds: float, seed: int) -> Iterator[subprocess.Popen[bytes]]:
    """A process of its own, with less of the processors than others, as whoever is in a cage has."""
    socket = f"{runtime.run}/gateways/{cage.uuid}/bus"
    words = [sys.executable, "-m", "tests.fuzz.hostile", socket, str(seconds), str(seed), "pit", "sink", "good"]
    process = subprocess.Popen(["nice", "-n", "10", *words], cwd=TOP, stdout=subprocess.PIPE)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def run(runtime: Runtime, cage: Callable[..., Cage], seconds: float, seed: int) -> Report:
    """Be hostile for so long; `cage` makes one of that name."""
    made = {name: cage(name, "--level", "internal") for name in ("hostile", "pit", "good", "sink")}
    for name in ("pit", "sink"):
        made[name].sh("mkdir -p ~/.config/incage/services && cat >~/.config/incage/services/Echo && "
                      "chmod 755 ~/.config/incage/services/Echo", input=ECHO.encode())
    with policy(runtime, RULES):
        for name in ("hostile", "good"):
            made[name].enter("incage", "call", "Nothing", "nobody")  # so that the gateway is there
        with gateway(runtime, made["good"]) as half:
            return _watched(runtime, made["hostile"], half, seconds, seed)


def _watched(runtime: Runtime, cage: Cage, half: DBusConnection, seconds: float, seed: int) -> Report:
    with hostile(runtime, cage, WARM_SECONDS, seed + 1) as process:
        process.wait()
    _settled(runtime, cage)
    before, log = processes(runtime, cage), len(runtime.log())
    alone, beside = Neighbour(half), Neighbour(half)
    loud = min(LOUD_SECONDS, seconds / 2)
    stopped = seconds * (LINGER_SECONDS + QUIET_SECONDS) / LOUD_SECONDS
    with hostile(runtime, cage, seconds + stopped, seed) as process:
        _in_turn(process, loud, alone, beside)
        assert process.stdout is not None
        did = json.loads(process.stdout.read())
    faults = []
    try:
        _settled(runtime, cage)
        until(lambda: not _more_open(before, processes(runtime, cage)), "descriptors are left open")
    except AssertionError as error:
        faults.append(str(error))
    report = Report(did=did, before=before, after=processes(runtime, cage), served=sum(map(len, beside.took.values())),
                    percentiles=(alone.percentiles(), beside.percentiles()), faults=faults)
    report.faults += _faults(runtime, report, runtime.log()[log:])
    return report


def _in_turn(process: subprocess.Popen[bytes], loud: float, alone: Neighbour, beside: Neighbour) -> None:
    """Until the hostile one ends, which is stopped each time after `loud` seconds."""
    while process.poll() is None:
        _for(loud, beside, process)
        process.send_signal(signal.SIGSTOP)
        _for(LINGER_SECONDS * loud / LOUD_SECONDS, Neighbour(alone.half), process)
        _for(QUIET_SECONDS * loud / LOUD_SECONDS, alone, process)
        process.send_signal(signal.SIGCONT)


def _for(seconds: float, neighbour: Neighbour, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + seconds
    neighbour.work(lambda: time.monotonic() < end and process.poll() is None)


def _settled(runtime: Runtime, cage: Cage) -> None:
    """Nobody is asked any more, nothing is staged, and no mediator has closed the cage's channel."""
    until(lambda: runtime.call("ListPrompts", "a{sv}", {})[0] == [], "questions of one that has gone wait")
    until(lambda: not list((runtime.state / "staging").iterdir()), "something is staged still")
    with gateway(runtime, cage) as half:
        half.send_and_get_reply(message_bus.Hello())
        for name in NAMES:
            has = functools.partial(half.send_and_get_reply, message_bus.NameHasOwner(bus_name(name)))
            until(lambda has=has: has().body[0], f"{name} has not come back to the cage's gateway")  # type: ignore[misc]


def _more_open(before: dict[str, Process], after: dict[str, Process]) -> list[str]:
    return [f"{name} has {after[name].descriptors} descriptors, and had {had.descriptors}"
            for name, had in before.items() if after[name].descriptors > had.descriptors]


def _faults(runtime: Runtime, report: Report, log: str) -> list[str]:
    found = _more_open(report.before, report.after)
    for name, had in report.before.items():
        has = report.after[name]
        if has.pid != had.pid:
            found.append(f"{name} is another process")
        if has.memory > had.memory + MEMORY_GROWTH_MAX:
            found.append(f"{name} has {has.memory} KiB, and had {had.memory}")
    found += [line for line in log.splitlines() if "Traceback" in line or "inside the runtime" in line]
    if runtime.cagectl("audit", "verify").returncode != 0:
        found.append("the audit chain is not whole")
    return found


def slower(report: Report) -> list[str]:
    """What of the neighbour's became slower than it may."""
    alone, beside = report.percentiles
    return [f"{service}: p99 {beside[service]} ms beside it, {alone[service]} ms alone"
            for service in alone if beside[service] > SLOWER * alone[service]]


def shown(report: Report) -> str:
    lines = [f"{count:8} {what}" for what, count in sorted(report.did.items())]
    lines += [f"{name:14} descriptors {had.descriptors} -> {report.after[name].descriptors}, "
              f"KiB {had.memory} -> {report.after[name].memory}" for name, had in report.before.items()]
    lines += [f"{service:14} p99 {alone} ms -> {report.percentiles[1][service]} ms"
              for service, alone in report.percentiles[0].items()]
    return "\n".join([*lines, f"the other cage was served {report.served} times"]) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/fuzz bus")
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    options = parser.parse_args()
    sys.stdout.write(f"seed {options.seed}\n")
    runtime = Runtime()
    made: list[Cage] = []

    def cage(name: str, *words: str) -> Cage:
        runtime.ok("create", name, *words)
        made.append(Cage(runtime, name))
        return made[-1]

    try:
        runtime.start()
        report = run(runtime, cage, options.seconds, options.seed)
        sys.stdout.write(shown(report))
        faults = report.faults + slower(report)
        sys.stdout.write("".join(f"fault: {fault}\n" for fault in faults) or "no fault\n")
        return 1 if faults else 0
    finally:
        for each in made:
            each.destroy()
        runtime.remove()


if __name__ == "__main__":
    sys.exit(main())
