# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which phases a command line runs and on which machines, and what a phase without a result counts as."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.vm.host import run
from tests.vm.host.plan import PHASES, Course, Phase, courses, planned
from tests.vm.host.report import Totals
from tests.vm.host.run import NO_TESTS, Timings, run_all

FILES = ("test_machine.py", "test_scopes.py", "machine.py", "after_reboot/test_again.py", "at_last/test_purge.py",
         "persons/test_persons.py", "trouble/test_full.py")


@pytest.fixture
def top(tmp_path: Path) -> Path:
    for name in FILES:
        file = tmp_path / "tests/vm" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    return tmp_path


def shown(plan: Sequence[tuple[Phase, list[str]]]) -> dict[str, list[str]]:
    return {phase.name: arguments for phase, arguments in plan}


def test_without_arguments_every_file_runs_in_its_phase(top: Path) -> None:
    assert shown(planned([], top)) == {
        "machine": ["tests/vm/test_machine.py", "tests/vm/test_scopes.py"],
        "after-reboot": ["tests/vm/after_reboot"], "at-last": ["tests/vm/at_last"],
        "persons": ["tests/vm/persons"], "trouble": ["tests/vm/trouble"]}


def test_options_alone_go_to_every_phase(top: Path) -> None:
    plan = shown(planned(["-k", "limits"], top))
    assert list(plan) == [phase.name for phase in PHASES]
    assert plan["at-last"] == ["-k", "limits", "tests/vm/at_last"]


def test_a_path_runs_its_own_phase_alone(top: Path) -> None:
    assert shown(planned(["-x", "tests/vm/after_reboot/test_again.py::test_it"], top)) == {
        "after-reboot": ["-x", "tests/vm/after_reboot/test_again.py::test_it"]}
    assert list(shown(planned(["tests/vm/test_machine.py"], top))) == ["machine"]
    assert shown(planned(["tests/vm/trouble"], top)) == {"trouble": ["tests/vm/trouble"]}


def test_a_machine_runs_for_what_has_phases(top: Path) -> None:
    assert courses(planned([], top)) == [Course.LIFE, Course.TROUBLE]
    assert courses(planned(["tests/vm/trouble"], top)) == [Course.TROUBLE]


@pytest.mark.parametrize("stranger", ["tests/unit", "tests/vm/machine.py", "tests/vm/host"])
def test_a_path_of_no_phase_is_refused(stranger: str, top: Path) -> None:
    with pytest.raises(SystemExit, match=f"not of this tier: {stranger}"):
        planned([stranger], top)


@pytest.mark.parametrize(("status", "whole", "errors"), [
    (0, True, 0), (1, True, 0), (2, True, 1), (124, False, 1), (NO_TESTS, True, 1), (NO_TESTS, False, 0)])
def test_a_phase_that_did_not_run_to_its_end_is_an_error(status: int, whole: bool, errors: int,
                                                         monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "run_phase", lambda *_: (status, Totals(passed=1)))
    came = list(run_all(None, [(PHASES[0], [])], Path(), Timings(), whole=whole))  # type: ignore[arg-type]
    assert came == [Totals(passed=1, errors=errors)]
