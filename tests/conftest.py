# SPDX-License-Identifier: LGPL-2.1-or-later
"""For all tiers: what needs root says so, a skip is a failure in CI, a failure says how to see it again."""

from __future__ import annotations

import os
import signal
from collections.abc import Generator
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
pytest.register_assert_rewrite("tests.foreign", "tests.life")
IN_CI = bool(os.environ.get("CI"))


def pytest_configure() -> None:
    """A shell, or nohup(1), starts what it runs with these ignored, and everything below inherits that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(TESTS / "privileged") or item.path.is_relative_to(TESTS / "attacks"):
            item.add_marker("privileged")
            if os.geteuid() != 0:
                item.add_marker(pytest.mark.skip(reason="needs root: it makes real cages"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None, None, None]:
    """What is blocked while a program is tried in this process is not blocked for those that a later test starts."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    _no_skip_in_ci(report)
    if report.failed:
        report.sections.append(("again", f"scripts/test '{item.nodeid}'"))
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _no_skip_in_ci(report)
    return report


def _no_skip_in_ci(report: pytest.TestReport | pytest.CollectReport) -> None:
    if IN_CI and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        report.outcome = "failed"
        report.longrepr = f"{reason} (in CI a test that does not run has failed)"
