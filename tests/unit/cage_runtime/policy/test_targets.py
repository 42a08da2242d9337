# SPDX-License-Identifier: LGPL-2.1-or-later
"""Tokens, the core, disposable cages, requests that name no target, time, and which way data goes."""

from __future__ import annotations

from datetime import timedelta

import pytest

from cage_runtime.model import Action, Direction, Flow, Logged, Request
from cage_runtime.policy import engine
from tests.unit.cage_runtime.policy.world import KINDS, LEVELS, NOON, cage, world

ALLOW, ASK, DENY = Action.ALLOW, Action.ASK, Action.DENY

TOKENS = [
    # token of the source, source: whether it matches
    ("@any", "work", True), ("@tag:office", "work", True), ("@tag:office", "web", False), ("@tag:net", "mail", True),
    ("@compartment:finance", "books", True), ("@compartment:finance", "archive", True),
    ("@compartment:medical", "books", False), ("@level:internal", "books", True), ("@level:secret", "books", False),
]  # fmt: skip


@pytest.mark.parametrize(("token", "source", "matches"), TOKENS)
def test_tokens_of_the_source(token: str, source: str, matches: bool) -> None:
    found = world(f"files.Send * {token} * deny").decide(source, "vault")
    assert found.rule == ("p:1" if matches else "")


TARGETS = [
    # token of the target, asked by work: whether it matches
    ("*", "vault", True), ("*", "@core", True), ("*", "", True), ("*", "@disposable", True), ("*", "ghost", True),
    ("@any", "vault", True), ("@any", "@core", False), ("@any", "", False), ("@any", "@disposable", True),
    ("@any", "@disposable:developer", True), ("@any", "ghost", False),
    ("@core", "@core", True), ("@core", "vault", False), ("@core", "core", False), ("@core", "", False),
    ("@default", "", True), ("@default", "vault", False), ("@default", "@core", False), ("@default", "ghost", False),
    ("@disposable", "@disposable", True), ("@disposable", "@disposable:disposable", True),
    ("@disposable", "@disposable:developer", False), ("@disposable:disposable", "@disposable", True),
    ("@disposable:developer", "@disposable:developer", True), ("@disposable:developer", "@disposable", False),
    ("@disposable:developer", "developer", False), ("@disposable", "@disposable:", False),
    ("@owner", "vault", True), ("@owner", "theirs", False), ("@owner", "@disposable", True), ("@owner", "@core", False),
    ("@tag:office", "mail", True), ("@tag:office", "vault", False), ("@tag:office", "theirs", True),
    ("@compartment:finance", "books", True), ("@compartment:finance", "clinic", False),
    ("@level:internal", "@disposable", True), ("@level:public", "@disposable:developer", True),
    ("@same-label", "@disposable", True), ("@dominates", "@disposable:developer", False),
    ("@dominates", "@core", False), ("@same-label", "", False),
]  # fmt: skip


@pytest.mark.parametrize(("token", "target", "matches"), TARGETS)
def test_tokens_of_the_target(token: str, target: str, matches: bool) -> None:
    found = world(f"files.Send * * {token} deny").decide("work", target)
    assert found.rule == ("p:1" if matches else "")


def test_nothing_is_looked_up_for_the_core_and_for_no_target() -> None:
    asked = world("notify.Show * * @core allow", "files.Send * * @default deny")
    asked.decide("work", "@core", "notify.Show")
    asked.decide("work", "")
    assert asked.looked_up == []


@pytest.mark.parametrize("lines", [["* * * * deny"], [], ["* * * * allow"], ["* * * theirs deny", "* * * * ask"]])
def test_as_much_is_looked_up_for_what_there_is_not_as_for_what_is_forbidden(lines: list[str]) -> None:
    """M3: the work is the same."""
    forbidden, unknown = world(*lines), world(*lines)
    assert forbidden.decide("vault", "theirs").action is unknown.decide("vault", "ghost").action is DENY
    assert len(forbidden.looked_up) == len(unknown.looked_up) == 1


