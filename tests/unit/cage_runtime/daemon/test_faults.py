# SPDX-License-Identifier: LGPL-2.1-or-later
"""Each fault of what was asked is said in words, and where a file says it, with file and line."""

from __future__ import annotations

from typing import Any

import pytest

from cage_runtime.config import Paths, convert
from cage_runtime.daemon.define import CreateOptions, check_label, compose
from cage_runtime.errors import CageError, DefinitionError, UnknownLevel, UsageError
from cage_runtime.model import Levels

LEVELS = Levels(names=("public", "internal", "secret"), compartments=frozenset({"finance", "legal"}))
PATHS = Paths(administrator="/nonexistent", shipped="/nonexistent")
SIZE_RULE = 'a size of 4K or more, such as "512M" or "2G", and at most 999999T'


def asked(**options: Any) -> CreateOptions:
    return CreateOptions(definition_file="work.toml", **options)


FAULTS: list[tuple[dict[str, Any], type[CageError], str]] = [
    ({"template": "nope"}, UsageError, 'there is no template "nope"; '),
    ({"template": "../../etc/passwd"}, UsageError, r'there is no template "\.\./\.\./etc/passwd"; '),
    ({"template": "a", "definition": ""}, UsageError, "a cage is made from a template or from a file, not from both"),
    ({"level": ""}, UsageError, 'level: must be 1 to 31 of a-z, 0-9 and "-", first a letter$'),
    ({"compartments": ["a"] * 17}, UsageError, "compartments: must have at most 16 entries$"),
    ({"memory": "1e9"}, UsageError, f"memory: must be {SIZE_RULE}$"),
    ({"disk": "0"}, UsageError, f"disk: must be {SIZE_RULE}$"),
    ({"cpus": 0.0}, UsageError, "cpus: must be more than 0$"),
    ({"tasks": 15}, UsageError, "tasks: must be at least 16$"),
    ({"network": "nat"}, UsageError, 'network "nat" is not offered; only "none" is$'),
    ({"definition": 'level = "a"\ncolour = 1\n'}, DefinitionError, '^work.toml:2: unknown key "colour"$'),
]


@pytest.mark.parametrize(("options", "kind", "sentence"), FAULTS)
def test_what_cannot_be_is_said(options: dict[str, Any], kind: type[CageError], sentence: str) -> None:
    with pytest.raises(kind, match=sentence) as fault:
        compose(asked(**options), PATHS)
    assert fault.value.exit_status == 2


@pytest.mark.parametrize(("text", "options", "sentence"), [
    ('description = "x"\nlevel = "top"\n', {}, r'^work\.toml:2: level: there is no level "top"; this host has '),
    ('\n\ncompartments = ["navy"]\n', {}, r'^work\.toml:3: compartments: there is no compartment "navy"; '),
    ('level = "top"\n', {"level": "upper"}, '^there is no level "upper"; this host has public, internal, secret$'),
    ("", {"compartments": ["navy"]}, '^there is no compartment "navy"; this host has finance, legal$'),
])
def test_a_label_that_this_host_does_not_have(text: str, options: dict[str, Any], sentence: str) -> None:
    wanted = asked(definition=text, **options)
    with pytest.raises(UsageError, match=sentence) as fault:
        check_label(compose(wanted, PATHS), wanted, LEVELS)
    assert isinstance(fault.value, UnknownLevel) is ("level: " in sentence or "no level" in sentence)


def test_options_of_a_call_are_said_to_be_options() -> None:
    with pytest.raises(UsageError, match=r'^unknown option "colour"$'):
        convert({"colour": 1}, CreateOptions)
    with pytest.raises(UsageError, match=r"^start: must be true or false, not text$"):
        convert({"start": "no"}, CreateOptions)
