# SPDX-License-Identifier: LGPL-2.1-or-later
"""The flow proof: finds what leaks, tells what declassify opens, and loses nothing by asking about few requests."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import replace

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from cage_runtime.model import Action, Decision, Instance, Levels, Request, ServiceKind
from cage_runtime.policy.cells import Engine, Host, answers, decided
from cage_runtime.policy.engine import Policy
from cage_runtime.policy.flow import Chain, Proof, prove
from cage_runtime.policy.parser import parse
from cage_runtime.policy.rule import Rule
from cage_runtime.policy.witness import Case
from tests.unit.cage_runtime.policy.naive import Naive, Wrong

LEVELS = Levels(names=("public", "internal", "secret"), compartments=frozenset({"finance", "medical"}))
KINDS = {"call.*": ServiceKind(one_way=False, parameters=frozenset({"direction"})),
         "files.Send": ServiceKind(one_way=True, parameters=frozenset())}
HOST = Host(levels=LEVELS, now=0.0, kinds=KINDS)


def cage(name: str, level: str, *compartments: str, owner: int = 1000) -> Instance:
    return Instance(name=name, uuid=f"uuid-of-{name}", label=LEVELS.label(level, compartments), owner=owner)


WORLD = {found.name: found for found in (
    cage("web", "public"), cage("press", "public"), cage("work", "internal"), cage("vault", "secret"),
    cage("books", "internal", "finance"))}


def rules(*lines: str, levels: Levels = LEVELS) -> tuple[Rule, ...]:
    return parse("\n".join(lines).encode(), file="p", levels=levels)


def two_way(service: str) -> bool:
    return service != "files.Send"


def proof(*lines: str, wrong: Iterable[Wrong] = (), world: dict[str, Instance] | None = None) -> Proof:
    engine = Naive(rules=rules(*lines), two_way=two_way, wrong=frozenset(wrong))
    return prove(engine, WORLD if world is None else world, HOST)


def said(chains: Iterable[Chain]) -> list[list[str]]:
    return [[str(step) for step in chain] for chain in chains]


def test_nothing_leaks_where_the_engine_is_right() -> None:
    found = proof("* * * * allow", "call.X * * * allow", "files.Send * * * ask")
    assert (found.leaks, found.opened) == ((), ())


def test_what_declassify_opens_is_told_with_all_that_it_reaches() -> None:
    found = proof("files.Send * vault press allow declassify", "files.Send * press web allow")
    assert found.leaks == ()
    assert said(found.opened) == [
        ["vault (secret) to press (public): files.Send, declassify (rule p:1)"],
        ["vault (secret) to press (public): files.Send, declassify (rule p:1)",
         "press (public) to web (public): files.Send (rule p:2)"],
    ]  # fmt: skip


def test_what_only_passes_through_a_disposable_cage_is_not_told_again() -> None:
    def made(source: Instance, target: str) -> Instance | None:
        same = replace(source, name="@disposable:disposable", uuid="")
        return same if target in ("@disposable", "@disposable:disposable") else None

    host = replace(HOST, disposable=made, templates={"disposable": LEVELS.label("secret", LEVELS.compartments)})
    engine = Policy(rules=rules("files.Send * vault press allow declassify", "call.X * * @disposable allow",
                                "call.X * * @default ask"), kinds=KINDS)
    assert said(prove(engine, {name: WORLD[name] for name in ("press", "vault")}, host).opened) == [
        ["vault (secret) to press (public): files.Send, declassify (rule p:1)"]]


def test_what_a_rule_opens_between_cages_that_are_not_there_is_told_too() -> None:
    found = proof("files.Send * @level:secret @level:public ask declassify", world={})
    assert found.leaks == ()
    assert said(found.opened) == [[
        "any cage of secret to any cage of public: files.Send, where a person says so, declassify (rule p:1)"]]


def test_declassify_on_what_goes_up_opens_nothing() -> None:
    found = proof("files.Send * press vault allow declassify", world={
        name: WORLD[name] for name in ("press", "vault")})
    assert (found.leaks, found.opened) == ((), ())


LEAKS: list[tuple[Wrong, tuple[str, ...], list[str]]] = [
    (Wrong.ASK, ("files.Send * vault press ask",),
     ["vault (secret) to press (public): files.Send, where a person says so (rule p:1)"]),
    (Wrong.ASK, ("files.Send * @level:internal @level:internal ask",),
     ["books (internal+finance) to work (internal): files.Send, where a person says so (rule p:1)"]),
    (Wrong.ANSWERS, ("call.X * web vault allow",),
     ["vault (secret) to web (public): call.X, its answer (rule p:1)"]),
    (Wrong.ANSWERS, ("call.X +a ghost vault allow",),
     ["vault (internal) to ghost (public): call.X+a, its answer (rule p:1)"]),
    (Wrong.CORE, ("call.X * work @core allow",), []),
]


@pytest.mark.parametrize(("wrong", "lines", "chain"), LEAKS[:4])
def test_a_leak_is_found_and_told_with_its_rule(wrong: Wrong, lines: tuple[str, ...], chain: list[str]) -> None:
    assert proof(*lines).leaks == ()
    assert chain in said(proof(*lines, wrong=[wrong]).leaks)


def test_a_leak_through_the_core_is_found() -> None:
    lines = ("call.X * * * allow",)
    (leak,) = said(proof(*lines, wrong=[Wrong.CORE], world={}).leaks)
    assert leak == ["the core to any cage of public: call.X, its answer (rule p:1)"]


def test_a_leak_between_cages_that_could_be_is_found() -> None:
    found = proof("files.Send * nobody-yet other ask", wrong=[Wrong.ASK], world={})
    assert said(found.leaks) == [[
        "nobody-yet (internal) to other (public): files.Send, where a person says so (rule p:1)"]]


# --- beside brute force ----------------------------------------------------------------------------------------------
SMALL = Levels(names=("low", "high"), compartments=frozenset({"x", "y"}))
LABELS = [SMALL.label(level, more) for level in SMALL.names for more in ((), ("x",), ("y",), ("x", "y"))]
NAMES = ("work", "vault")
NOT_SHRUNK = (Phase.explicit, Phase.reuse, Phase.generate)
"""A policy that is made smaller is asked about all of it each time, which takes minutes."""
CAP = SMALL.label("low", ("x",))
"""What a disposable cage has at most."""
TOKENS = ["*", "@any", *NAMES, "@level:low", "@level:high", "@compartment:x", "@tag:t"]
TARGETS = [*TOKENS, "@dominates", "@same-label", "@owner", "@core", "@default", "@disposable"]


@st.composite
def policies(draw: st.DrawFn) -> tuple[str, ...]:
    lines = []
    for _ in range(draw(st.integers(1, 6))):
        service = draw(st.sampled_from(["*", "call.B", "files.Send"]))
        argument = "*" if service == "*" else draw(st.sampled_from(["*", "+x"]))
        target = draw(st.sampled_from(TARGETS))
        action = draw(st.sampled_from(["allow", "ask", "deny", "allow declassify", "ask declassify"]))
        sends = draw(st.sampled_from(["", "", "vault", "@core", "@disposable"]))
        if target == "@default" and action.startswith("allow"):
            sends = sends or "work"
        if sends and action != "deny":
            action += f" target={sends}"
        lines.append(f"{service} {argument} {draw(st.sampled_from(TOKENS))} {target} {action}")
    return tuple(lines)


def made(source: Instance, name: str) -> Instance | None:
    """The disposable cage for a source: of its label, but not more than CAP."""
    if name not in ("@disposable", "@disposable:disposable"):
        return None
    level = CAP.level if source.label.rank > CAP.rank else source.label.level
    label = SMALL.label(level, source.label.compartments & CAP.compartments)
    return Instance(name="@disposable:disposable", uuid="", label=label, owner=source.owner)


SMALL_HOST = Host(levels=SMALL, now=0.0, kinds=KINDS, templates={"disposable": CAP}, disposable=made)


def dominates(upper: object, lower: object) -> bool:
    """As the word is defined, of sets of letters; the core is above all."""
    if upper is None or lower is None:
        return upper is None
    (high, of_high), (low, of_low) = upper, lower  # type: ignore[misc]
    return bool(high >= low and of_high >= of_low)


def leaks_by_brute_force(engine: Engine) -> bool:
    """Whether data gets anywhere where it should not: every label, names that rules have and others, both persons, and
    what a rule sends on with a cage of every label where it could go to."""
    sources = [Instance(name=name, uuid=name, label=label, owner=1, tags=frozenset(tags))
               for name, tags in (("work", ()), ("vault", ()), ("any", ()), ("any", ("t",))) for label in LABELS]
    targets = [Instance(name=name, uuid=name, label=label, owner=owner, tags=frozenset(tags))
               for name in (*NAMES, "other") for tags in ((), ("t",)) for label in LABELS for owner in (1, 2)]
    asked = [(target.name, target) for target in targets]
    asked += [(name, target) for name in ("@core", "", "@disposable") for target in targets if target.owner == 1]
    reaches: set[tuple[object, object]] = set()
    services = (("call.B", ""), ("call.B", "x"), ("files.Send", "x"), ("c.D", ""))
    sends = any(rule.parameters.target for rule in engine.rules)
    elsewhere = [{}, *({name: Instance(name=name, uuid=name, label=label, owner=1) for name in NAMES}
                       for label in ((LABELS[0], LABELS[-1]) if sends else ()))]
    for source, (service, argument), (name, there), others in itertools.product(sources, services, asked, elsewhere):
        world = {**others, there.name: there, source.name: source}
        case = Case(request=Request(service=service, argument=argument, source=source, target_name=name), world=world)
        for found in answers(engine, case, SMALL_HOST, decided(engine, case, SMALL_HOST)):
            if found.action is not Action.DENY:
                goes = found.target or name
                reaches |= set(carried(found, of(source), of(SMALL_HOST.find(case, goes))))
    while more := {(a, d) for a, b in reaches for c, d in reaches if b == c} - reaches:
        reaches |= more
    return any(not dominates(end, begin) for begin, end in reaches)


def of(found: Instance | None) -> object:
    return (found.label.rank, found.label.compartments) if found else None


def carried(found: Decision, here: object, there: object) -> Iterable[tuple[object, object]]:
    if found.action is Action.DENY:
        return
    for begin, end in [(here, there), (there, here)][: 1 + found.two_way]:
        if dominates(end, begin) or not found.parameters.declassify:
            yield begin, end


@settings(max_examples=5, deadline=None, phases=NOT_SHRUNK)
@given(lines=policies(), wrong=st.sets(st.sampled_from(list(Wrong)), max_size=2))
def test_the_proof_agrees_with_brute_force_over_every_label(lines: tuple[str, ...], wrong: set[Wrong]) -> None:
    engine = Naive(rules=rules(*lines, levels=SMALL), two_way=two_way, wrong=frozenset(wrong))
    found = prove(engine, {}, SMALL_HOST)
    assert bool(found.leaks) == leaks_by_brute_force(engine)
    assert all(step.rule for chain in found.leaks for step in chain)


@settings(max_examples=5, deadline=None, phases=NOT_SHRUNK)
@given(lines=policies())
def test_the_engine_leaks_nowhere_and_the_proof_says_so(lines: tuple[str, ...]) -> None:
    engine = Policy(rules=rules(*lines, levels=SMALL), kinds=KINDS)
    assert not leaks_by_brute_force(engine)
    assert prove(engine, {}, SMALL_HOST).leaks == ()


def test_few_labels_stand_for_all() -> None:
    """A host of 32 levels and 256 compartments is proved as fast as a small one, and what leaks there is found."""
    host = Host(now=0.0, levels=Levels(names=tuple(f"l{number}" for number in range(32)),
                                       compartments=frozenset(f"c{number}" for number in range(256))))
    lines = rules("files.Send * @level:l7 @level:l7 ask", "files.Send * * * allow", levels=host.levels)
    asked = 0

    class Counting(Naive):
        def decide(self, *given: object, **more: object) -> Decision:
            nonlocal asked
            asked += 1
            return super().decide(*given, **more)  # type: ignore[arg-type]

    assert prove(Counting(rules=lines), {}, host).leaks == ()
    (leak,) = prove(Counting(rules=lines, wrong=frozenset({Wrong.ASK})), {}, host).leaks
    assert str(leak[0]).startswith("any cage of l7+c0 to any cage of l7:")
    assert asked < 2000
