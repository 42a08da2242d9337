# SPDX-License-Identifier: LGPL-2.1-or-later
"""The engine beside an evaluator that is slow, knows no index, reads the lines themselves, and is obviously right."""

from __future__ import annotations

from dataclasses import dataclass, replace

from hypothesis import given, settings
from hypothesis import strategies as st

from cage_runtime.model import REDIRECTS_MAX, Action, Decision, Flow, Instance, Request
from cage_runtime.policy.match import mismatch
from tests.unit.cage_runtime.policy.world import BOB, CAGES, KINDS, LEVELS, NOON, World, world

# --- the naive evaluator ------------------------------------------------------------------------------------------
PAST, FUTURE = "until=2026-11-26T11:59Z", "until=2026-11-26T12:01Z"


@dataclass(frozen=True)
class Verdict:
    action: str
    target: str = ""
    line: int = 0


NO = Verdict("deny")


def level(cage: Instance) -> int:
    return LEVELS.names.index(cage.label.level)


def full(target: str) -> str:
    return "@disposable:disposable" if target == "@disposable" else target


def lookup(source: Instance, target: str) -> Instance | None:
    if full(target) in ("@disposable:disposable", "@disposable:developer"):
        label = source.label if full(target) == "@disposable:disposable" else LEVELS.label("public")
        return Instance(name=full(target), uuid="", label=label, owner=source.owner)
    return CAGES.get(target)


def is_source(token: str, source: Instance) -> bool:
    kind, _, word = token.partition(":")
    return (
        token in ("*", "@any", source.name)
        or (kind == "@level" and word == source.label.level)
        or (kind == "@compartment" and word in source.label.compartments)
        or (kind == "@tag" and word in source.tags)
    )


def is_target(token: str, source: Instance, name: str) -> bool:
    target = lookup(source, name)
    if token == "*":
        return True
    if token == "@default":
        return name == ""
    if token == "@core":
        return name == "@core"
    if token.startswith("@disposable"):
        return full(token) == full(name)
    if not token.startswith("@"):
        return token == name
    if target is None:
        return False
    up = level(target) >= level(source) and source.label.compartments <= target.label.compartments
    down = level(source) >= level(target) and target.label.compartments <= source.label.compartments
    return (
        token == "@any" or (token == "@owner" and target.owner == source.owner)
        or (token == "@dominates" and up) or (token == "@same-label" and up and down)
        or is_source(token, target)
    )  # fmt: skip


def first(lines: list[str], request: Request) -> int:
    """The number of the first line that matches, from 1; 0 where none does."""
    target = lookup(request.source, request.target_name)
    for number, line in enumerate(lines, start=1):
        service, argument, source, wanted, action, *parameters = line.split()
        others = target is not None and target.owner != request.source.owner
        if (
            service in ("*", request.service) and argument in ("*", f"+{request.argument}")
            and is_source(source, request.source) and is_target(wanted, request.source, request.target_name)
            and not (others and action != "deny" and wanted != request.target_name) and PAST not in parameters
        ):  # fmt: skip
            return number
    return 0


def evaluate(lines: list[str], request: Request, passed: tuple[int, ...] = (), before: str = "") -> Verdict:
    """`passed` are the lines that have sent it on, `before` what those of an earlier question say."""
    source, name = request.source, request.target_name
    target = lookup(source, name)
    number = first(lines, request)
    if name == source.name or not number:
        return NO
    *_, action = line = lines[number - 1].split()[:5]
    if action == "deny":
        return NO
    parameters = lines[number - 1].split()[5:]
    redirect = next((word.partition("=")[2] for word in parameters if word.startswith("target=")), "")
    if redirect and full(redirect) != full(name):
        if number in passed or len(passed) == REDIRECTS_MAX:
            return NO
        return evaluate(lines, replace(request, target_name=redirect), (*passed, number), before)
    said = " ".join([*(lines[earlier - 1] for earlier in passed), before, *line, *parameters])
    one_way = "direction=one-way" in said
    if KINDS.get(request.service, KINDS["call.*"]).one_way:
        one_way = one_way or "direction=two-way" not in said
    action = "ask" if " ask" in f" {said}" else "allow"
    if name == "":
        return Verdict("ask", "", number) if line[4] == "ask" else NO
    if target is None and name != "@core":
        return NO
    flow = Flow.UP if target is None else source.label.flow_to(target.label)
    if flow is not Flow.LEVEL and not (flow is Flow.UP and one_way) and "declassify" not in parameters:
        return NO
    return Verdict(action, full(name), number)


# --- what they are given --------------------------------------------------------------------------------------------
NAMES = [*CAGES, "ghost"]
CAGE_TOKENS = ["*", "@any", *CAGES, "ghost", *(f"@level:{name}" for name in LEVELS.names), "@compartment:finance",
               "@compartment:medical", "@tag:net", "@tag:office"]
TARGET_TOKENS = [*CAGE_TOKENS, "@core", "@default", "@disposable", "@disposable:developer", "@owner", "@dominates",
                 "@same-label"]
