# SPDX-License-Identifier: LGPL-2.1-or-later
"""Requests that rules send on, and targets that persons choose: the new pair is decided like any other (M4)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cage_runtime.model import CHOICES_MAX, REDIRECTS_MAX, Action, Direction, Flow, Limit, Logged, Parameters
from cage_runtime.policy import engine
from cage_runtime.policy.stricter import stricter
from tests.unit.cage_runtime.policy import world as cages
from tests.unit.cage_runtime.policy.world import cage, world

ALLOW, ASK, DENY = Action.ALLOW, Action.ASK, Action.DENY
SEND = "files.Send * work"


def test_the_pair_that_it_is_sent_on_to_needs_a_rule_of_its_own() -> None:
    """M4: a redirect to a pair that is denied, or about which no rule says anything, is a denial."""
    assert world(f"{SEND} mail allow target=vault").decide("work", "mail").reason == engine.NO_RULE
    denied = world(f"{SEND} mail allow target=vault", f"{SEND} vault deny").decide("work", "mail")
    assert (denied.action, denied.rule) == (DENY, "p:2")


def test_sent_on_it_goes_to_the_new_target_with_the_flow_of_that() -> None:
    found = world(f"{SEND} web allow target=vault", f"{SEND} vault allow").decide("work", "web")
    assert (found.action, found.target, found.flow, found.rule) == (ALLOW, "vault", Flow.UP, "p:2")


def test_a_name_of_no_cage_can_be_sent_on() -> None:
    assert world(f"{SEND} boss allow target=vault", f"{SEND} vault allow").decide("work", "boss").target == "vault"


def test_down_needs_declassify_on_the_rule_of_the_new_pair() -> None:
    lines = f"{SEND} mail allow declassify target=web", f"{SEND} web allow"
    assert world(*lines).decide("work", "mail").action is DENY
    assert world(lines[0], f"{lines[1]} declassify").decide("work", "mail").action is ALLOW


def test_a_rule_that_sends_on_to_where_it_goes_anyway_is_the_last() -> None:
    found = world(f"{SEND} * allow target=vault").decide("work", "mail")
    assert (found.action, found.target) == (ALLOW, "vault")
    found = world("open.Uri * work * ask target=@disposable").decide("work", "", "open.Uri")
    assert (found.action, found.choices) == (ASK, ("@disposable:disposable",))


@pytest.mark.parametrize("lines", [
    [f"{SEND} mail allow target=vault", f"{SEND} vault allow target=mail"],
    [f"{SEND} mail allow target=vault", f"{SEND} vault allow target=web", f"{SEND} * allow target=mail"],
])  # fmt: skip
def test_a_circle_is_a_denial(lines: list[str]) -> None:
    assert world(*lines).decide("work", "mail").reason == engine.ROUND


@pytest.mark.parametrize(("redirects", "action"), [(REDIRECTS_MAX, ALLOW), (REDIRECTS_MAX + 1, DENY)])
def test_how_often_it_is_sent_on_is_bounded(redirects: int, action: Action) -> None:
    """M12."""
    chain = [f"a{n}" for n in range(redirects)]
    lines = [f"{SEND} {name} allow target={after}" for name, after in zip(chain, [*chain[1:], "vault"], strict=True)]
    assert world(*lines, f"{SEND} vault allow").decide("work", "a0").action is action


@pytest.mark.parametrize("line", [f"{SEND} mail allow target=work", f"{SEND} mail ask target=work"])
def test_nothing_is_sent_back_to_the_source(line: str) -> None:
    """M9."""
    assert world(line, "* * * * allow declassify").decide("work", "mail").reason == engine.TO_ITSELF


def test_one_persons_rule_sends_nothing_on_to_another_person() -> None:
    lines = f"{SEND} mail allow target=theirs", f"{SEND} @same-label allow"
    assert world(*lines).decide("work", "mail").action is DENY
    assert world(lines[0], f"{SEND} theirs allow").decide("work", "mail").action is ALLOW


def test_a_rule_on_the_way_that_asks_has_a_person_asked() -> None:
    first = world(f"{SEND} mail ask target=vault for=5m", f"{SEND} vault allow").decide("work", "mail")
    assert (first.action, first.rule, first.choices, first.parameters.stands) == (ASK, "p:1", ("vault",), 300)
    last = world(f"{SEND} mail allow target=vault", f"{SEND} vault ask").decide("work", "mail")
    assert (last.action, last.rule, last.choices) == (ASK, "p:2", ("vault",))
    assert last.rule_text == f"{SEND} mail allow target=vault; {SEND} vault ask"


def test_what_goes_is_what_all_rules_on_the_way_let_through() -> None:
    found = world(
        f"{SEND} mail allow target=vault max-size=1M types=image/*,a/b limit=10/min notify=yes",
        f"{SEND} vault allow max-size=2M max-files=9 types=image/png,image/gif limit=2/min transform=encrypt:k",
    ).decide("work", "mail")
    given = found.parameters
    assert (given.max_size, given.max_files, given.types) == (1 << 20, 9, ("image/png", "image/gif"))
    assert (given.limit, given.notify, given.transform) == (Limit(count=2, seconds=60.0), True, "encrypt:k")


@pytest.mark.parametrize(("one", "other"), [
    ("types=image/*", "types=a/b"), ("transform=encrypt:a", "transform=encrypt:b"), ("require=a", "require=b"),
])  # fmt: skip
def test_what_not_all_of_them_can_let_through_is_denied(one: str, other: str) -> None:
    found = world(f"{SEND} mail allow target=vault {one}", f"{SEND} vault allow {other}").decide("work", "mail")
    assert found.reason == engine.CONTRADICTION


def test_two_way_of_one_rule_on_the_way_is_two_way() -> None:
    lines = f"{SEND} mail allow target=vault direction=two-way", f"{SEND} vault allow"
    assert world(*lines).decide("work", "mail").action is DENY, "back from secret"
    one_way = world("call.X * work mail allow target=vault direction=one-way", "call.X * work vault allow")
    assert one_way.decide("work", "mail", "call.X").two_way is False


PARAMETERS = st.builds(
    Parameters, max_size=st.sampled_from([None, 1, 2]), max_files=st.sampled_from([None, 1, 2]),
    types=st.sampled_from([(), ("image/*",), ("image/png", "a/b"), ("a/*",)]),
    limit=st.sampled_from([None, Limit(count=1, seconds=1.0), Limit(count=60, seconds=60.0)]),
    stands=st.sampled_from([None, 60, 600]), until=st.sampled_from([None, 1.0, 2.0]),
    direction=st.sampled_from([None, *Direction]), transform=st.sampled_from(["", "encrypt:a", "encrypt:b"]),
    require=st.sampled_from(["", "scan"]), log=st.sampled_from([None, *Logged]), user=st.sampled_from(["", "u"]),
    notify=st.booleans(), autostart=st.booleans(),
)  # fmt: skip


@given(PARAMETERS, PARAMETERS)
def test_both_is_never_more_than_either(one: Parameters, other: Parameters) -> None:
    both = stricter(one, other)
    if both is None:
        assert one.types or one.transform or one.require or one.user
        return
    for each in (one, other):
        for mine, bound in ((both.max_size, each.max_size), (both.max_files, each.max_files),
                            (both.stands, each.stands), (both.until, each.until)):
            assert bound is None or (mine is not None and mine <= bound)
        assert not each.types or both.types
        assert each.transform in ("", both.transform)
        assert each.require in ("", both.require)
        assert not each.one_way or both.one_way
        if each.limit:
            assert both.limit is not None
            assert both.limit.count / both.limit.seconds <= each.limit.count / each.limit.seconds


# --- a person's choice ----------------------------------------------------------------------------------------------
CHOOSE = ["files.Send * work @default ask default-target=mail max-size=1M", f"{SEND} books deny",
          f"{SEND} @same-label allow max-size=2K", f"{SEND} @dominates ask"]


def test_whoever_names_no_target_has_a_person_choose_among_those_that_are_let() -> None:
    found = world(*CHOOSE).decide("work", "")
    assert (found.action, found.target, found.flow) == (ASK, "", None)
    assert found.choices == ("mail", "@disposable:disposable", "archive", "clinic", "vault")
    assert (found.default_target, found.rule) == ("mail", "p:1")


def test_nothing_is_preselected_unless_the_rule_says_so_and_it_can_be_chosen() -> None:
    assert world("files.Send * * @default ask", *CHOOSE[1:]).decide("work", "").default_target == ""
    found = world("files.Send * * @default ask default-target=books", *CHOOSE[1:]).decide("work", "")
    assert found.default_target == ""
    assert "books" not in found.choices


def test_where_nothing_can_be_chosen_nobody_is_asked() -> None:
    assert world("files.Send * * @default ask").decide("work", "").reason == engine.NOTHING_TO_CHOOSE


def test_the_core_can_be_chosen_where_the_rule_names_it() -> None:
    found = world("notify.Show * * @default ask default-target=@core", "notify.Show * * @core allow").decide(
        "work", "", "notify.Show")
    assert found.choices == ("@core",)


def test_what_is_chosen_is_decided_again_and_a_denial_stands() -> None:
    asked = world(*CHOOSE)
    chosen = asked.decide("work", "", chosen="mail")
    assert (chosen.action, chosen.target, chosen.flow, chosen.parameters.max_size) == (ALLOW, "mail", Flow.LEVEL, 2048)
    assert asked.decide("work", "", chosen="vault").parameters.max_size == 1 << 20
    assert (chosen.rule, chosen.rule_text) == ("p:1", asked.decide("work", "").rule_text)
    assert asked.decide("work", "", chosen="books").action is DENY


@pytest.mark.parametrize("chosen", ["books", "web", "theirs", "work", "ghost", "", "@core", "@default", "*", "mail\n"])
def test_what_was_not_offered_cannot_be_chosen(chosen: str) -> None:
    """M10."""
    found = world(*CHOOSE).decide("work", "", chosen=chosen)
    assert (found.action, found.reason) == (DENY, engine.NOT_OFFERED)


@pytest.mark.parametrize("chosen", ["mail", "archive", "work", ""])
def test_where_the_request_names_its_target_no_other_can_be_chosen(chosen: str) -> None:
    found = world(f"{SEND} * ask").decide("work", "vault", chosen=chosen)
    assert found.action is DENY


def test_an_answer_to_what_needs_none_any_more_is_for_that_target() -> None:
    assert world(f"{SEND} vault allow").decide("work", "vault", chosen="vault").action is ALLOW
    assert world(f"{SEND} * allow").decide("work", "vault", chosen="mail").action is DENY
    assert world(f"{SEND} vault deny").decide("work", "vault", chosen="vault").action is DENY


def test_what_is_chosen_is_not_sent_on_elsewhere() -> None:
    asked = world("files.Send * work @default ask", f"{SEND} mail allow target=vault", f"{SEND} vault allow")
    assert asked.decide("work", "").choices == ("vault",)
    assert asked.decide("work", "", chosen="mail").action is DENY


def test_another_persons_cage_can_be_chosen_where_a_rule_names_it() -> None:
    lines = "files.Send * * @default ask", "files.Send * * @any allow"
    assert "theirs" not in world(*lines).decide("work", "").choices
    assert "theirs" in world("files.Send * work theirs allow", *lines).decide("work", "").choices


def test_how_much_there_is_to_choose_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """M12."""
    many = {f"c{n:03}": cage(f"c{n:03}", "internal") for n in range(CHOICES_MAX + 1)}
    monkeypatch.setattr(cages, "CAGES", cages.CAGES | many)
    found = world("files.Send * * @default ask", "files.Send * * @same-label allow").decide("work", "")
    assert len(found.choices) == CHOICES_MAX
