# SPDX-License-Identifier: LGPL-2.1-or-later
"""What has to be as it was after a hostile cage half: whatever is not is told."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest

from tests.fuzz import bus
from tests.fuzz.bus import MEMORY_GROWTH_MAX, Process, Report

FILES = Process(pid=7, descriptors=9, memory=30_000)


def report(after: Process = FILES, beside: float = 20.0) -> Report:
    return Report(did={"honest": 1}, before={"files": FILES}, after={"files": after}, served=3,
                  percentiles=({"files.Send": 10.0}, {"files.Send": beside}))


def faults(of: Report, log: str = "", status: int = 0) -> list[str]:
    runtime = SimpleNamespace(cagectl=lambda *_words: SimpleNamespace(returncode=status))
    return bus._faults(runtime, of, log)  # type: ignore[arg-type]  # as far as it is asked


def test_what_is_as_it_was_is_no_fault() -> None:
    assert faults(report(replace(FILES, descriptors=8, memory=30_000 + MEMORY_GROWTH_MAX)), "a refusal") == []
    assert bus.slower(report()) == []
    assert "p99 10.0 ms -> 20.0 ms" in bus.shown(report())


@pytest.mark.parametrize(("after", "says"), [
    (replace(FILES, pid=8), "files is another process"),
    (replace(FILES, descriptors=10), "files has 10 descriptors, and had 9"),
    (replace(FILES, memory=30_001 + MEMORY_GROWTH_MAX), f"files has {30_001 + MEMORY_GROWTH_MAX} KiB, and had 30000"),
])
def test_what_is_not_is_told(after: Process, says: str) -> None:
    assert faults(report(after)) == [says]


@pytest.mark.parametrize("line", ["Traceback (most recent call last):", "Send failed inside the runtime; see its"])
def test_a_handler_that_failed_is_told(line: str) -> None:
    assert faults(report(), f"before\n{line}\nafter") == [line]


def test_a_chain_that_is_not_whole_is_told() -> None:
    assert faults(report(), status=1) == ["the audit chain is not whole"]


def test_whoever_is_served_slower_is_told() -> None:
    assert bus.slower(report(beside=20.1)) == ["files.Send: p99 20.1 ms beside it, 10.0 ms alone"]
