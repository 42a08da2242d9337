# SPDX-License-Identifier: LGPL-2.1-or-later
"""incage whoami: what the core has written about this cage; outside of one nothing can be asked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cage_runtime.cli import incage, verbs_incage


@pytest.fixture
def identity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "identity.json"
    monkeypatch.setattr(verbs_incage, "IDENTITY", str(path))
    return path


def test_name_level_and_compartments(identity: Path, capsys: pytest.CaptureFixture[str]) -> None:
    known = {"name": "work", "level": "internal", "compartments": ["finance", "hr"]}
    identity.write_text(json.dumps(known))
    assert incage.main(["whoami"]) == 0
    assert capsys.readouterr().out == "work: internal, finance, hr\n"
    assert incage.main(["whoami", "-j"]) == 0
    assert json.loads(capsys.readouterr().out) == known


def test_no_compartments(identity: Path, capsys: pytest.CaptureFixture[str]) -> None:
    identity.write_text('{"name": "work", "level": "internal", "compartments": []}')
    assert incage.main(["whoami"]) == 0
    assert capsys.readouterr().out == "work: internal\n"


def test_outside_a_cage_it_says_so(identity: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for line in ("whoami", "send figures.txt --to vault"):
        assert incage.main(line.split()) == 125
        assert capsys.readouterr().err == f"incage: this is not the inside of a cage: there is no {identity}\n"


@pytest.mark.parametrize("content", ["", "[]", "{", '{"compartments": 7}', "\x00"])
def test_a_file_that_makes_no_sense_is_a_failure(
    identity: Path, content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    identity.write_text(content)
    assert incage.main(["whoami"]) == 125
    assert "cannot be understood" in capsys.readouterr().err