ONE_TARGET = ["vault", "mail", "work", "@core", "@disposable", "@disposable:developer"]


@st.composite
def lines(draw: st.DrawFn) -> str:
    service = draw(st.sampled_from(["*", "files.Send", "call.Agent"]))
    argument = draw(st.sampled_from(["*", "+a", "+b"])) if service != "*" else "*"
    source, target = draw(st.sampled_from(CAGE_TOKENS)), draw(st.sampled_from(TARGET_TOKENS))
    action = draw(st.sampled_from(["allow", "ask", "deny"]))
    words = [service, argument, source, target, action]
    if action != "deny":
        redirect = f"target={draw(st.sampled_from(ONE_TARGET))}"
        if (target == "@default" and action == "allow") or draw(st.integers(0, 3)) == 0:
            words.append(redirect)
        words += draw(st.sampled_from([[], ["declassify"]])) + draw(st.sampled_from([[], [], [PAST], [FUTURE]]))
        directions = [[], ["direction=two-way"], ["direction=one-way"]]
        words += draw(st.sampled_from(directions[: 2 if service == "*" else 3]))
    return " ".join(words)


REQUESTS = st.builds(
    lambda source, target, service, argument: Request(
        service=service, argument=argument, source=CAGES[source], target_name=target),
    st.sampled_from(list(CAGES)),
    st.sampled_from([*NAMES, "", "@core", "@disposable", "@disposable:developer", "@disposable:none"]),
    st.sampled_from(["files.Send", "call.Agent"]),
    st.sampled_from(["", "a", "b"]),
)
POLICIES = st.lists(lines(), max_size=14)


def decide(asked: World, request: Request, chosen: str | None = None) -> Decision:
    return asked.decide(request.source.name, request.target_name, request.service, request.argument, chosen)


@settings(max_examples=400)
@given(policy=POLICIES, request=REQUESTS)
def test_the_engine_agrees_with_the_naive_evaluator(policy: list[str], request: Request) -> None:
    found, expected = decide(world(*policy), request), evaluate(policy, request)
    if expected.action == "ask" and not expected.target:
        offered = choices(policy, request, expected)
        assert set(found.choices) == offered
        assert found.action is (Action.ASK if offered else Action.DENY)
        return
    assert (found.action.value, found.target) == (expected.action, expected.target)


def choices(policy: list[str], request: Request, asks: Verdict) -> set[str]:
    """Where a person would choose: the targets that are let, after what the rule that asks says."""
    said = policy[asks.line - 1]
    preselected = next((word.partition("=")[2] for word in said.split() if word.startswith("default-target=")), "")
    names = {full(name) for name in (*CAGES, "@disposable", preselected) if name}
    return {name for name in names
            if evaluate(policy, replace(request, target_name=name), (), said).target == name}


@given(policy=POLICIES, request=REQUESTS, chosen=st.sampled_from([*NAMES, "@core", "@disposable", ""]))
def test_what_is_chosen_is_what_was_offered(policy: list[str], request: Request, chosen: str) -> None:
    asked = world(*policy)
    before, after = decide(asked, request), decide(asked, request, chosen)
    if before.action is Action.ASK:
        assert (after.action is Action.ALLOW) == (full(chosen) in before.choices)
    elif before.action is Action.ALLOW:
        assert (after.action is Action.ALLOW) == (full(chosen) == before.target)
    else:
        assert after.action is Action.DENY


@given(policy=POLICIES, request=REQUESTS)
def test_explanations_agree_with_the_engine(policy: list[str], request: Request) -> None:
    rules, target = world(*policy).policy, lookup(request.source, request.target_name)
    matching = [rule for rule in rules.rules if not mismatch(rule, request, target, NOON)]
    assert rules.first(request, target, NOON) is (matching[0] if matching else None)
    assert first(policy, request) == (int(matching[0].place.removeprefix("p:")) if matching else 0)


@given(policy=POLICIES, request=REQUESTS)
def test_nothing_goes_down_or_comes_back_without_declassify(policy: list[str], request: Request) -> None:
    found = decide(world(*(line.replace(" declassify", "") for line in policy)), request)
    if found.action is not Action.DENY and found.target:
        assert found.flow is Flow.LEVEL or (found.flow is Flow.UP and not found.two_way)


@given(policy=POLICIES, request=REQUESTS)
def test_between_persons_nothing_goes_but_by_a_rule_that_names_the_target(policy: list[str], request: Request) -> None:
    found = decide(world(*policy), request)
    target = CAGES.get(found.target)
    if found.action is not Action.DENY and target and target.owner != request.source.owner:
        assert any(line.split()[3] == target.name for line in policy)
        assert BOB in (target.owner, request.source.owner)


@given(policy=POLICIES, request=REQUESTS)
def test_what_a_cage_hears_is_the_same_whether_the_target_exists(policy: list[str], request: Request) -> None:
    """M3: it is worked out from the request alone, and denies."""
    asked = world(*policy)
    heard = asked.policy.public_refusal(request, NOON)
    assert heard.action is Action.DENY
    assert asked.looked_up == []
