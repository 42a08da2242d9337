# SPDX-License-Identifier: LGPL-2.1-or-later
"""The templates as delivered are definitions that hold on a host as delivered."""

from __future__ import annotations

from pathlib import Path

import pytest

from cage_runtime.config import Definition, Paths, load_levels, parse_definition, read_text
from cage_runtime.daemon.define import CreateOptions, compose

SHIPPED = Path(__file__).parents[3] / "policies"
TEMPLATES = sorted(file.stem for file in (SHIPPED / "templates.d").iterdir())


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_makes_a_cage_of_a_level_that_there_is(name: str, tmp_path: Path) -> None:
    paths = Paths(shipped=str(SHIPPED), administrator=str(tmp_path))
    definition = compose(CreateOptions(template=name), paths)
    load_levels(paths).label(definition.level, definition.compartments)
    assert definition == parse_definition(read_text(SHIPPED / f"templates.d/{name}.toml"), name)


def test_default_changes_nothing() -> None:
    assert parse_definition(read_text(SHIPPED / "templates.d/default.toml"), "default.toml") == Definition()
