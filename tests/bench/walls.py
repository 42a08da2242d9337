# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the wall costs: kernel calls in a cage and outside (P10), each wall alone, a life beside an earlier version's.

Samples of all contenders of a figure are interleaved.  The cages of each wall are of a spawner's service of its own in
this process, without bus and caged, which no wall touches; what is shipped has all walls and no way to leave one out.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

from cage_runtime.config import load_runtime, uid_of
from cage_runtime.errors import CageError
from cage_runtime.spawner import capability, syscall, wire
from cage_runtime.spawner.loop import Loop
from cage_runtime.spawner.service import Service
from cage_runtime.spawner.spec import AnyRequest, Birth, Limits, MakeStorage, Remove, Reply, Spawn, Stop
from cage_runtime.spawner.walls import ALL, Namespace, Walls
from tests.bench import bench
from tests.bench.figures import Bound, Row, judge, rows_shown, summary, verdicts_shown
from tests.bench.runtime import Client, remove_cgroup, running

SOURCE = Path(__file__).with_name("calls.c")
SAVED = Path(__file__).with_name("walls.json")
IN_CAGE = "/opt/cage-runtime/bench/calls"
WHOLE, OUTSIDE, BEFORE = "all walls", "outside", "an earlier version's"
FLOOR = "outside, all calls allowed"
"""By one filter of a single instruction: what any filter costs, however small."""
NONE = Walls(namespaces=frozenset(), seccomp=False, landlock=False, capabilities=False, lsm=False)
WALLS = {
    WHOLE: ALL,
    "without namespaces": Walls(namespaces=frozenset(), lsm=False),
    "without seccomp": Walls(seccomp=False),
    "without Landlock": Walls(landlock=False),
    "without capabilities": Walls(capabilities=False),
    "no wall": NONE,
    "namespaces alone": Walls(seccomp=False, landlock=False, capabilities=False, lsm=False),
    "seccomp alone": Walls(namespaces=frozenset(), landlock=False, capabilities=False, lsm=False),
    "Landlock alone": Walls(namespaces=frozenset(), seccomp=False, capabilities=False, lsm=False),
    "capabilities alone": Walls(namespaces=frozenset(), seccomp=False, landlock=False, lsm=False),
    "a network namespace alone": Walls(namespaces=frozenset({Namespace.NET}), seccomp=False, landlock=False,
                                       capabilities=False, lsm=False),
}
"""The LSM's share is measured where there is one, by guest instructions (tests/kernels)."""
CALLS = {
    "getppid": ("getppid", "100000"), "open+close": ("open", "5000", "/dev/shm/bench"),
    "open+close, a program": ("open", "5000", "/usr/bin/true"), "fork+exec": ("exec", "20", "/usr/bin/true"),
    "unix ping-pong": ("pingpong", "1500"),
}
"""Figure → words for calls.c, each some ten milliseconds."""
BOUNDS = (
    *(Bound(figure=f"P10 {call}", ours=WHOLE, peer=OUTSIDE, limit=limit) for call, limit in
      (("getppid", 1.30), ("open+close", 1.15), ("fork+exec", 1.05), ("unix ping-pong", 1.05))),
    Bound(figure="P1", ours=bench.P1, peer=BEFORE, limit=1.3),
)
OURS = frozenset({("P1", bench.P1), ("birth", WHOLE), *((f"P10 {call}", WHOLE) for call in CALLS)})


