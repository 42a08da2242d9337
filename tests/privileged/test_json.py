# SPDX-License-Identifier: LGPL-2.1-or-later
"""--json of the real thing: one document on standard output, nothing else there, and keys that stay as they are."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.privileged.conftest import MakeCage
from tests.privileged.runtime import Cage, Runtime

LIST = {"name", "uuid", "state", "level", "compartments", "ephemeral", "owner", "autostart", "processes", "documents"}
STATUS = LIST | {"description", "created", "applications", "home", "unenforced", "since", "require", "private", "walls",
                 "denials", "mediated"}
EXPLAINED = {"action", "rule", "reason", "flow", "target", "parameters", "passed", "change", "note"}
RECORD = {"sequence", "time", "kind", "fields", "previous", "hash"}
KEYS: list[tuple[str, type, set[str]]] = [
    ("list", list, LIST),
    ("status", list, STATUS),
    ("status told", dict, STATUS),
    ("show told", dict, {"name", "definition"}),
    ("policy explain told files.Send told", dict, EXPLAINED),
    ("policy check", dict, {"faults", "leaks", "warnings", "opened"}),
    ("graph", dict, {"levels", "cages", "flows"}),
    ("audit tail -n 3", list, RECORD),
    ("audit verify", dict, {"fault"}),
    ("audit key", dict, {"key"}),
    ("doctor", list, {"check", "state", "detail", "help"}),
    ("version", dict, {"version"}),
    ("policy reload", dict, {"policy"}),
]
TEXTS = ["logs told", "app list told", "app remotes"]


@pytest.fixture(scope="module")
def told(shared_cage: MakeCage) -> Cage:
    return shared_cage("told", "--level", "internal", "--compartment", "legal")


def document(runtime: Runtime, form: str, line: str) -> Any:
    """The one document; its form decides how many lines it has."""
    ended = runtime.cagectl(f"--json={form}", *line.split())
    assert (ended.returncode, ended.stderr) == (0, b""), ended.stderr
    text = ended.stdout.decode("ascii")
    assert text.endswith("\n")
    if form == "short":
        assert text.count("\n") == 1
    return json.loads(text)


@pytest.mark.usefixtures("told")
@pytest.mark.parametrize("form", ["short", "pretty"])
@pytest.mark.parametrize(("line", "kind", "keys"), KEYS, ids=[row[0] for row in KEYS])
def test_keys(runtime: Runtime, form: str, line: str, kind: type, keys: set[str]) -> None:
    shown = document(runtime, form, line)
    assert isinstance(shown, kind)
    for entry in shown if isinstance(shown, list) else [shown]:
        assert set(entry) == keys


@pytest.mark.usefixtures("told")
@pytest.mark.parametrize("line", TEXTS)
def test_lists(runtime: Runtime, line: str) -> None:
    assert isinstance(document(runtime, "short", line), list)


def test_a_cages_life_in_json(runtime: Runtime) -> None:
    assert set(document(runtime, "short", "create passing")) == STATUS
    for verb, state in (("pause", "paused"), ("resume", "running"), ("stop", "stopped"), ("start", "running"),
                        ("kill", "stopped")):
        assert document(runtime, "pretty", f"{verb} passing") == [{"name": "passing", "state": state}]
    assert document(runtime, "short", "destroy passing --yes") == [{"name": "passing", "state": "destroyed"}]


def test_what_a_cage_says_of_itself(told: Cage) -> None:
    ended = told.enter("incage", "whoami", "--json=short")
    said = json.loads(ended.stdout)
    assert {"service": "files.Send", "action": "allow"} in said.pop("services")
    assert said == {"name": "told", "level": "internal", "compartments": ["legal"]}
    sent = told.enter("incage", "-j", "send", "nothing", "--to", "nobody")
    assert (sent.returncode, json.loads(sent.stdout)) == (1, [])
    assert sent.stderr == b'incage: "nothing" does not exist\n'


@pytest.mark.parametrize("line", ["status nope", "create Work", "app list nope", "frobnicate", "list --frobnicate"])
def test_an_error_leaves_standard_output_empty(runtime: Runtime, line: str) -> None:
    plain, as_json = runtime.cagectl(*line.split()), runtime.cagectl("-j", *line.split())
    assert as_json.stdout == plain.stdout == b""
    assert (as_json.returncode, as_json.stderr) == (plain.returncode, plain.stderr)


def test_with_several_names_each_is_told(runtime: Runtime, told: Cage) -> None:
    ended = runtime.cagectl("-j", "stop", "nope", told.name)
    assert (ended.returncode, json.loads(ended.stdout)) == (1, [{"name": "told", "state": "stopped"}])
    assert ended.stderr == b'cagectl: there is no cage "nope"; cagectl list shows those there are\n'
    runtime.ok("start", told.name)
