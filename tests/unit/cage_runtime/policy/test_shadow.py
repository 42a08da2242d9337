# SPDX-License-Identifier: LGPL-2.1-or-later
"""Rules that can never match: told where that is so for every cage that there could be, and nowhere else."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cage_runtime.model import Instance, Levels, Request
from cage_runtime.policy.cells import Host
from cage_runtime.policy.engine import Policy
from cage_runtime.policy.parser import parse
from cage_runtime.policy.rule import Rule
from cage_runtime.policy.shadow import shadowed

LEVELS = Levels(names=("public", "internal", "secret"), compartments=frozenset({"finance", "medical"}))
HOST = Host(levels=LEVELS, now=0.0)


def rules(*lines: str, levels: Levels = LEVELS) -> tuple[Rule, ...]:
    return parse("\n".join(lines).encode(), file="p", levels=levels)


def policy(*lines: str) -> Policy:
    return Policy(rules=rules(*lines))


def dead(*lines: str) -> dict[str, list[str]]:
    """Line by line which lines cover it."""
    return {found.rule.place: [rule.place for rule in found.by] for found in shadowed(policy(*lines), HOST)}


TABLE: list[tuple[tuple[str, ...], dict[str, list[str]]]] = [
    ((), {}),
    (("* * * * deny", "files.Send * work vault allow"), {"p:2": ["p:1"]}),
    (("files.Send * work vault allow", "* * * * deny"), {}),
    (("files.Send * * * deny", "files.Send +x * * deny"), {"p:2": ["p:1"]}),
    (("files.Send +x * * deny", "files.Send * * * deny"), {}),
    (("files.Send * @level:secret * deny", "files.Send * @level:secret work deny"), {"p:2": ["p:1"]}),
    # A rule that names a cage goes by the name: the cage may have any label.
    (("files.Send * @level:secret * deny", "files.Send * vault work deny"), {}),
    # Together they cover what neither does alone.
    (("* * @level:public * deny", "* * @level:internal * deny", "* * @level:secret * deny", "* * vault * deny"),
     {"p:4": ["p:1", "p:2", "p:3"]}),
    (("* * @level:public * deny", "* * @level:secret * deny", "* * vault * deny"), {}),
    (("* * * @dominates deny", "* * * @same-label deny"), {"p:2": ["p:1"]}),
    (("* * * @same-label deny", "* * * @dominates deny"), {}),
    # Of the highest level only the same label, or one with more compartments, dominates.
    (("* * * @dominates deny", "* * @level:public @level:secret deny"), {}),
    # What is allowed within one person's cages is not decided between those of two.
    (("files.Send * * * allow", "files.Send * * * deny"), {}),
    (("files.Send * * * allow", "files.Send * * vault allow"), {}),
    (("files.Send * * vault allow", "files.Send * work vault deny"), {"p:2": ["p:1"]}),
]  # fmt: skip


@pytest.mark.parametrize(("lines", "told"), TABLE)
def test_table(lines: tuple[str, ...], told: dict[str, list[str]]) -> None:
    assert dead(*lines) == told


def test_the_same_columns_again_are_a_duplicate() -> None:
    twin, other = shadowed(policy("files.Send * work vault allow", "files.Send * work vault allow max-size=1M",
                                  "files.Send * vault vault deny", "files.Send * vault vault deny"), HOST)
    assert (twin.duplicate, twin.rule.place, other.duplicate, other.rule.place) == (True, "p:2", True, "p:4")
    (covered,) = shadowed(policy("* * work * deny", "files.Send * work vault allow"), HOST)
    assert not covered.duplicate


# --- beside every request that there could be ------------------------------------------------------------------------
SMALL = Levels(names=("low", "high"), compartments=frozenset({"x", "y"}))
NAMES = ("work", "vault")
LABELS = [SMALL.label(level, more) for level in SMALL.names for more in ((), ("x",), ("y",), ("x", "y"))]
TOKENS = ["*", "@any", *NAMES, "@level:low", "@level:high", "@compartment:x", "@compartment:y", "@tag:t"]
TARGETS = [*TOKENS, "@dominates", "@same-label", "@owner", "@core", "@default", "@disposable", "@disposable:d"]
LINES = st.builds(
    lambda service, argument, source, target, action: " ".join(
        [service, argument if service != "*" else "*", source, target, action,
         *(["target=vault"] if (target, action) == ("@default", "allow") else [])]),
    st.sampled_from(["*", "a.B"]), st.sampled_from(["*", "+x"]), st.sampled_from(TOKENS),
    st.sampled_from(TARGETS), st.sampled_from(["allow", "deny", "ask"]),
)  # fmt: skip


def everybody(names: tuple[str, ...], owners: tuple[int, ...]) -> list[Instance]:
    return [Instance(name=name, uuid=name, label=label, owner=owner, tags=frozenset(tags))
            for name in names for label in LABELS for owner in owners for tags in ((), ("t",))]


def every_request() -> list[tuple[Request, Instance | None]]:
    """Of the disposable cages those that could be made from a template that caps nothing, and from one that is not
    there."""
    sources, targets = everybody((*NAMES, "any"), (1,)), everybody((*NAMES, "other"), (1, 2))
    asked = [(target.name, target) for target in targets]
    asked += [(name, None) for name in (*NAMES, "other", "", "@core", "@disposable:d", "@disposable", "@disposable:e")]
    found = []
    for (service, argument), source in itertools.product([("a.B", ""), ("a.B", "x"), ("c.D", "")], sources):
        made = Instance(name="@disposable:d", uuid="", label=source.label, owner=1)
        for name, target in (*asked, (made.name, made)):
            found.append((Request(service=service, argument=argument, source=source, target_name=name), target))
    return found


EVERY = every_request()


@settings(max_examples=20, deadline=None)
@given(st.lists(LINES, min_size=1, max_size=7))
def test_exactly_the_rules_that_decide_nothing_are_told(lines: list[str]) -> None:
    found = Policy(rules=rules(*lines, levels=SMALL))
    alive = {first.place for request, target in EVERY if (first := found.first(request, target, 0.0))}
    told = {each.rule.place for each in shadowed(found, Host(levels=SMALL, now=0.0))}
    assert told == {rule.place for rule in found.rules} - alive
