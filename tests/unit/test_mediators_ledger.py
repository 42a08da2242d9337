# SPDX-License-Identifier: LGPL-2.1-or-later
"""Every attack on mediators is tried from both sides, or it is said why one does not apply; what tries it is there."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

TESTS = Path(__file__).parents[1]
LEDGER: dict[str, dict[str, Any]] = tomllib.loads((TESTS / "attacks/mediators.toml").read_text(encoding="utf-8"))
NUMBERS = {1, 2, 3, 4, 5, 6, 9, 10, 11, 12, 13, 14, 16, 17, 18, *range(20, 29), 30, 31, *range(40, 47), 50, 51, 52, 60,
           61, 63, *range(70, 76), 80, 81, 82, 83, 90}
"""Those that the design has; between them are none."""
NAMED = sorted({name for attack in LEDGER.values() for side in ("user", "half") for name in attack.get(side, [])})


def test_every_number_is_there() -> None:
    assert LEDGER.keys() == {f"M{number}" for number in NUMBERS}


@pytest.mark.parametrize("number", LEDGER)
def test_both_sides_try_it_or_it_is_said_why_not(number: str) -> None:
    attack = LEDGER[number]
    assert attack.keys() <= {"tried", "user", "half", "no-user", "no-half"}
    assert attack["tried"]
    for side in ("user", "half"):
        assert (side in attack) != (f"no-{side}" in attack)
        assert attack.get(side) or len(attack[f"no-{side}"]) > 30
    assert "user" in attack or "half" in attack


@pytest.mark.parametrize("named", NAMED)
def test_what_is_said_to_try_it_is_there(named: str) -> None:
    file, _, function = named.partition("::")
    assert re.search(rf"^(async )?def {function}\(", (TESTS / file).read_text(encoding="utf-8"), re.MULTILINE)