FLOWS = [
    # service, parameters, source, target: action, flow, two-way
    ("notify.Show", "", "vault", "@core", ALLOW, Flow.UP, False),
    ("keys.Sign", "", "vault", "@core", DENY, Flow.UP, None),
    ("keys.Sign", " declassify", "vault", "@core", ALLOW, Flow.UP, True),
    ("keys.Sign", "", "work", "mail", ALLOW, Flow.LEVEL, True),
    ("keys.Sign", "", "work", "vault", DENY, Flow.UP, None),
    ("keys.Sign", " declassify", "work", "vault", ALLOW, Flow.UP, True),
    ("call.Backup", "", "work", "vault", DENY, Flow.UP, None),
    ("call.Backup", " direction=one-way", "work", "vault", ALLOW, Flow.UP, False),
    ("call.Backup", " direction=one-way", "vault", "work", DENY, Flow.DOWN, None),
    ("call.Backup", " direction=two-way", "work", "vault", DENY, Flow.UP, None),
    ("files.Send", "", "work", "vault", ALLOW, Flow.UP, False),
    ("files.Send", " direction=two-way", "work", "vault", DENY, Flow.UP, None),
    ("files.Send", " direction=two-way", "work", "mail", ALLOW, Flow.LEVEL, True),
    ("files.Send", "", "vault", "work", DENY, Flow.DOWN, None),
    ("files.Send", "", "books", "clinic", DENY, Flow.INCOMPARABLE, None),
    ("print.Page", "", "work", "vault", DENY, Flow.UP, None),
    ("print.Page", " direction=one-way", "work", "vault", DENY, Flow.UP, None),
    ("print.Page", "", "work", "mail", ALLOW, Flow.LEVEL, True),
]


@pytest.mark.parametrize("action", ["allow", "ask"])
@pytest.mark.parametrize(("service", "parameters", "source", "target", "expected", "flow", "two_way"), FLOWS)
def test_which_way_data_goes_and_whether_it_comes_back(
    action: str, service: str, parameters: str, source: str, target: str, expected: Action, flow: Flow,
    two_way: bool | None,
) -> None:  # fmt: skip
    found = world(f"{service} * * {target} {action}{parameters}").decide(source, target, service)
    assert (found.action, found.flow) == (DENY if expected is DENY else Action(action), flow)
    assert two_way is None or found.two_way is two_way


def test_a_service_of_no_mediator_counts_as_two_way() -> None:
    policy = world().policy
    assert policy.is_two_way("print.Page", None)
    assert policy.is_two_way("print.Page", Direction.ONE_WAY)
    assert not policy.is_two_way("call.Anything", Direction.ONE_WAY)


def test_the_reason_says_that_data_would_come_back() -> None:
    assert world("* * * * allow").decide("work", "vault", "keys.Sign").reason == (
        'the rule allows it, but for this flow would need "declassify": data would go from internal to secret, and back'
    )
    assert world("* * * * allow").decide("work", "@core", "keys.Sign").reason.endswith(
        "data would go from internal to the core, and back")


@pytest.mark.parametrize("target", ["@disposable", "@disposable:disposable"])
def test_a_disposable_cage_is_one_of_the_callers_label(target: str) -> None:
    found = world("open.Uri * * @disposable allow").decide("work", target, "open.Uri")
    assert (found.action, found.target, found.flow) == (ALLOW, "@disposable:disposable", Flow.LEVEL)


def test_to_a_lower_disposable_cage_data_goes_down() -> None:
    lower = "@disposable:developer"
    assert world(f"open.Uri * * {lower} allow").decide("work", lower, "open.Uri").flow is Flow.DOWN
    assert world(f"open.Uri * * {lower} allow").decide("work", lower, "open.Uri").action is DENY
    assert world(f"open.Uri * * {lower} allow declassify").decide("work", lower, "open.Uri").action is ALLOW


