# SPDX-License-Identifier: LGPL-2.1-or-later
"""Every attack of the catalogue is tried somewhere, and what is said to try it is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.attacks.catalogue import TITLES, TRIED
from tests.attacks.expected import EXPECTED, HELD_SOMEHOW, OF_THE_CAGES_ROOT, OF_THE_USER
from tests.attacks.known import KNOWN, WITHOUT_CONTEXTS

TESTS = Path(__file__).parents[1]


def test_every_number_is_tried() -> None:
    alone = {*EXPECTED, *OF_THE_USER, *OF_THE_CAGES_ROOT, *HELD_SOMEHOW}
    assert {*range(1, 45), 54} - {*alone, *TRIED} == set()
    assert {*alone, *TRIED} == set(TITLES)


@pytest.mark.parametrize("named", sorted({name for names in TRIED.values() for name in names}))
def test_what_is_said_to_try_it_is_there(named: str) -> None:
    file, _, function = named.partition("::")
    assert re.search(rf"^def {function}\(", (TESTS / file).read_text(), re.MULTILINE)


def test_what_is_known_to_get_through_is_something_that_is_tried() -> None:
    attempts = {(attack, attempt) for table in (EXPECTED, OF_THE_USER, OF_THE_CAGES_ROOT)
                for attack, reasons in table.items() for row in reasons.values() for attempt in row}
    attempts |= {(attack, attempt) for attack, row in HELD_SOMEHOW.items() for attempt in row}
    assert {*KNOWN, *WITHOUT_CONTEXTS} <= attempts
