# SPDX-License-Identifier: LGPL-2.1-or-later
"""The tests of one course on a booted machine: a saved one goes on, gets our package, and runs them in phases.

What the phases came to is written to the results' directory, and what else there is to know.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.vm.host import cache, image, qemu
from tests.vm.host.guest import Guest
from tests.vm.host.plan import TOP, Course, Phase, planned
from tests.vm.host.recipe import Recipe, Suite, packages
from tests.vm.host.report import Totals, totals, write_totals

COURSE_SECONDS = 45 * 60
PHASE_SECONDS = 20 * 60
INSTALL_SECONDS = 10 * 60
RESTORE_SECONDS = 60
JOURNAL_SECONDS = 120
NO_TESTS = 5
"""pytest's status where it has found none."""

TREE, PACKAGES, RESULTS = "/root/cage-runtime", "/root/packages", "/root/results"
SAMPLE = "/var/lib/cage-runtime-quickstart/sample"
PUSHED = ("README.md", "tests/readme.py", "tests/vm")
ENVIRONMENT = {"LANG": "C.UTF-8", "TERM": "dumb", "PYTHONUNBUFFERED": "1"}


@dataclass(kw_only=True)
class Timings:
    """How long each step took, told as it ends."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[None]:
        start = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = round(time.monotonic() - start, 1)
            say(f"{name}: {self.seconds[name]} s")


def say(words: str) -> None:
    print(f"vm-test: {words}", file=sys.stderr, flush=True)  # noqa: T201 (this is a program)


@dataclass(frozen=True, kw_only=True)
class Given:
    """What was built outside, where it does not take minutes."""

    package: Path
    later: Path
    """The same under a higher version, for the tests of upgrades; it is not installed."""
    sample: Path
    """What scripts/build-sample-app has built."""


# --- the machine ------------------------------------------------------------------------------------------------------
def recipe_for(suite: Suite, package: Path) -> Recipe:
    fields = [subprocess.run(["dpkg-deb", "--field", package, name], capture_output=True, text=True, check=True).stdout
              for name in ("Depends", "Recommends")]
    sources = (image.AGENT, *(Path(__file__).with_name(f"{name}.py") for name in ("image", "initrd")))
    made_by = hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()
    return Recipe(suite=suite, packages=packages(*fields), emulator=qemu.version(), made_by=made_by)


def build(recipe: Recipe, directory: Path, logs: Path, timings: Timings) -> image.Files:
    """A machine that has booted once, in an empty directory."""
    say(f"no machine of this kind is kept yet: one is made of {recipe.suite}'s packages")
    with timings.step("image"):
        files = image.build(recipe, directory)
    with timings.step("first boot"):
        qemu.disk_over(files.disk, files.booted_disk)
        with qemu.running(files, files.booted_disk, logs) as machine:
            guest = Guest(machine)
            guest.greet(RESTORE_SECONDS * 5)
            guest.settle()
            guest.ok("sh", "-ec", "systemctl start polkit; udevadm settle; python3 -c 'import pytest'; sync")
            machine.save(files.memory)
    return files


@contextlib.contextmanager
def restored(files: image.Files, work: Path, timings: Timings) -> Iterator[Guest]:
    with contextlib.ExitStack() as stack:
        with timings.step("restore"):
            disk = work / "disk.qcow2"
            qemu.disk_over(files.booted_disk, disk)
            machine = stack.enter_context(qemu.running(files, disk, work, waits=True))
            machine.go_on(files.memory)
            guest = Guest(machine)
            guest.greet(RESTORE_SECONDS)
        yield guest


# --- the tests --------------------------------------------------------------------------------------------------------
def prepare(guest: Guest, given: Given, course: Course, timings: Timings) -> None:
    """The package installed as an administrator does it, and beside it what the tests need."""
    with timings.step("files"):
        guest.put({TOP / name: f"{TREE}/{name}" for name in PUSHED})
        guest.put({deb: f"{PACKAGES}/{deb.name}" for deb in (given.package, given.later)})
        guest.put({given.sample / name: f"{SAMPLE}/{name}" for name in ("repo", "key.gpg")})
        guest.ok("mkdir", "-p", RESULTS)
    if course is Course.LIFE:
        with timings.step("footprint"):
            guest.ok("env", f"--chdir={TREE}", "python3", "-m", "tests.vm.footprint", f"{PACKAGES}/before.json")
    with timings.step("apt-get install"):
        said = guest.ok("env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "install", "--yes",
                        f"{PACKAGES}/{given.package.name}", seconds=INSTALL_SECONDS)
    say(said.strip().splitlines()[-1])


def run_phase(guest: Guest, phase: Phase, arguments: Sequence[str], results: Path,
              timings: Timings) -> tuple[int, Totals]:
    """pytest's status, and what its tests came to."""
    if phase.reboots:
        with timings.step("reboot"):
            guest.reboot()
    junit = f"junit-{phase.name}.xml"
    with timings.step(f"tests, {phase.name}"):
        ended = guest.run(
            "env", f"--chdir={TREE}", "python3", "-m", "pytest", "-c", "tests/vm/pytest.ini", "--rootdir=tests/vm",
            "--confcutdir=tests/vm", "--verbose", "--durations=20", f"--junitxml={RESULTS}/{junit}", *arguments,
            environment=ENVIRONMENT, seconds=PHASE_SECONDS, sink=_shown)
    guest.get(RESULTS, results)
    if not (results / junit).exists():
        return ended.status or NO_TESTS, Totals()
    return ended.status, totals((results / junit).read_text(encoding="utf-8"))