def test_a_disposable_cage_is_never_more_than_its_caller() -> None:
    asked = world("* * * * allow declassify")
    asked.templates["disposable"] = lambda _: LEVELS.label("secret")
    assert asked.decide("work", "@disposable", "open.Uri").reason == engine.MORE_THAN_CALLER


@pytest.mark.parametrize("target", ["@disposable:none", "@disposable:", "@disposablex", "@disposable:../x", "@default",
                                    "@any", "*", "@owner", "@core ", "@core:x", "@level:secret", "@tag:office"])
def test_what_is_no_target_that_there_is_gets_nothing(target: str) -> None:
    """M1: a request that is written like a token of the policy is for a cage that there is not."""
    assert world("* * * * allow declassify").decide("work", target).reason == engine.NO_SUCH_CAGE


def test_whoever_names_no_target_needs_a_rule_that_names_one() -> None:
    assert world("* * * * allow declassify").decide("work", "").reason == engine.NO_TARGET


@pytest.mark.parametrize("rule", ["* * work @default allow target=peer", "* * work @default ask target=ghost"])
def test_where_a_rule_names_the_target_nobody_hears_that_it_names_none(rule: str) -> None:
    request = Request(service="files.Send", argument="", source=cage("work", "internal"), target_name="")
    assert world(rule, "* * * * deny").policy.public_refusal(request, NOON).reason == engine.SENT_ON
    found = world("files.Send * * @default allow target=vault", "files.Send * * vault allow").decide("work", "")
    assert (found.action, found.target, found.flow) == (ALLOW, "vault", Flow.UP)


# --- time -------------------------------------------------------------------------------------------------------
def test_a_rule_whose_time_is_over_is_none() -> None:
    asked = world(
        "files.Send * work vault allow until=2026-11-26T12:00Z max-size=1K",
        "files.Send * work vault ask until=2026-11-26T13:00:00Z",
        "files.Send * work vault allow max-size=2K", "files.Send * work vault deny",
    )  # fmt: skip
    hour = timedelta(hours=1).total_seconds()
    verdicts = []
    for asked.now in (NOON - 1, NOON, NOON + hour - 1, NOON + hour, NOON - 1):
        verdicts.append(asked.decide("work", "vault").rule)
    assert verdicts == ["p:1", "p:2", "p:2", "p:3", "p:1"]


def test_a_refusal_knows_the_time_too() -> None:
    policy = world("* * * * allow until=2026-11-26T12:00Z").policy
    request = Request(service="files.Send", argument="", source=cage("work", "internal"), target_name="vault")
    assert policy.public_refusal(request, NOON - 1).rule == "p:1"
    assert policy.public_refusal(request, NOON).reason == engine.NO_RULE


# --- what the rule adds -------------------------------------------------------------------------------------------
def test_parameters_are_in_the_decision() -> None:
    found = world(
        "files.Send * work vault ask max-size=2M max-files=3 types=image/*,a/b limit=5/min for=10m transform=encrypt:k"
        " require=scan log=digest notify=yes autostart=yes direction=one-way default-target=vault"
    ).decide("work", "vault")
    given = found.parameters
    assert (given.max_size, given.max_files, given.types) == (2 << 20, 3, ("image/*", "a/b"))
    assert given.limit is not None
    assert (given.limit.count, given.limit.seconds, given.stands) == (5, 60.0, 600)
    assert (given.transform, given.require, given.log) == ("encrypt:k", "scan", Logged.DIGEST)
    assert (given.notify, given.autostart, given.one_way) == (True, True, True)
    assert (found.choices, found.default_target) == (("vault",), "vault")
    assert found.rule_text.startswith("files.Send * work vault ask default-target=vault notify=yes")


def test_a_denial_has_what_its_rule_says_of_telling_and_recording() -> None:
    given = world("files.Send * work vault deny notify=yes log=no").decide("work", "vault").parameters
    assert (given.notify, given.log) == (True, Logged.NO)


def test_no_kind_of_service_is_forgotten_here() -> None:
    assert {kind.one_way for kind in KINDS.values()} == {True, False}
