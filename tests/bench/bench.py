# SPDX-License-Identifier: LGPL-2.1-or-later
"""The figures of the performance page, measured side by side against the peers that the distribution has.

Samples of all contenders of a figure are interleaved, so that whatever else the machine does falls on all alike.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import itertools
import json
import os
import platform
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

from cage_runtime.spawner import syscall
from tests.bench import fairness, memory, peers, policy, streams, transfers
from tests.bench.figures import (
    Bound,
    Change,
    Outcome,
    Row,
    Verdict,
    changes,
    judge,
    rows_shown,
    summary,
    verdicts_shown,
)
from tests.bench.runtime import Client, Runtime, remove_cgroup, running

SAVED = Path(__file__).with_name("result.json")
RUNS_MIN, WARM = 20, 3
CAGES_MAX = 100
P1, P2, P2_EPHEMERAL = "create, run true, destroy", "run true in a cage", "run true in an ephemeral cage"
P3, P4 = "cagectl enter NAME -- true", "cagectl --help"
PYTHON = "python3 -I -c pass"

BOUNDS = (
    Bound(figure="P1", ours=P1, peer="runc run", limit=1.0),
    Bound(figure="P1", ours=P1, peer="crun run", limit=0.6),
    Bound(figure="P1", ours=P1, peer="crun run, no cgroup", limit=0.6),
    Bound(figure="P1", ours=P1, peer="bwrap", limit=0.9, stretch=True),
    Bound(figure="P2", ours=P2, peer="crun exec", limit=0.6),
    Bound(figure="P2", ours=P2, peer="nsenter", limit=1.2, stretch=True),
    Bound(figure="P3", ours=P3, peer="runc exec", limit=1.5),
    Bound(figure="P3", ours=P3, peer="runc exec", limit=1.0, stretch=True),
    Bound(figure="P4", ours=P4, peer=PYTHON, limit=2.5),
    Bound(figure="P6", ours=memory.CREATED, peer=None, limit=4.0),
    Bound(figure="P6", ours=memory.ENTERED, peer=None, limit=4.0),
    Bound(figure="P8", ours=streams.CALL, peer=streams.BUS, limit=3.0),
    *policy.BOUNDS,
    *fairness.BOUNDS,
    *transfers.BOUNDS,
)
OURS = frozenset({("P9", policy.OURS), ("P9", policy.OURS_FEW), ("P9", policy.OURS_DENIED), ("P9", policy.OURS_FULL),
                  ("P1", P1), ("P2", P2), ("P2", P2_EPHEMERAL), ("P3", P3), ("P4", P4), ("P8", streams.CALL),
                  ("P7", transfers.SENT), ("P7", transfers.SENT_TREE)})

Work = Callable[[], None]


def say(text: str) -> None:
    sys.stderr.write(time.strftime(f"bench: %T {text}\n"))


# --- measuring -------------------------------------------------------------------------------------------------------
def process(argv: list[str]) -> Work:
    """Run `argv` as a whole process, with nothing on its three streams."""
    streams = [(os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_RDWR, 0) for number in range(3)]

    def work() -> None:
        pid = os.posix_spawn(argv[0], argv, os.environ, file_actions=streams)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if status:
            raise RuntimeError(f"{' '.join(argv)} ended with status {status}")

    return work


def measure(figure: str, contenders: dict[str, Work], runs: int) -> list[Row]:
    """`runs` samples of each contender, in turns, in ms."""
    say(f"{figure}: {', '.join(contenders)}")
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    order = list(contenders.items())
    gc.collect()
    gc.disable()
    for number in range(WARM + runs):
        # Each begins a round as often as any other, so that nobody always follows the same one.
        for name, work in order[number % len(order):] + order[: number % len(order)]:
            began = time.perf_counter_ns()
            work()
            taken = (time.perf_counter_ns() - began) / 1e6
            if number >= WARM:
                samples[name].append(taken)
    gc.enable()
    return [summary(figure, name, "ms", taken) for name, taken in samples.items()]


def ran(client: Client, cage: str) -> Work:
    def work() -> None:
        if status := client.enter(cage, peers.TRUE):
            raise RuntimeError(f"{peers.TRUE} in {cage} ended with status {status}")

    return work


def life(client: Client) -> Work:
    numbers = itertools.count()

    def work() -> None:
        name = f"life-{next(numbers)}"
        client.create(name, ephemeral=True)
        ran(client, name)()
        client.destroy(name)

    return work


def timed(runtime: Runtime, client: Client, programs: dict[str, str], runs: int, cgroup: str) -> Iterator[Row]:
    """P1 to P4."""
    with tempfile.TemporaryDirectory(prefix="cage-bench-", dir="/var/tmp") as folder:
        os.chmod(folder, 0o755)
        one_shot = peers.one_shot(programs, Path(folder), cgroup)
        yield from measure("P1", {P1: life(client)} | {n: process(argv) for n, argv in one_shot.items()}, runs)
        client.create("work", ephemeral=False)
        client.create("brief", ephemeral=True)
        with peers.standing(programs, Path(folder), cgroup) as containers:
            entering = {name: process(argv) for name, argv in containers.items()}
            own = {P2: ran(client, "work"), P2_EPHEMERAL: ran(client, "brief")}
            yield from measure("P2", own | entering, runs)
            command = {P3: process([runtime.cagectl, "enter", "work", "--", "true"])}
            yield from measure("P3", command | {n: work for n, work in entering.items() if n != "nsenter"}, runs)
        yield from measure("P4", {
            P4: process([runtime.cagectl, "--help"]),
            PYTHON: process(["/usr/bin/python3", "-I", "-c", "pass"]),
        }, runs)
        client.destroy("brief")
        client.destroy("work")


def sent(client: Client, runs: int) -> Iterator[Row]:
    """P7."""
    transfers.make(client)
    for names in ((transfers.SENT, transfers.COPIED), (transfers.SENT_TREE, transfers.COPIED_TREE)):
        yield from measure("P7", transfers.contenders(client, *names), runs)
    transfers.remove(client)


def crossing(runtime: Runtime, client: Client, runs: int) -> Iterator[Row]:
    """P7 and P8: what goes from cage to cage."""
    yield from sent(client, runs)
    say("P8: a call, D-Bus")
    yield from streams.rows(runtime, client, runs)


def everything(options: argparse.Namespace) -> tuple[list[Row], dict[str, str]]:
    if options.policy:
        return policy.rows(options.qrexec), {}
    name = f"cage-runtime-bench-{os.getpid()}"
    if options.fairness:
        say("fairness: every mediator at once, from one cage")
        with running(options.prefix, name) as runtime, contextlib.closing(Client()) as client:
            return list(fairness.everything(runtime, client, max(options.runs, fairness.ROUNDS))), {}
    programs = peers.found()
    try:
        with running(options.prefix, name) as runtime, contextlib.closing(Client()) as client:
            if options.transfers:
                return [*crossing(runtime, client, options.runs)], {}
            rows = memory.core_rows(runtime)
            used = list(memory.cage_rows(runtime, client, options.cages, say))
            times = list(timed(runtime, client, programs, options.runs, f"{name}-peers"))
            rows = [*times, *used, *rows, *policy.rows(options.qrexec), *crossing(runtime, client, options.runs)]
    finally:
        remove_cgroup(Path("/sys/fs/cgroup") / f"{name}-peers")
    return rows, peers.versions(programs)


# --- the result ------------------------------------------------------------------------------------------------------
def machine() -> dict[str, object]:
    return {"kernel": platform.release(), "cores": os.cpu_count(), "python": platform.python_version(),
            "files": resource.getrlimit(resource.RLIMIT_NOFILE)[0], "load": os.getloadavg()[0]}


def result(rows: list[Row], verdicts: list[Verdict], versions: dict[str, str], cages: int) -> dict[str, object]:
    return {"machine": machine(), "peers": versions, "cages": cages, "rows": [asdict(row) for row in rows],
            "verdicts": [asdict(verdict) for verdict in verdicts]}


def saved() -> list[Verdict]:
    if not SAVED.exists():
        return []
    verdicts = json.loads(SAVED.read_text(encoding="utf-8"))["verdicts"]
    return [Verdict(**{**verdict, "outcome": Outcome(verdict["outcome"])}) for verdict in verdicts]


def shown(rows: list[Row], verdicts: list[Verdict], changed: list[Change]) -> str:
    has_peers = not {row.figure for row in rows} <= {"P7", "P8", "P9", fairness.FIGURE}
    absent = peers.PACKAGES.keys() - peers.found().keys() if has_peers else ()
    missing = sorted({peers.PACKAGES[name] for name in absent})
    parts = [rows_shown(rows, OURS), verdicts_shown(verdicts, changed)]
    if missing:
        parts.append(f"Peers are missing; scripts/bench --install-peers brings them: {' '.join(missing)}")
    return "\n\n".join(parts)


def alone() -> None:
    """A mount namespace of our own: cgroup2 for the peers, no v1 hierarchy in their sight, nothing left behind."""
    syscall.unshare(syscall.CLONE_NEWNS)
    syscall.mount(None, "/", None, syscall.MS_REC | syscall.MS_PRIVATE)
    if not Path("/sys/fs/cgroup/cgroup.controllers").exists():
        flags = syscall.MS_NOSUID | syscall.MS_NODEV | syscall.MS_NOEXEC
        syscall.mount("tmpfs", "/sys/fs/cgroup", "tmpfs", flags, "size=64k")
        syscall.mount("cgroup2", "/sys/fs/cgroup", "cgroup2", flags)


def compared(options: argparse.Namespace) -> int:
    """What the attacks of the catalogue come to in a cage and in other sandboxes."""
    from tests.bench import attacks

    name = f"cage-runtime-bench-{os.getpid()}"
    results = attacks.everything(options.prefix, name, say)
    programs = {peer: path for peer in ("bwrap", "flatpak", "systemd-nspawn") if (path := shutil.which(peer))}
    text = attacks.shown(results)
    if options.json:
        text = json.dumps(attacks.data(results, peers.versions(programs)), indent=1)
    sys.stdout.write(text + "\n")
    return 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__.partition("\n")[0])
    parser.add_argument("--prefix", type=Path, required=True, help=argparse.SUPPRESS)
    parser.add_argument("--runs", type=int, default=40, metavar="N", help=f"samples of each, {RUNS_MIN} or more")
    parser.add_argument("--cages", type=int, default=20, metavar="N", help=f"cages for memory, to {CAGES_MAX}")
    parser.add_argument("--json", action="store_true", help="the data instead of the table")
    parser.add_argument("--save", action="store_true", help="keep the result, to compare later ones with")
    parser.add_argument("--attacks", action="store_true",
                        help="the attacks of the catalogue instead, and what gets through here and there")
    parser.add_argument("--policy", action="store_true", help="the figures of policy decisions alone; needs no root")
    parser.add_argument("--transfers", action="store_true", help="the figures of what crosses between cages alone")
    parser.add_argument("--fairness", action="store_true",
                        help="what one cage feels of another that floods every mediator, alone")
    parser.add_argument("--qrexec", type=Path, metavar="DIR",
                        help="a checkout of qubes-core-qrexec, whose parser decides beside ours")
    parser.add_argument("--install-peers", action="store_true",
                        help="first install the peers' packages from the distribution")
    options = parser.parse_args()
    if options.runs < RUNS_MIN or not 0 < options.cages <= CAGES_MAX:
        parser.error(f"--runs is {RUNS_MIN} or more, --cages is 1 to {CAGES_MAX}")
    if (options.policy or options.transfers or options.fairness) and options.save:
        parser.error("--save keeps all figures, --policy, --transfers and --fairness measure some")
    return options


def main() -> int:
    options = arguments()
    if not options.policy:
        alone()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        if options.attacks:
            return compared(options)
        rows, versions = everything(options)
    except KeyboardInterrupt:
        say("interrupted; everything is taken down")
        return 130
    verdicts = judge(BOUNDS, rows)
    changed = changes(saved(), verdicts)
    text = json.dumps(result(rows, verdicts, versions, options.cages), indent=1)
    if options.save:
        SAVED.write_text(text + "\n", encoding="utf-8")
    sys.stdout.write((text if options.json else shown(rows, verdicts, changed)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
