# SPDX-License-Identifier: LGPL-2.1-or-later
"""The line that is printed last, and whether it is good."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.vm.host.report import Totals, read_totals, totals, write_totals

JUNIT = """<?xml version="1.0" encoding="utf-8"?><testsuites><testsuite name="pytest" errors="1" failures="2"
  skipped="1" tests="5" time="61.5" timestamp="2026-01-01T00:00:00" hostname="machine">
  <testcase name="one"/><testcase name="prints"><system-out/></testcase><testcase name="three"><failure/></testcase>
  <testcase name="four"><failure/><error/></testcase><testcase name="five"><skipped/></testcase>
</testsuite></testsuites>"""


def test_the_phases_are_added_up() -> None:
    both = totals(JUNIT) + Totals(passed=1, seconds=1.25)
    assert both == Totals(passed=3, failed=2, errors=1, skipped=1, seconds=62.75)
    assert both.line().strip("= ") == "2 failed, 3 passed, 1 skipped, 1 error in 62.75s"
    assert len(both.line()) == 80


def test_nothing_that_ran_is_not_good() -> None:
    assert Totals().line().strip("= ") == "no tests ran in 0.00s"
    assert not Totals().good


@pytest.mark.parametrize("fault", [Totals(failed=1), Totals(errors=1), Totals(skipped=1)])
def test_one_fault_spoils_it_and_a_skip_is_one(fault: Totals) -> None:
    assert (Totals(passed=5) + Totals(passed=1)).good
    assert not (Totals(passed=5) + fault).good


def test_what_a_machine_came_to_is_what_its_program_has_written(tmp_path: Path) -> None:
    for found, status in ((Totals(passed=3, seconds=1.5), 0), (Totals(passed=2, failed=1), 1)):
        write_totals(found, tmp_path)
        assert read_totals(tmp_path, status) == found


def test_a_program_that_ended_otherwise_than_it_says_is_an_error(tmp_path: Path) -> None:
    assert read_totals(tmp_path, 0) == Totals(errors=1)
    write_totals(Totals(passed=3), tmp_path)
    assert read_totals(tmp_path, -9) == Totals(passed=3, errors=1)
