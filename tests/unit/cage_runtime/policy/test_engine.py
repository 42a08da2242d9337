# SPDX-License-Identifier: LGPL-2.1-or-later
"""Verdicts: a table, and what a cage may learn from a refusal."""

from __future__ import annotations

import statistics
import time
from dataclasses import replace

import pytest

from cage_runtime.errors import PolicySyntaxError
from cage_runtime.model import Action, Decision, Flow, Instance, Levels, Request
from cage_runtime.policy.engine import BAD_ARGUMENT, BAD_SERVICE, DENIED, NO_POLICY, NO_RULE, Policy, refusal_sentence
from cage_runtime.policy.parser import parse
from tests.unit.cage_runtime.policy.world import ALICE, BOB, CAGES, LEVELS, NOON, world


def policy(*lines: str) -> Policy:
    return world(*lines).policy


def ask(source: str, target: str, service: str = "files.Send", argument: str = "", owner: int = ALICE) -> Request:
    return Request(service=service, argument=argument, source=replace(CAGES[source], owner=owner), target_name=target)


def decide(rules: Policy, request: Request) -> Decision:
    return rules.decide(request, CAGES.get, LEVELS, NOON)


SHIPPED = ("files.Send * * @same-label allow", "files.Send * * @dominates allow", "* * * * deny")
TABLE = [
    # rules, source, target: action, line of the rule that decided or 0, flow
    (SHIPPED, "work", "vault", Action.ALLOW, 2, Flow.UP),
    (SHIPPED, "work", "mail", Action.ALLOW, 1, Flow.LEVEL),
    (SHIPPED, "vault", "work", Action.DENY, 3, Flow.DOWN),
    (SHIPPED, "books", "clinic", Action.DENY, 3, Flow.INCOMPARABLE),
    (SHIPPED, "books", "archive", Action.ALLOW, 2, Flow.UP),
    (SHIPPED, "vault", "archive", Action.ALLOW, 2, Flow.UP),
    (SHIPPED, "books", "vault", Action.DENY, 3, Flow.INCOMPARABLE),
    (SHIPPED, "work", "ghost", Action.DENY, 3, None),
    (SHIPPED, "work", "work", Action.DENY, 0, Flow.LEVEL),
    ((), "work", "vault", Action.DENY, 0, Flow.UP),
    (("* * * * allow",), "work", "vault", Action.ALLOW, 1, Flow.UP),
    (("* * * * allow",), "vault", "work", Action.DENY, 1, Flow.DOWN),
    (("* * * * allow",), "books", "clinic", Action.DENY, 1, Flow.INCOMPARABLE),
    (("* * * * allow",), "work", "ghost", Action.DENY, 1, None),
    (("* * * * allow declassify",), "vault", "work", Action.ALLOW, 1, Flow.DOWN),
    (("* * * * allow declassify",), "books", "clinic", Action.ALLOW, 1, Flow.INCOMPARABLE),
    (("* * * * allow declassify",), "work", "ghost", Action.DENY, 1, None),
    (("* * * * allow declassify",), "work", "work", Action.DENY, 0, Flow.LEVEL),
    # The first rule decides, also where a later one would allow what it cannot.
    (("* * vault work allow", "* * * * allow declassify"), "vault", "work", Action.DENY, 1, Flow.DOWN),
    (("* * web * deny", "* * * * allow"), "web", "work", Action.DENY, 1, Flow.UP),
    (("* * * * allow", "* * web * deny"), "web", "work", Action.ALLOW, 1, Flow.UP),
    (("* * @level:public * deny", "* * web work allow"), "web", "work", Action.DENY, 1, Flow.UP),
    (("* * @level:secret * deny", "* * * * allow"), "web", "work", Action.ALLOW, 2, Flow.UP),
    (("* * * @level:internal allow",), "web", "books", Action.ALLOW, 1, Flow.UP),
    (("* * * @level:internal allow",), "web", "vault", Action.DENY, 0, Flow.UP),
    (("* * * @same-label allow",), "work", "books", Action.DENY, 0, Flow.UP),
    (("clipboard.Paste * * * deny", "files.Send * * * allow"), "web", "work", Action.ALLOW, 2, Flow.UP),
    (("files.Send +x * * deny", "files.Send * * * allow"), "web", "work", Action.ALLOW, 2, Flow.UP),
]


@pytest.mark.parametrize(("lines", "source", "target", "action", "line", "flow"), TABLE)
def test_table(
    lines: tuple[str, ...], source: str, target: str, action: Action, line: int, flow: Flow | None
) -> None:
    found = decide(policy(*lines), ask(source, target))
    assert (found.action, found.rule, found.flow) == (action, f"p:{line}" if line else "", flow)


