# SPDX-License-Identifier: LGPL-2.1-or-later
"""All that can be tried alone in a cage, by its user and by its root, each answered for the stated reason."""

from __future__ import annotations

import pytest

from tests.attacks.conftest import Inside
from tests.attacks.expected import EXPECTED, HELD_SOMEHOW, OF_THE_CAGES_ROOT, OF_THE_USER, Table
from tests.attacks.host import Found
from tests.attacks.known import known
from tests.attacks.probe.kernel import CONTROL, HELD, Answer
from tests.privileged.runtime import Cage, Runtime

Answers = dict[tuple[int, str], Answer]


def rows(table: Table) -> list[object]:
    return [pytest.param(attack, attempt, reason, id=f"{attack}: {attempt}")
            for attack, reasons in table.items() for reason, attempts in reasons.items() for attempt in attempts]


def tried(cage: Cage, found: Found, *, root: bool) -> Answers:
    return {(said.attack, said.attempt): said for said in Inside(cage, root=root).answers("try", found.alone)}


@pytest.fixture(scope="package")
def by_user(standing_cages: dict[str, Cage], found: Found) -> Answers:
    return tried(standing_cages["left"], found, root=False)


@pytest.fixture(scope="package")
def by_root(standing_cages: dict[str, Cage], found: Found) -> Answers:
    return tried(standing_cages["left"], found, root=True)


@pytest.fixture(params=["by_user", "by_root"])
def answers(request: pytest.FixtureRequest) -> Answers:
    answers: Answers = request.getfixturevalue(request.param)
    return answers


@pytest.fixture(scope="module")
def contexts(runtime: Runtime) -> bool:
    """Has a cage of this host a security context?"""
    checks = {check["check"]: check["state"] for check in runtime.json("doctor")}
    return bool(checks.get("security context") == "ok")


@pytest.fixture(autouse=True)
def known_to_get_through(request: pytest.FixtureRequest) -> None:
    """What is known has to go on getting through, or it is known no more."""
    given = getattr(request.node, "callspec", None)
    if given is None:
        return
    attack, attempt = given.params["attack"], given.params["attempt"]
    if why := known(attack, attempt, contexts=request.getfixturevalue("contexts")):
        # Root's ids cannot be mapped any deeper, whatever counts them.
        by_root = attack == 33 and given.params.get("answers") == "by_root"
        if not by_root:
            request.applymarker(pytest.mark.xfail(reason=why, strict=True))


@pytest.mark.parametrize(("attack", "attempt", "reason"), rows(EXPECTED))
def test_an_attempt_is_answered_for_the_stated_reason(
    answers: Answers, attack: int, attempt: str, reason: str
) -> None:
    assert answers[attack, attempt].reason == reason
    assert answers[attack, attempt].outcome in (HELD, CONTROL)


@pytest.mark.parametrize(("attack", "attempt", "reason"), rows(OF_THE_USER))
def test_an_attempt_of_the_user(by_user: Answers, attack: int, attempt: str, reason: str) -> None:
    assert by_user[attack, attempt].reason == reason


@pytest.mark.parametrize(("attack", "attempt", "reason"), rows(OF_THE_CAGES_ROOT))
def test_an_attempt_of_the_cages_root(by_root: Answers, attack: int, attempt: str, reason: str) -> None:
    assert by_root[attack, attempt].reason == reason


@pytest.mark.parametrize(("attack", "attempt"), [
    pytest.param(attack, attempt, id=f"{attack}: {attempt}")
    for attack, attempts in HELD_SOMEHOW.items() for attempt in attempts])
def test_an_attempt_tells_nothing(answers: Answers, attack: int, attempt: str) -> None:
    assert (answers[attack, attempt].outcome, answers[attack, attempt].reason) == (
        HELD, answers[attack, attempt].reason)


def test_nothing_was_tried_that_no_table_names(by_user: Answers, by_root: Answers) -> None:
    named = {(attack, attempt) for table in (EXPECTED, OF_THE_USER, OF_THE_CAGES_ROOT)
             for attack, reasons in table.items() for attempts in reasons.values() for attempt in attempts}
    named |= {(attack, attempt) for attack, attempts in HELD_SOMEHOW.items() for attempt in attempts}
    assert {*by_user, *by_root} == named
