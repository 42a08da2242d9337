# SPDX-License-Identifier: LGPL-2.1-or-later
"""What is told of a policy: findings, explanations, differences, pictures; and policies that are not installed."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from cage_runtime.config import Paths
from cage_runtime.errors import PolicySyntaxError
from cage_runtime.model import Action, Instance, Levels, Request, ServiceKind
from cage_runtime.policy.cells import Host
from cage_runtime.policy.check import findings
from cage_runtime.policy.diff import differences
from cage_runtime.policy.engine import Policy
from cage_runtime.policy.explain import Explanation, explain
from cage_runtime.policy.loader import load_tried
from cage_runtime.policy.parser import parse
from cage_runtime.policy.picture import picture
from cage_runtime.policy.witness import Case

LEVELS = Levels(names=("public", "internal", "secret"), compartments=frozenset({"finance"}))
KINDS = {"files.Send": ServiceKind(one_way=True, parameters=frozenset({"max-size"})),
         "call.*": ServiceKind(one_way=False, parameters=frozenset({"direction"}))}
HOST = Host(levels=LEVELS, now=1e9, kinds=KINDS)


def cage(name: str, level: str, *tags: str) -> Instance:
    return Instance(name=name, uuid=name, label=LEVELS.label(level), owner=1000, tags=frozenset(tags))


WORLD = {found.name: found for found in (cage("web", "public"), cage("work", "internal", "office"),
                                         cage("vault", "secret"))}  # fmt: skip
SHIPPED = ("files.Send * * @same-label allow", "files.Send * * @dominates allow", "* * * * deny")


def policy(*lines: str) -> Policy:
    return Policy(rules=parse("\n".join(lines).encode(), file="p", levels=LEVELS, kinds=KINDS), kinds=KINDS)


def told(*lines: str) -> list[str]:
    return [f"{found.kind}: {found.text}" for found in findings(policy(*lines), WORLD, HOST)]


def explained(source: str, service: str, target: str, *lines: str) -> Explanation:
    request = Request(service=service, argument="", source=WORLD[source], target_name=target)
    return explain(policy(*lines), Case(request=request, world=WORLD), HOST)


# --- findings --------------------------------------------------------------------------------------------------------
def test_of_the_shipped_shape_nothing_is_told() -> None:
    assert told(*SHIPPED) == []


def test_every_kind_is_told_with_its_place() -> None:
    assert told(
        "files.Send * vault web allow declassify",
        "files.Send * vault web deny",
        "files.Sand * @tag:office ghost deny",
        "files.Send * @tag:nobody work allow until=2001-09-09T01:46:40Z",
        "files.Send * @level:secret * deny",
        "files.Send +x @level:secret work deny",
    ) == [
        "duplicate: p:2: p:1 has the same columns, and decides",
        "shadowed: p:6: never decides anything: p:5 decides all that it is about",
        'unknown-service: p:3: no mediator offers "files.Sand"',
        'unknown-cage: p:3: there is no cage "ghost"',
        "expired: p:4: its time is over, so that it matches nothing any more",
        'unknown-tag: p:4: no cage has the tag "nobody"',
        "opened: data can get from vault (secret) to web (public)",
    ]  # fmt: skip


def test_a_rule_that_is_to_match_for_some_time_is_no_cover_for_others() -> None:
    until = "until=2031-01-01T00:00:00Z"
    assert told(f"files.Send * work vault allow {until}", "files.Send * work vault ask") == []
    assert told("files.Send * work * deny", f"files.Send * work vault allow {until}") == [
        "shadowed: p:2: never decides anything: p:1 decides all that it is about"]


def test_a_name_that_is_sent_on_is_no_cage_s() -> None:
    assert told("files.Send * * in allow target=vault", *SHIPPED) == []
    assert told("files.Send * * in allow target=ghost", *SHIPPED) == ['unknown-cage: p:1: there is no cage "ghost"']


# --- explanations ----------------------------------------------------------------------------------------------------
def test_what_nearly_matches_is_told_and_what_would_change_it() -> None:
    found = explained("vault", "files.Send", "work", "files.Send +x vault work allow", "call.X * vault work allow",
                      "files.Send * web vault allow", *SHIPPED)
    assert (found.decision.action, found.decision.rule) == (Action.DENY, "p:6")
    assert [(near.rule.place, near.why) for near in found.near] == [
        ("p:1", "it is about the argument +x"), ("p:4", "the target is not @same-label of the source"),
        ("p:5", "the target is not @dominates of the source")]
    assert found.change == "a line before p:6, such as: files.Send * vault work allow declassify"


def test_a_service_that_nobody_offers_is_noted() -> None:
    assert explained("work", "files.Sned", "vault", *SHIPPED).note == 'no mediator offers "files.Sned"'
    assert explained("work", "call.Sum", "vault", *SHIPPED).note == ""


def test_a_change_is_told_only_if_it_would_do() -> None:
    assert explained("work", "files.Send", "vault", *SHIPPED).change == ""
    assert explained("work", "files.Send", "ghost", *SHIPPED).change == ""
    assert explained("work", "files.Send", "work", *SHIPPED).change == ""
    assert explained("work", "files.Send", "", *SHIPPED).change == ""
    assert explained("work", "files.Send", "@core").change == "a line, such as: files.Send * work @core allow"
    assert explained("web", "call.X", "vault").change == "a line, such as: call.X * web vault allow declassify"


# --- differences -----------------------------------------------------------------------------------------------------
def test_a_difference_is_of_what_is_decided_not_of_texts() -> None:
    assert list(differences(policy(*SHIPPED), policy("# nothing", "", *SHIPPED[1:]), WORLD, HOST)) == []
    mine = policy("files.Send * vault web ask declassify max-size=1M", *SHIPPED)
    assert [(each.source, each.service, each.target, each.before, each.after, each.rule_before, each.rule_after)
            for each in differences(policy(*SHIPPED), mine, WORLD, HOST)] == [
        ("vault", "files.Send", "web", "deny", "ask declassify max-size=1M", "p:3", "p:1")]


def test_a_difference_in_what_may_be_chosen_is_seen() -> None:
    asks = policy("files.Send * work @default ask", *SHIPPED)
    fewer = policy("files.Send * work @default ask", "files.Send * work vault deny",
                   "files.Send * * * allow declassify")
    assert [(each.before, each.after) for each in differences(asks, fewer, WORLD, HOST)
            if (each.source, each.service, each.target) == ("work", "files.Send", "@default")] == [
        ("ask (to vault)", "ask (to web)")]
    sent_on = policy("files.Send * web work allow target=vault", *SHIPPED)
    assert [(each.before, each.after) for each in differences(policy(*SHIPPED), sent_on, WORLD, HOST)
            if (each.source, each.target) == ("web", "work")] == [("allow (to work)", "allow (to vault)")]


def test_labels_are_compared_where_there_are_no_cages() -> None:
    changes = list(differences(policy(*SHIPPED), policy("files.Send * @level:internal @level:secret deny", *SHIPPED),
                               {}, HOST))
    assert {(each.source, each.target, each.before, each.after) for each in changes} == {
        (one, other, "allow", "deny") for one in ("any internal", "another internal")
        for other in ("any secret", "another secret")}


# --- pictures --------------------------------------------------------------------------------------------------------
def test_a_picture_gathers_services_and_tells_what_needs_declassify() -> None:
    lines = list(picture(policy("files.Send * vault web ask declassify", "call.X * work work deny",
                                "files.Send * work @core allow", *SHIPPED), WORLD, HOST))
    assert {(line.source, line.target, line.action, line.declassify, line.services) for line in lines} == {
        ("vault", "web", Action.ASK, True, ("files.Send",)), ("work", "@core", Action.ALLOW, False, ("files.Send",)),
        ("web", "work", Action.ALLOW, False, ("files.Send",)), ("web", "vault", Action.ALLOW, False, ("files.Send",)),
        ("work", "vault", Action.ALLOW, False, ("files.Send",))}


# --- policies that are not installed ---------------------------------------------------------------------------------
@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    for place in ("shipped", "administrator"):
        (tmp_path / place / "policy.d").mkdir(parents=True)
    (tmp_path / "shipped/policy.d/50-default.policy").write_text("files.Send * * @same-label allow\n")
    return Paths(shipped=str(tmp_path / "shipped"), administrator=str(tmp_path / "administrator"),
                 run=str(tmp_path / "run"))


def places(paths: Paths, files: dict[str, bytes], *, alone: bool = False) -> list[str]:
    found = load_tried(paths, LEVELS, KINDS, files, alone=alone).rules
    return [rule.place.removeprefix(f"{Path(paths.shipped).parent}/") for rule in found]


def test_what_is_tried_stands_where_it_would_be_installed(paths: Paths) -> None:
    assert places(paths, {"60-b.policy": b"* * * * deny\n", "30-a.policy": b"\n* * * * deny"}) == [
        "30-a.policy:2", "shipped/policy.d/50-default.policy:1", "60-b.policy:1"]
    assert places(paths, {"50-default.policy": b"* * * * deny\n"}) == ["50-default.policy:1"]
    assert places(paths, {"60-b.policy": b"* * * * deny\n"}, alone=True) == ["60-b.policy:1"]
    assert places(paths, {}) == ["shipped/policy.d/50-default.policy:1"]


@pytest.mark.parametrize(("name", "text", "fault"), [
    ("30-a.policy", b"* * * * alow", "30-a.policy:1: "), ("../30-a.policy", b"", "two digits first"),
    ("30-a.policy\x1b", b"", r"\\x1b"), ("30-a.policy", b"!include /etc/passwd", "by its whole path"),
    ("30-a.policy", b"#" * (1024**2 + 1), "divide it"),
])  # fmt: skip
def test_a_fault_in_what_is_tried_is_told_and_nothing_else_of_the_host(
    paths: Paths, name: str, text: bytes, fault: str
) -> None:
    with pytest.raises(PolicySyntaxError, match=fault):
        load_tried(paths, LEVELS, KINDS, {name: text})


def test_thousands_of_rules_are_proved_in_seconds() -> None:
    lines = [f"files.Send * cage{n} cage{n + 1} {'allow' if n % 3 else 'deny'}" for n in range(3000)]
    begin = time.monotonic()
    assert [found for found in findings(policy(*lines, *SHIPPED), WORLD, HOST) if found.kind == "leak"] == []
    assert time.monotonic() - begin < 30