ACROSS = [
    # Bob's cage asks for one of Alice's: rules, source, target: action, line of the rule that decided or 0
    (SHIPPED, "work", "vault", Action.DENY, 3),
    (SHIPPED, "work", "mail", Action.DENY, 3),
    (("* * * * allow declassify",), "work", "vault", Action.DENY, 0),
    (("* * * @level:secret allow",), "work", "vault", Action.DENY, 0),
    (("* * * @dominates allow", "* * work @same-label allow"), "work", "mail", Action.DENY, 0),
    # One that names the target is meant, whoever the source is.
    (("* * * vault allow",), "work", "vault", Action.ALLOW, 1),
    (("* * @level:internal vault allow",), "work", "vault", Action.ALLOW, 1),
    (("* * * * allow", "* * work vault allow"), "work", "vault", Action.ALLOW, 2),
    (("* * vault work allow",), "vault", "work", Action.DENY, 1),
    (("* * vault work allow declassify",), "vault", "work", Action.ALLOW, 1),
    # Rules that deny are for everybody, and one behind an allowing one of the same words still decides.
    (("* * * * deny", "* * * vault allow"), "work", "vault", Action.DENY, 1),
    (("* * * @dominates deny", "* * * vault allow"), "work", "vault", Action.DENY, 1),
    (("* * * * allow", "* * * * deny", "* * * vault allow"), "work", "vault", Action.DENY, 2),
]


@pytest.mark.parametrize(("lines", "source", "target", "action", "line"), ACROSS)
def test_between_persons_a_rule_that_allows_has_to_name_the_target(
    lines: tuple[str, ...], source: str, target: str, action: Action, line: int
) -> None:
    found = decide(policy(*lines), ask(source, target, owner=BOB))
    assert (found.action, found.rule) == (action, f"p:{line}" if line else "")


def test_whoever_may_know_of_both_cages_is_told_what_keeps_them_apart() -> None:
    found = decide(policy(*SHIPPED), ask("work", "vault", owner=BOB))
    assert found.reason == (
        "the rule denies it, and only an allowing rule before that one would change it (not by p:2: it allows within "
        "one person's cages alone, the target is another's, and no rule names it as the target)"
    )
    assert decide(policy("* * * * deny"), ask("work", "vault", owner=BOB)).reason == DENIED


@pytest.mark.parametrize(("argument", "line"), [("sign", 1), ("list", 2), ("", 2), ("sig", 2), ("x" * 64, 2)])
def test_arguments(argument: str, line: int) -> None:
    rules = policy("call.Agent +sign * * deny", "call.Agent * * * allow")
    assert decide(rules, ask("web", "work", "call.Agent", argument)).rule == f"p:{line}"


HOSTILE = ["*", "+sign", "$(id)", "`id`", "a;b", "a\nb", "sign\n", "a\x00", "-x", ".", "..", "a/b", "a b", "ü",
           "\udcff", "x" * 65, "x" * 65_001]


@pytest.mark.parametrize("argument", HOSTILE)
def test_an_argument_that_can_be_none_is_refused_whatever_the_rules_say(argument: str) -> None:
    """M1, M12: what no rule could name is no request, though one for all arguments would let it through."""
    rules, request = policy("* * * * allow declassify"), ask("web", "work", "call.Agent", argument)
    assert decide(rules, request).reason == rules.public_refusal(request, NOON).reason == BAD_ARGUMENT
    assert len(refusal_sentence(request, decide(rules, request))) < 1000


@pytest.mark.parametrize("name", ["*", "@dominates", "@same-label", "@level:secret", "=vault", "", "vault\n", "Vault"])
def test_a_target_that_looks_like_a_token_is_a_name_of_no_cage(name: str) -> None:
    rules = policy("* * * vault deny", "* * * @level:secret deny", "* * * @dominates deny", "* * * @same-label deny")
    assert decide(rules, ask("work", name)).reason == NO_RULE


def test_a_service_is_matched_whole() -> None:
    rules = policy("files.Send * * * deny", "* * * * allow")
    assert decide(rules, ask("work", "vault", "files.send")).rule == "p:2"


@pytest.mark.parametrize("service", ["*", "", "files.Send ", "files", "files.Send\n", "@any", "f." + "x" * 63])
def test_what_no_service_is_called_is_refused_whatever_the_rules_say(service: str) -> None:
    rules, request = policy("* * * * allow declassify"), ask("work", "vault", service)
    assert decide(rules, request).reason == rules.public_refusal(request, NOON).reason == BAD_SERVICE


def test_without_declassify_the_reason_says_what_would_flow_where() -> None:
    found = decide(policy("* * * * allow"), ask("archive", "books"))
    assert found.reason == (
        'the rule allows it, but for this flow would need "declassify": '
        "data would go from secret+finance+medical to internal+finance"
    )


def test_what_the_rule_adds_is_in_the_decision() -> None:
    rules = policy("files.Send * work * allow max-size=2M", "* * * * allow")
    assert decide(rules, ask("work", "vault")).max_size == 2 * 1024**2
    assert decide(rules, ask("web", "vault")).max_size is None


