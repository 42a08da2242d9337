# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the phases of a run came to, in one line that reads like pytest's own."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from xml.etree import ElementTree as ET

WIDTH = 80
FAULTS = frozenset(("failure", "error", "skipped"))
"""In pytest's file: what an element of a test holds that has not passed."""


@dataclass(frozen=True, kw_only=True)
class Totals:
    passed: int = 0
    failed: int = 0
    errors: int = 0
    """Of fixtures and of files, and phases that did not run to their end."""
    skipped: int = 0
    seconds: float = 0.0

    def __add__(self, other: Totals) -> Totals:
        return Totals(passed=self.passed + other.passed, failed=self.failed + other.failed,
                      errors=self.errors + other.errors, skipped=self.skipped + other.skipped,
                      seconds=self.seconds + other.seconds)

    @property
    def good(self) -> bool:
        """Something ran, and nothing was left out: what is skipped in a machine that we have made is a fault."""
        return self.passed > 0 and not self.failed and not self.errors and not self.skipped

    def line(self) -> str:
        counts = ((self.failed, "failed"), (self.passed, "passed"), (self.skipped, "skipped"),
                  (self.errors, "error" if self.errors == 1 else "errors"))
        words = ", ".join(f"{count} {name}" for count, name in counts if count) or "no tests ran"
        return f" {words} in {self.seconds:.2f}s ".center(WIDTH, "=")


def totals(junit: str) -> Totals:
    """Of one phase, from the file that pytest writes; ET.ParseError where it is no such file."""
    # The file is our own machine's, written by its pytest.
    found = Totals()
    for suite in ET.fromstring(junit).iter("testsuite"):
        count = {name: int(suite.attrib[name]) for name in ("failures", "errors", "skipped")}
        # Counted themselves: one that fails and whose fixture fails too is a test once, and twice among the faults.
        passed = sum(FAULTS.isdisjoint(child.tag for child in test) for test in suite.iter("testcase"))
        found += Totals(passed=passed, failed=count["failures"], errors=count["errors"], skipped=count["skipped"],
                        seconds=float(suite.attrib["time"]))
    return found


TOTALS = "totals.json"


def write_totals(found: Totals, results: Path) -> None:
    (results / TOTALS).write_text(json.dumps(asdict(found)) + "\n", encoding="utf-8")


def read_totals(results: Path, status: int) -> Totals:
    """What a program has written that ended with `status`; one that has written nothing, or more good than it says
    itself, is an error."""
    try:
        found = Totals(**json.loads((results / TOTALS).read_text(encoding="utf-8")))
    except FileNotFoundError:
        return Totals(errors=1)
    return found + Totals(errors=int(found.good and status != 0))