class Cages:
    """The cages of one set of walls, and a spawner's service that makes them."""

    def __init__(self, top: Path, prefix: Path, walls: Walls, number: int) -> None:
        self._loop = Loop()
        self._uuids = (f"{number:08x}{count:024x}" for count in range(1 << 24))
        config_file = top / "caged.conf"
        paths = {"state": top / "state", "run": top / "run", "shipped": prefix, "administrator": top / "etc",
                 "runtime": prefix, "cgroup": top.name}
        config_file.write_text("[paths]\n" + "".join(f'{key} = "{path}"\n' for key, path in paths.items()))
        config = load_runtime(config_file)
        (top / "run").mkdir()
        self._service = Service(config, self._loop, uid_of(config.users.caged), lambda _event: None, (), walls)
        self.standing = self.bear()

    def _ask(self, request: AnyRequest, *descriptors: int) -> None:
        replies: list[Reply] = []
        self._service.obey(request, list(descriptors), replies.append)
        while not replies:
            self._loop.turn()
        if replies[0].fault is not None:
            raise RuntimeError(replies[0].fault.sentence)

    def bear(self) -> str:
        uuid = next(self._uuids)
        self._ask(MakeStorage(id=1, uuid=uuid, ephemeral=True))
        self._ask(Birth(id=1, uuid=uuid, name="bench", level="public", compartments=[], exec_home=False,
                        limits=Limits(), processes=64, home_bytes=1 << 20, home_files=64))
        return uuid

    def output(self, uuid: str, *argv: str) -> str:
        """What a command in the cage prints until it has ended."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours:
            with theirs:
                self._ask(Spawn(id=1, uuid=uuid, argv=list(argv)), theirs.fileno())
            received = wire.receive(ours)
            if received is None or json.loads(received[0]).get("event") != "started":
                raise RuntimeError(f"{' '.join(argv)} did not start: {received}")
            zero, one, two = received[1]
            os.close(zero)
            with open(one, encoding="utf-8") as output, open(two, encoding="utf-8") as complaints:
                text, complaint = output.read(), complaints.read()
            ended = wire.receive(ours)
        if ended is None or json.loads(ended[0]).get("status") != 0:
            raise RuntimeError(f"{' '.join(argv)}: {complaint}")
        return text

    def end(self, uuid: str) -> None:
        self._ask(Stop(id=1, uuid=uuid, seconds=0))
        self._ask(Remove(id=1, uuid=uuid))

    def life(self) -> None:
        uuid = self.bear()
        self.output(uuid, "/usr/bin/true")
        self.end(uuid)

    def close(self) -> None:
        self.end(self.standing)
        self._service.close()


def prepare() -> None:
    """As the spawner does, but for what it does to itself: what cages inherit of that is a wall of theirs."""
    for kind in (syscall.CLONE_NEWNET, syscall.CLONE_NEWIPC, syscall.CLONE_NEWUTS):
        syscall.unshare(kind)  # what a cage without these shares is no machine's
    capability.one_way()
    os.umask(0o022)
    os.chdir("/")


@contextlib.contextmanager
def all_cages(prefix: Path) -> Iterator[dict[str, Cages]]:
    made: dict[str, Cages] = {}
    with tempfile.TemporaryDirectory(prefix="cage-bench-", dir="/run") as folder, contextlib.ExitStack() as ends:
        os.chmod(folder, 0o755)
        for number, (name, walls) in enumerate(WALLS.items(), 1):
            top = Path(folder, f"cage-runtime-bench-{os.getpid()}-{number}")
            top.mkdir(mode=0o755)
            ends.callback(_remove, top)
            made[name] = Cages(top, prefix, walls, number)
            ends.callback(made[name].close)
        yield made


def _remove(top: Path) -> None:
    for mount in ("cgroup", "proc"):
        with contextlib.suppress(OSError):
            syscall.umount2(str(top / "run" / mount), syscall.MNT_DETACH)
    remove_cgroup(Path("/sys/fs/cgroup", top.name))
    shutil.rmtree(top, ignore_errors=True)


# --- the figures -----------------------------------------------------------------------------------------------------
def called(program: Path, words: tuple[str, ...]) -> Callable[[], float]:
    def sample() -> float:
        return float(subprocess.run([program, *words], check=True, capture_output=True, text=True).stdout)

    return sample


def called_in(cages: Cages, words: tuple[str, ...]) -> Callable[[], float]:
    return lambda: float(cages.output(cages.standing, IN_CAGE, *words))


def sampled(figure: str, contenders: dict[str, Callable[[], float]], runs: int) -> list[Row]:
    """`runs` samples of each, in turns, of what each measures itself: nanoseconds a call."""
    bench.say(f"{figure}: {', '.join(contenders)}")
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    order = list(contenders.items())
    for number in range(1 + runs):
        for name, sample in order[number % len(order):] + order[: number % len(order)]:
            taken = sample()
            if number:
                samples[name].append(taken)
    return [summary(figure, name, "ns", taken) for name, taken in samples.items()]


def walls(prefix: Path, runs: int) -> Iterator[Row]:
    program = prefix / "bench/calls"
    with all_cages(prefix) as cages:
        lives = {name: made.life for name, made in cages.items()}
        yield from bench.measure("birth", dict(lives), runs)
        for call, words in CALLS.items():
            inside = {name: called_in(made, words) for name, made in cages.items()}
            outside = {OUTSIDE: called(program, words), FLOOR: called(program, (*words[:2], words[-1], "filtered"))}
            yield from sampled(f"P10 {call}", inside | outside, runs)


def lives(prefix: Path, before: Path, runs: int) -> Iterator[Row]:
    """P1, of both versions in turns."""
    name = f"cage-runtime-bench-{os.getpid()}"
    with (
        running(prefix, f"{name}-now"), contextlib.closing(Client()) as now,
        running(before, f"{name}-before"), contextlib.closing(Client()) as then,
    ):
        yield from bench.measure("P1", {bench.P1: bench.life(now), BEFORE: bench.life(then)}, runs)


@contextlib.contextmanager
def compiled(prefix: Path) -> Iterator[None]:
    """The program that calls, where cages see it and can execute it."""
    folder = prefix / "bench"
    folder.mkdir(exist_ok=True)
    try:
        subprocess.run(["cc", "-O2", "-static", "-o", folder / "calls", SOURCE], check=True)
        yield
    finally:
        shutil.rmtree(folder)


def in_a_process(make: Callable[[], Iterator[Row]]) -> list[Row]:
    """The rows that a process of its own makes, which may confine itself and enter what it likes."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read)
        status = 1
        try:
            rows = [asdict(row) for row in make()]
            with open(write, "w", encoding="utf-8") as told:
                json.dump(rows, told)
            status = 0
        except KeyboardInterrupt:
            status = 130
        except (CageError, OSError, RuntimeError) as error:
            bench.say(f"{type(error).__name__}: {error}")
        finally:
            os._exit(status)
    os.close(write)
    with open(read, encoding="utf-8") as told:
        text = told.read()
    if os.waitpid(pid, 0)[1]:
        raise RuntimeError("the measurement failed; see above")
    return [Row(**row) for row in json.loads(text)]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench --walls", description=__doc__.partition("\n")[0])
    parser.add_argument("--prefix", type=Path, required=True, help=argparse.SUPPRESS)
    parser.add_argument("--before", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--against", metavar="COMMIT", help="measure P1 beside that of an earlier commit")
    parser.add_argument("--runs", type=int, default=20, metavar="N", help=f"samples of each, {bench.RUNS_MIN} or more")
    parser.add_argument("--json", action="store_true", help="the data instead of the table")
    parser.add_argument("--save", action="store_true", help="keep the result in tests/bench/walls.json")
    options = parser.parse_args()
    if options.runs < bench.RUNS_MIN:
        parser.error(f"--runs is {bench.RUNS_MIN} or more")
    return options


def main() -> int:
    options = arguments()
    bench.alone()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))

    def of_walls() -> Iterator[Row]:
        prepare()
        yield from walls(options.prefix, options.runs)

    with compiled(options.prefix):
        rows = in_a_process(of_walls)
    if options.before is not None:
        rows += lives(options.prefix, options.before, options.runs)
    verdicts = judge(BOUNDS, rows)
    data = {"machine": bench.machine(), "rows": [asdict(row) for row in rows],
            "verdicts": [asdict(verdict) for verdict in verdicts]}
    text = json.dumps(data, indent=1)
    if options.save:
        SAVED.write_text(text + "\n", encoding="utf-8")
    shown = f"{rows_shown(rows, OURS)}\n\n{verdicts_shown(verdicts, [])}"
    sys.stdout.write((text if options.json else shown) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
