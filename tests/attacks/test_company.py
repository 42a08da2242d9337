# SPDX-License-Identifier: LGPL-2.1-or-later
"""C of the catalogue in company: what is held in one cage and looked for in the other, and on the host (35 to 43)."""

from __future__ import annotations

from pathlib import Path

from tests.attacks.conftest import Inside
from tests.attacks.host import Found
from tests.attacks.probe import company
from tests.attacks.probe.kernel import HELD, THROUGH, Answer
from tests.privileged.runtime import Cage

REASONS = {
    35: ("unlocked",), 36: ("unlocked",), 42: ("ECONNREFUSED", "ENOENT"), 43: ("ECONNREFUSED", "ENOENT"),
}


def met(holder: Cage, looker: Cage, found: Found, *, root: bool) -> tuple[dict[str, Answer], dict[str, object]]:
    with Inside(holder, root=root).waiting("hold") as waiting:
        assert waiting.first == "holding"
        answers = Inside(looker, root=root).answers("meet", found.meet)
        for path in ("/usr/bin/env", "/etc/passwd"):
            Path(path).read_bytes()  # the host's own, which the watch must not see either
        said = waiting.said()
    return {answer.attempt: answer for answer in answers}, said


def test_two_cages_do_not_meet(left: Cage, right: Cage, found: Found) -> None:
    for root in (False, True):
        answers, noticed = met(left, right, found, root=root)
        assert [answer for answer in answers.values() if answer.outcome != HELD] == []
        assert [answer for answer in answers.values() if answer.reason not in REASONS[answer.attack]] == []
        assert {answer.attack for answer in answers.values()} == set(REASONS)
        assert noticed["made"] is True
        assert company.noticed(noticed).outcome == HELD, noticed


def test_within_one_cage_the_same_things_are_met(left: Cage, found: Found) -> None:
    """The test above looks at what can be seen: here it is."""
    answers, noticed = met(left, left, found, root=False)
    of_the_host = ("the host's loopback", "an abstract socket of the host", *found.meet["sockets"])
    met_here = {name: answer.outcome for name, answer in answers.items() if name not in of_the_host}
    # A record lock to read is what a file that cannot be written can have; none is on a namespace's.
    assert {name for name, outcome in met_here.items() if outcome != THROUGH} == set()
    assert company.noticed(noticed).outcome == THROUGH
