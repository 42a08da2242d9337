# SPDX-License-Identifier: LGPL-2.1-or-later
"""The lists of capabilities: one place for the code, the unit and the kernel's names."""

from __future__ import annotations

import re
from pathlib import Path

from cage_runtime.spawner import capability

UNIT = Path(__file__).parents[4] / "systemd/cage-spawner.service"


def test_the_unit_gives_the_spawner_what_it_keeps() -> None:
    (line,) = re.findall(r"^CapabilityBoundingSet=(.*)$", UNIT.read_text(), re.MULTILINE)
    assert sorted(line.split()) == sorted(capability.NAMES[number] for number in capability.SPAWNER)


def test_numbers_are_those_of_the_names() -> None:
    named = {name: number for name, number in vars(capability).items() if name.startswith("CAP_")}
    assert named == {name: capability.NAMES.index(name) for name in named}
    assert len(set(capability.NAMES)) == len(capability.NAMES) == 41


def test_what_cage_init_has_in_force_is_what_it_holds_but_mounting() -> None:
    assert {capability.CAP_SYS_ADMIN} == capability.INIT_CEILING - capability.INIT_USUAL
    assert capability.SPAWNER.keys() | {capability.CAP_KILL} >= capability.INIT_CEILING