def test_a_policy_that_could_not_be_read_denies_and_says_why() -> None:
    rules = Policy.refusing(PolicySyntaxError('x/50-a.policy:3: "alow" is not an action'))
    found = decide(rules, ask("work", "vault"))
    assert (found.action, found.reason) == (Action.DENY, 'x/50-a.policy:3: "alow" is not an action')
    # The text of the policy may name other cages, so a cage hears less.
    assert rules.public_refusal(ask("work", "vault"), NOON).reason == NO_POLICY


def test_a_label_from_before_the_levels_changed_is_refused() -> None:
    levels = Levels(names=("public", "restricted", "internal", "secret"))
    rules = Policy(rules=parse(b"* * * * allow", file="p", levels=levels))
    found = rules.decide(ask("work", "vault"), CAGES.get, levels, NOON)
    assert found.action is Action.DENY
    assert found.reason == 'the label of cage "work" is none of this host\'s levels.toml'


def test_another_target_than_the_one_asked_for_is_refused() -> None:
    found = policy("* * * * allow").decide(ask("work", "vault"), lambda _: CAGES["archive"], LEVELS, NOON)
    assert found.action is Action.DENY


def test_the_same_instance_under_another_name_is_itself() -> None:
    twin = Instance(name="other", uuid=CAGES["work"].uuid, label=CAGES["work"].label, owner=1000)
    assert policy("* * * * allow").decide(ask("work", "other"), lambda _: twin, LEVELS, NOON).action is Action.DENY


PUBLIC = [
    (SHIPPED, "the rule denies it, and only an allowing rule before that one would change it", "p:3"),
    ((), NO_RULE, ""),
    (("* * * * allow",), 'the rule allows it, but for this flow would need "declassify"', "p:1"),
    (("* * * @level:internal deny", "* * * * allow declassify"), "no cage of that name can be reached from here", ""),
    (("* * * @level:internal deny", "* * * @dominates allow"), NO_RULE, ""),
]


@pytest.mark.parametrize("owner", [ALICE, BOB])
@pytest.mark.parametrize(("lines", "reason", "rule"), PUBLIC)
def test_forbidden_and_unknown_read_alike(lines: tuple[str, ...], reason: str, rule: str, owner: int) -> None:
    """M3: the sentence is the same, byte for byte, whether the cage that may not be reached exists or not."""
    rules, request = policy(*lines), ask("vault", "work", owner=owner)
    forbidden = rules.decide(request, CAGES.get, LEVELS, NOON)
    unknown = rules.decide(request, lambda _: None, LEVELS, NOON)
    assert forbidden.action is unknown.action is Action.DENY
    public = rules.public_refusal(request, NOON)
    assert (public.action, public.reason, public.rule, public.flow) == (Action.DENY, reason, rule, None)


def test_the_sentence_does_not_tell_whether_a_rule_names_the_target() -> None:
    """M3: by the place of the rule a cage could guess the names of those that it may not know of."""
    rules = policy("files.Send * vault merger deny", *SHIPPED)
    heard = []
    for name in ("merger", "nobody"):
        request = ask("vault", name)
        public = rules.public_refusal(request, NOON)
        heard.append(refusal_sentence(request, public).replace(name, "NAME"))
        assert public.rule
    assert heard[0] == heard[1]


def test_where_no_target_was_named_the_sentence_has_none() -> None:
    request = ask("vault", "")
    rules = policy(*SHIPPED)
    assert refusal_sentence(request, rules.public_refusal(request, NOON)).startswith("files.Send is refused: ")


def test_the_sentence_says_what_tells_the_rule_and_hides_nothing_hostile() -> None:
    rules = policy(*SHIPPED)
    request = ask("vault", "wo\x1b[2Jrk\n")
    assert refusal_sentence(request, rules.public_refusal(request, NOON)) == (
        'files.Send to "wo\\x1b[2Jrk\\n" is refused: the rule denies it, and only an allowing rule before that one '
        "would change it (cagectl policy explain says which rule)"
    )


def test_explain_gives_each_rule_that_was_passed_over_and_why() -> None:
    rules = policy(
        "clipboard.Paste * * * allow", "files.Send +x * * deny", "files.Send * web * deny",
        "files.Send * * @same-label allow", "files.Send * * work deny", "* * * @dominates allow", "* * * * deny",
    )  # fmt: skip
    explained = rules.explain(ask("work", "vault"), CAGES["vault"], NOON)
    assert [why for _, why in explained] == [
        "it is about clipboard.Paste", "it is about the argument +x", "the source is not web",
        "the target is not @same-label of the source", "the target is not work", "",
    ]  # fmt: skip


def test_ten_thousand_rules_answer_at_once() -> None:
    """P9 is < 20 µs median, measured by scripts/bench; here a bound that only a scan of the rules would miss."""
    rules = policy(*(f"files.Send * cage{n} cage{n + 1} deny" for n in range(9_999)), "* * * * allow")
    request, find, times = ask("work", "vault"), CAGES.get, []
    for _ in range(501):
        begin = time.perf_counter()
        found = rules.decide(request, find, LEVELS, NOON)
        times.append(time.perf_counter() - begin)
    assert found.rule == "p:10000"
    assert statistics.median(times) < 100e-6
