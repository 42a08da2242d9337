# SPDX-License-Identifier: LGPL-2.1-or-later
"""The tier: a program for each course, all at once, and one line at the end that adds up what they came to.

What the first one says is shown as it comes, what the others say when they have ended.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.vm.host.plan import TOP, Course, courses, planned
from tests.vm.host.recipe import Suite
from tests.vm.host.report import Totals, read_totals
from tests.vm.host.run import end_when_told, options, say

OUTPUT = "output.txt"
END_SECONDS = 60
"""For a program that was told to end, to end its machine."""


@contextlib.contextmanager
def started(course: Course, words: Sequence[str], results: Path, *, shown: bool) -> Iterator[subprocess.Popen[bytes]]:
    """The program of a course; it ends with the context."""
    with (results / OUTPUT).open("wb") as output:
        program = subprocess.Popen(
            [sys.executable, "-m", "tests.vm.host.run", "--results", results, course, *words],
            stdin=subprocess.DEVNULL, stdout=None if shown else output, stderr=None if shown else subprocess.STDOUT)
    try:
        yield program
    finally:
        program.terminate()
        program.wait(END_SECONDS)


def run_together(plan: Sequence[Course], words: Sequence[str], top: Path) -> Totals:
    with contextlib.ExitStack() as stack:
        programs = {}
        for course in plan:
            results = top / course
            results.mkdir(parents=True)
            programs[results] = stack.enter_context(started(course, words, results, shown=course is plan[0]))
        found = Totals()
        for results, program in programs.items():
            status = program.wait()
            if later := (results / OUTPUT).read_bytes():
                say(f"meanwhile, {results.name}:")
                sys.stdout.buffer.write(later)
                sys.stdout.flush()
            found += read_totals(results, status)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="vm-test", parents=[options()])
    parser.add_argument("suite", type=Suite)
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="pytest's")
    words = parser.parse_args()
    end_when_told()
    results = TOP / ".build/vm" / words.suite
    shutil.rmtree(results, ignore_errors=True)
    start = time.monotonic()
    found = run_together(courses(planned(words.arguments)), sys.argv[1:], results)
    say(f"everything: {time.monotonic() - start:.1f} s; results in {results.relative_to(TOP)}")
    print(found.line(), flush=True)  # noqa: T201 (this is a program)
    return 0 if found.good else 1


if __name__ == "__main__":
    os.umask(0o022)
    sys.exit(main())
