# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a cage may ask for at all: nothing that goes is missing, nothing that cannot go is there, nothing of others."""

from __future__ import annotations

import math
from datetime import timedelta

import pytest
from hypothesis import given, settings

from cage_runtime.errors import PolicySyntaxError
from cage_runtime.model import SERVICES_TOLD_MAX, Action, Instance, Label, Request
from cage_runtime.policy.engine import Policy
from cage_runtime.policy.services import MayAsk, may_ask
from tests.unit.cage_runtime.policy.test_naive import POLICIES, REQUESTS, decide
from tests.unit.cage_runtime.policy.world import CAGES, LEVELS, NOON, cage, world


def told(source: str | Instance, *lines: str, now: float = NOON) -> MayAsk:
    asks = CAGES[source] if isinstance(source, str) else source
    return may_ask(world(*lines).policy, asks, LEVELS, now)


def services(source: str | Instance, *lines: str) -> dict[str, str]:
    return {service: action.value for service, action in told(source, *lines).services.items()}


@settings(max_examples=400)
@given(policy=POLICIES, request=REQUESTS)
def test_nothing_that_goes_is_missing(policy: list[str], request: Request) -> None:
    asked = world(*policy)
    found = may_ask(asked.policy, request.source, LEVELS, NOON).services
    decision = decide(asked, request)
    action = found.get(request.service, found.get("call.*") if request.service.startswith("call.") else None)
    if decision.action is Action.ALLOW:
        assert action is Action.ALLOW
    elif decision.action is Action.ASK:
        assert action in (Action.ALLOW, Action.ASK)


WORK = [
    # rules; what the cage "work" (internal, without a compartment) is told
    (["files.Send * work vault allow"], {"files.Send": "allow"}),
    (["files.Send * web vault allow"], {}),
    (["files.Send * @tag:office * ask"], {"files.Send": "ask"}),
    (["files.Send * * @same-label ask", "files.Send * * @dominates allow"], {"files.Send": "allow"}),
    (["files.Send * * @default ask", "* * * * deny", "files.Send * * * allow"], {"files.Send": "ask"}),
    (["files.Send * * * deny", "files.Send * * vault allow", "open.Uri * * vault allow"], {"open.Uri": "allow"}),
    (["files.Send * * @any deny", "files.Send * * vault allow", "files.Send * * @default ask"], {"files.Send": "ask"}),
    (["files.Send * * vault deny", "files.Send * * vault allow"], {}),
    (["files.Send * * vault deny", "files.Send * * mail allow"], {"files.Send": "allow"}),
    (["keys.Sign +work * * deny", "keys.Sign * * vault allow"], {"keys.Sign": "allow"}),
    (["keys.Sign +work * vault ask"], {"keys.Sign": "ask"}),
    (["call.Backup * work vault allow", "call.Other * web vault allow"], {"call.Backup": "allow"}),
    (["call.Backup * * * deny", "* * work mail ask"], dict.fromkeys(
        ("call.*", "clipboard.Paste", "files.Send", "keys.Sign", "notify.Show", "open.Uri"), "ask")),
    (["any.Thing * * * allow"], {}),
    # where nothing can go, whatever cages there are
    (["files.Send * * @level:public allow"], {}),
    (["files.Send * * @level:public allow declassify"], {"files.Send": "allow"}),
    (["files.Send * * @level:secret allow"], {"files.Send": "allow"}),
    (["call.Backup * * @level:secret allow"], {}),
    (["call.Backup * * @level:secret allow direction=one-way"], {"call.Backup": "allow"}),
    (["call.Backup * * @compartment:finance allow", "keys.Sign * * @level:internal allow"], {"keys.Sign": "allow"}),
    (["notify.Show * * @core allow", "keys.Sign * * @core allow"], {"notify.Show": "allow"}),
    (["files.Send * * work allow"], {}),
]


@pytest.mark.parametrize(("lines", "expected"), WORK)
def test_what_a_cage_is_told(lines: list[str], expected: dict[str, str]) -> None:
    assert services("work", *lines) == expected


def test_what_is_over_is_not_told_and_when_it_will_be_is_known() -> None:
    lines = ["files.Send * * vault allow until=2026-11-26T12:01Z", "files.Send * * @default ask"]
    before = told("work", *lines)
    assert (before.services, before.until) == ({"files.Send": Action.ALLOW}, NOON + timedelta(minutes=1).seconds)
    after = told("work", *lines, now=before.until)
    assert (after.services, after.until) == ({"files.Send": Action.ASK}, math.inf)


def test_a_policy_at_fault_and_a_label_of_before_let_nothing_be_asked_for() -> None:
    refusing = Policy.refusing(PolicySyntaxError("p:1: bad"))
    assert may_ask(refusing, CAGES["work"], LEVELS, NOON).services == {}
    former = Instance(name="old", uuid="u", label=Label(level="former", rank=0, compartments=frozenset()), owner=1000)
    assert services(former, "files.Send * * * allow") == {}


def test_it_has_an_end_and_is_in_order() -> None:
    lines = [f"call.Number{number:04} * * * allow" for number in reversed(range(SERVICES_TOLD_MAX + 10))]
    found = list(services(cage("any", "public"), *lines))
    assert found == [f"call.Number{number:04}" for number in range(SERVICES_TOLD_MAX)]
