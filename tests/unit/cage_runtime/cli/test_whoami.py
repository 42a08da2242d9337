# SPDX-License-Identifier: LGPL-2.1-or-later
"""incage whoami: what the core has written about this cage, and what it may ask for; outside of one nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cage_runtime.cli import incage, verbs_incage
from cage_runtime.errors import PolicyRefused


@pytest.fixture
def identity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "identity.json"
    monkeypatch.setattr(verbs_incage, "IDENTITY", str(path))
    monkeypatch.setattr(verbs_incage, "_services", list)
    return path


def test_name_level_and_compartments(identity: Path, capsys: pytest.CaptureFixture[str]) -> None:
    known = {"name": "work", "level": "internal", "compartments": ["finance", "hr"]}
    identity.write_text(json.dumps(known))
    assert incage.main(["whoami"]) == 0
    assert capsys.readouterr().out == "work: internal, finance, hr\nNo services.\n"
    assert incage.main(["whoami", "-j"]) == 0
    assert json.loads(capsys.readouterr().out) == known | {"services": []}


def test_what_it_may_ask_for(
    identity: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    identity.write_text('{"name": "work", "level": "internal", "compartments": []}')
    monkeypatch.setattr(verbs_incage, "_services", lambda: [("files.Send", "allow"), ("call.*", "ask")])
    assert incage.main(["whoami"]) == 0
    assert capsys.readouterr().out == """work: internal
SERVICE    ACTION
files.Send allow
call.*     ask

2 services.
"""
    assert incage.main(["whoami", "--json=short"]) == 0
    assert json.loads(capsys.readouterr().out)["services"] == [
        {"service": "files.Send", "action": "allow"}, {"service": "call.*", "action": "ask"}]


def test_what_the_cage_is_is_told_also_where_the_rest_is_not(
    identity: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse() -> list[tuple[str, str]]:
        raise PolicyRefused("this cage asks too often; try again in a moment")

    known = {"name": "work", "level": "internal", "compartments": []}
    identity.write_text(json.dumps(known))
    monkeypatch.setattr(verbs_incage, "_services", refuse)
    assert incage.main(["whoami"]) == 126
    assert capsys.readouterr() == ("work: internal\n", "incage: this cage asks too often; try again in a moment\n")
    assert incage.main(["whoami", "-j"]) == 126
    assert json.loads(capsys.readouterr().out) == known


def test_no_compartments(identity: Path, capsys: pytest.CaptureFixture[str]) -> None:
    identity.write_text('{"name": "work", "level": "internal", "compartments": []}')
    assert incage.main(["whoami"]) == 0
    assert capsys.readouterr().out == "work: internal\nNo services.\n"


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
