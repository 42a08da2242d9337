# SPDX-License-Identifier: LGPL-2.1-or-later
"""The tier: for each kernel and each boot that the tests want, a guest that runs them and goes down.

Their output is shown as it comes; what they came to is in .build/kernels/KERNEL/BOOT.
"""

from __future__ import annotations

import argparse
import os
import selectors
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tests.kernels.host import image
from tests.kernels.host.boots import Boot, Kernel, emulator, planned
from tests.vm.host import cache, qemu
from tests.vm.host.image import Files
from tests.vm.host.plan import TOP
from tests.vm.host.report import Totals, totals
from tests.vm.host.run import end_when_told

GUEST_SECONDS = 20 * 60
END_SECONDS = 10
PIECE = 1 << 16


def say(words: str) -> None:
    print(f"kernel-test: {words}", file=sys.stderr, flush=True)  # noqa: T201 (this is a program)


def emulate(command: Sequence[str], console: Path) -> bool:
    """Run a guest to its end, its console to a file and to ours; False where it takes too long."""
    until = time.monotonic() + GUEST_SECONDS
    process = subprocess.Popen([*qemu.DIES_WITH_US, qemu.PROGRAM, *command], stdin=subprocess.DEVNULL,
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        assert process.stdout is not None
        with process.stdout as output, console.open("wb") as kept, selectors.DefaultSelector() as selector:
            selector.register(output, selectors.EVENT_READ)
            while selector.select(max(0.0, until - time.monotonic())):
                piece = os.read(output.fileno(), PIECE)
                if not piece:
                    return True
                kept.write(piece)
                sys.stdout.buffer.write(piece)
                sys.stdout.buffer.flush()
        return False
    finally:
        process.kill()
        process.wait(END_SECONDS)


def boot(files: Files, how: Boot, arguments: Sequence[str], given: argparse.Namespace, place: Path) -> Totals:
    """One guest's tests; one that left no results is an error."""
    place.mkdir(parents=True)
    start = time.monotonic()
    with cache.run_directory(cache.place()) as work:
        disk = image.task(work, given.runtime, given.program, arguments)
        in_time = emulate(emulator(how, files.kernel, files.disk, disk), place / "console.txt")
        if in_time:
            image.read_results(disk, place)
    say(f"the boot {how.name} took {time.monotonic() - start:.1f} s; results in {place.relative_to(TOP)}")
    junit, status = place / "results/junit.xml", place / "results/status"
    if not junit.exists() or not status.exists() or status.read_text(encoding="ascii").strip() not in ("0", "1"):
        say(f"the boot {how.name} did not run its tests to their end")
        return Totals(errors=1)
    return totals(junit.read_text(encoding="utf-8"))


def on_kernel(kernel: Kernel, given: argparse.Namespace) -> Totals:
    found = Totals()
    recipe = image.recipe(kernel.suite)
    results = TOP / ".build/kernels" / kernel
    shutil.rmtree(results, ignore_errors=True)
    with cache.machine(recipe, lambda place: image.build(recipe, place), cache.place() / "kernels") as files:
        for how, arguments in planned(given.arguments):
            say(f"{kernel}, {how.name}: {' '.join(arguments)}")
            found += boot(files, how, arguments, given, results / how.name)
    say(f"on {kernel}:{found.line().replace('=', '')}")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="kernel-test", add_help=False)
    parser.add_argument("--runtime", type=Path, required=True, help="laid out as below /, by scripts/stage")
    parser.add_argument("--program", type=Path, action="append", default=[], help="for the guest's PATH")
    parser.add_argument("kernels", choices=(*Kernel, "all"))
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="pytest's")
    given = parser.parse_args()
    end_when_told()
    found = Totals()
    for kernel in Kernel:
        if given.kernels in (kernel, "all"):
            found += on_kernel(kernel, given)
    print(found.line(), flush=True)  # noqa: T201 (this is a program)
    return 0 if found.good else 1


if __name__ == "__main__":
    os.umask(0o022)
    sys.exit(main())