def _shown(piece: bytes) -> None:
    sys.stdout.buffer.write(piece)
    sys.stdout.buffer.flush()


def run_all(guest: Guest, plan: Sequence[tuple[Phase, list[str]]], results: Path, timings: Timings,
            *, whole: bool) -> Iterator[Totals]:
    """Of every phase, whatever came of those before; one that found no test has failed where the whole tier runs."""
    for phase, arguments in plan:
        status, came = run_phase(guest, phase, arguments, results, timings)
        unfinished = status not in (0, 1) and (whole or status != NO_TESTS)
        if unfinished:
            say(f"the phase {phase.name} did not run to its end: pytest's status is {status}")
        yield came + Totals(errors=int(unfinished))


def bring_back(guest: Guest, results: Path) -> None:
    guest.run("sh", "-c", f"mkdir -p {RESULTS}; dmesg >{RESULTS}/dmesg.txt; "
              f"journalctl --no-pager --output=short-precise >{RESULTS}/journal.txt", seconds=JOURNAL_SECONDS)
    guest.get(RESULTS, results)


def course_of(suite: Suite, course: Course, arguments: Sequence[str], given: Given, results: Path) -> Totals:
    plan = [(phase, words) for phase, words in planned(arguments) if phase.course is course]
    timings = Timings()
    recipe = recipe_for(suite, given.package)
    found = Totals()
    try:
        with cache.machine(recipe, lambda place: build(recipe, place, results, timings), cache.place()) as files, \
                cache.run_directory(cache.place()) as work, contextlib.ExitStack() as stack:
            stack.callback(_keep_logs, work, results)
            guest = stack.enter_context(restored(files, work, timings))
            try:
                prepare(guest, given, course, timings)
                for came in run_all(guest, plan, results, timings, whole=not arguments):
                    found += came
            except qemu.MachineError as error:
                say(str(error))
                found += Totals(errors=1)
            bring_back(guest, results)
    except (qemu.MachineError, subprocess.CalledProcessError) as error:
        say(str(error))
        found += Totals(errors=1)
    finally:
        (results / "timings.json").write_text(json.dumps(timings.seconds, indent=2) + "\n", encoding="utf-8")
    return found


def _keep_logs(work: Path, results: Path) -> None:
    for log in work.glob("*.txt"):
        shutil.copy(log, results)


def _too_long(number: int, frame: object) -> None:
    del number, frame
    raise qemu.MachineError(f"the machine is not done within {COURSE_SECONDS // 60} minutes")


def _told_to_end(number: int, frame: object) -> None:
    del frame
    raise SystemExit(128 + number)


def end_when_told() -> None:
    """SIGTERM and SIGHUP end what runs in order, its machine too."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _told_to_end)


def options() -> argparse.ArgumentParser:
    """Of this program, and of the one that starts it for each course."""
    parser = argparse.ArgumentParser(prog="vm-test", add_help=False)
    for name in ("--package", "--later", "--sample"):
        parser.add_argument(name, type=Path, required=True)
    return parser


def main() -> int:
    parser = argparse.ArgumentParser(prog="vm-test", parents=[options()])
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("course", type=Course)
    parser.add_argument("suite", type=Suite)
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="pytest's")
    words = parser.parse_args()
    signal.signal(signal.SIGALRM, _too_long)
    end_when_told()
    signal.alarm(COURSE_SECONDS)
    given = Given(package=words.package, later=words.later, sample=words.sample)
    found = course_of(words.suite, words.course, words.arguments, given, words.results)
    write_totals(found, words.results)
    return 0 if found.good else 1


if __name__ == "__main__":
    os.umask(0o022)
    sys.exit(main())
