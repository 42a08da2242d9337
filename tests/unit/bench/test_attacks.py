# SPDX-License-Identifier: LGPL-2.1-or-later
"""The table of attacks: what is counted, what is shown, and that what does not apply is not counted."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

from tests.attacks import bundle
from tests.attacks.probe.kernel import CONTROL, HELD, NOT_HERE, THROUGH, Answer, judged
from tests.bench import attacks


def said(attempt: str, outcome: str, reason: str = "EPERM", attack: int = 23) -> Answer:
    return Answer(attack=attack, attempt=attempt, outcome=outcome, reason=reason)


RESULTS = {
    "cage": [said("keyctl", HELD), said("add_key", HELD), said("asks", CONTROL, "allowed")],
    "other": [said("keyctl", THROUGH, "allowed"), said("add_key", HELD), said("the gate", NOT_HERE, "not there", 51)],
}


def test_attempts_are_counted_that_apply_and_are_no_controls() -> None:
    table = attacks.shown(RESULTS).splitlines()
    assert table[0].split()[-2:] == ["cage", "other"]
    assert table[1].startswith("B system calls")
    assert table[1].endswith("0 of 2           1 of 2")
    assert not any(line.startswith("A ") for line in table)


def test_what_got_through_is_named_with_what_was_seen() -> None:
    assert "23 other: keyctl (allowed)" in attacks.shown(RESULTS)
    assert "cage: keyctl" not in attacks.shown(RESULTS)


def test_what_does_not_apply_is_said() -> None:
    assert "51 other: the gate does not apply: not there" in attacks.shown(RESULTS)


def test_a_refusal_is_one_of_those_that_the_attempt_has() -> None:
    assert judged(8, "x", "EPERM").outcome == HELD
    assert judged(8, "x", "EINVAL").outcome == THROUGH
    assert judged(8, "x", "EINVAL", ("EINVAL",)).outcome == HELD


def test_the_probe_is_one_file_of_the_standard_library(tmp_path: Path) -> None:
    file = tmp_path / "probe.pyz"
    file.write_bytes(bundle.bundle())
    ended = subprocess.run([sys.executable, "-IS", file, "nothing"], capture_output=True, text=True, check=False)
    assert (ended.returncode, "nothing is nothing to try" in ended.stderr) == (1, True)
    for module in bundle.PACKAGE.glob("*.py"):
        for node in ast.walk(ast.parse(module.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert {name.partition(".")[0] for name in names} <= sys.stdlib_module_names, module
