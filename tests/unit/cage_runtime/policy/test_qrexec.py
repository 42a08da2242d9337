# SPDX-License-Identifier: LGPL-2.1-or-later
"""The cases of qrexec's documentation and tests, in our words, with the verdict that they have there.

Whoever knows qrexec should not be surprised, so where ours is another verdict, it says why.  Read in
QubesOS/qubes-core-qrexec at b2822df6: doc/multifile-policy.markdown, doc/qrexec-policy.rst and
qrexec/tests/policy/parser.py.  `@anyvm` is `@any`, `@adminvm` and `dom0` are `@core`, `@dispvm` is `@disposable`,
`@dispvm:NAME` is `@disposable:TEMPLATE`; `@type` and the uuids have no counterpart.  All cages are of one label, so
that nothing but the rules decides.
"""

from __future__ import annotations

import pytest

from cage_runtime.errors import PolicySyntaxError
from cage_runtime.model import Action, Decision, Instance, Levels, Request, ServiceKind
from cage_runtime.policy.engine import Policy
from cage_runtime.policy.parser import parse

LEVELS = Levels(names=("public",))
KINDS = {"test.Service": ServiceKind(one_way=True, parameters=frozenset({"user"}))}
TAGS = {"vm1": ["tag1", "tag2"], "vm2": ["tag2"], "vm3": ["tag3"], "vm4": [], "standalone": ["tag1", "tag2"],
        "template": ["tag1", "tag2"]}
CAGES = {
    name: Instance(name=name, uuid=f"uuid-{name}", label=LEVELS.label("public"), owner=1000, tags=frozenset(tags))
    for name, tags in TAGS.items()
}
TEMPLATES = ("disposable", "vm3", "vm4")
ALLOW, ASK, DENY = Action.ALLOW, Action.ASK, Action.DENY


def find(name: str) -> Instance | None:
    token, _, template = name.partition(":")
    if token == "@disposable" and template in TEMPLATES:
        return Instance(name=name, uuid="", label=LEVELS.label("public"), owner=1000)
    return CAGES.get(name)


def decide(lines: list[str], source: str, target: str, chosen: str | None = None) -> Decision:
    rules = parse("\n".join(lines).encode(), file="p", levels=LEVELS, kinds=KINDS)
    request = Request(service="test.Service", argument="argument", source=CAGES[source], target_name=target)
    return Policy(rules=rules, kinds=KINDS).decide(request, find, LEVELS, 0.0, chosen=chosen, cages=CAGES.values)


FIND = [
    "* * vm1 vm2 allow", "* * vm1 @any ask", "* * vm2 @tag:tag1 deny", "* * vm2 @tag:tag2 allow",
    "* * vm2 @disposable:vm3 allow", "* * vm2 @disposable:disposable allow", "* * @any @default allow target=vm3",
    "* * @tag:tag1 vm3 allow",
]  # fmt: skip
EVALUATE = [
    "* * vm1 vm2 allow", "* * vm1 @default allow target=vm2", "* * @tag:tag1 vm2 ask",
    "* * @tag:tag1 vm3 ask default-target=vm3", "* * @tag:tag2 @any allow", "* * vm3 @any deny",
]  # fmt: skip
ANYWHERE = "* * @any @any"

SAME = [
    # their test, the policy, source, target: verdict, and where it goes
    ("test_010_find_rule", FIND, "vm1", "vm2", ALLOW, "vm2"),
    ("test_010_find_rule", FIND, "vm1", "vm3", ASK, "vm3"),
    ("test_010_find_rule", FIND, "vm2", "standalone", DENY, ""),
    ("test_010_find_rule", FIND, "vm2", "@disposable:vm3", ALLOW, "@disposable:vm3"),
    ("test_010_find_rule", FIND, "vm2", "@disposable", ALLOW, "@disposable:disposable"),
    ("test_010_find_rule", FIND, "standalone", "vm3", ALLOW, "vm3"),
    ("test_010_find_rule", FIND, "standalone", "template", DENY, ""),
    ("test_010_find_rule", FIND, "standalone", "@disposable", DENY, ""),
    ("test_000_deny", [f"{ANYWHERE} deny"], "vm1", "vm2", DENY, ""),
    ("test_001_deny_no_notify", [f"{ANYWHERE} deny notify=no"], "vm1", "vm2", DENY, ""),
    ("test_030_eval_simple", ["* * vm1 vm2 allow"], "vm1", "vm2", ALLOW, "vm2"),
    ("test_030_eval_simple", ["* * vm1 vm2 allow"], "vm2", "", DENY, ""),
    ("test_031_eval_default", EVALUATE, "vm1", "", ALLOW, "vm2"),
    ("test_031_eval_default", EVALUATE, "standalone", "", DENY, ""),
    ("test_040_eval_ask", EVALUATE, "standalone", "vm2", ASK, "vm2"),
    ("test_041_eval_ask", EVALUATE, "standalone", "vm3", ASK, "vm3"),
    ("test_042_eval_ask_no_targets", ["* * vm3 @default ask"], "vm3", "", DENY, ""),
    ("test_050_eval_resolve_dispvm", ["* * vm3 @disposable allow"], "vm3", "@disposable", ALLOW,
     "@disposable:disposable"),
    ("test_053_eval_resolve_dispvm_from_any", ["* * @any @disposable allow"], "vm3", "@disposable", ALLOW,
     "@disposable:disposable"),
    ("test_054_eval_resolve_dispvm_from_target", [f"{ANYWHERE} allow target=@disposable"], "vm3", "vm1", ALLOW,
     "@disposable:disposable"),
    ("test_055_eval_resolve_dispvm_from_default_target",
     [f"{ANYWHERE} ask default-target=@disposable", "* * @any @disposable ask"], "vm3", "vm1", ASK, "vm1"),
    ("test_060_eval_to_dom0", ["* * vm3 @core allow"], "vm3", "@core", ALLOW, "@core"),
    ("test_064_eval_to_dom0_deny", ["* * vm3 vm2 allow"], "vm3", "@core", DENY, ""),
    ("test_064_eval_to_dom0_deny", ["* * vm3 @core allow"], "vm3", "vm2", DENY, ""),
    ("test_070_eval_to_dom0_ask_default_target", ["* * vm3 @core ask default-target=@core"], "vm3", "@core", ASK,
     "@core"),
    ("test_080_eval_override_target", [f"{ANYWHERE} allow target=vm2"], "vm3", "vm1", ALLOW, "vm2"),
    ("test_082_eval_override_target_dispvm_specific", [f"{ANYWHERE} allow target=@disposable:vm3"], "vm3", "vm1",
     ALLOW, "@disposable:vm3"),
    ("test_083_eval_override_target_dispvm_none", [f"{ANYWHERE} allow target=@disposable:none"], "vm3", "vm1", DENY,
     ""),
    ("test_086_eval_override_target_invalid", ["* * vm3 * allow target=no-such-vm"], "vm3", "", DENY, ""),
    ("doc/qrexec-policy.rst: @anyvm is any domain, excluding dom0", [f"{ANYWHERE} allow"], "vm1", "@core", DENY, ""),
    ("doc/multifile-policy.markdown: * is any", ["* * * * allow"], "vm1", "@core", ALLOW, "@core"),
    ("test_100_match_single: (@dispvm, default-dvm)", ["* * * @disposable allow"], "vm1", "disposable", DENY, ""),
    ("test_100_match_single: (@dispvm:default-dvm, default-dvm)", ["* * * @disposable:disposable allow"], "vm1",
     "disposable", DENY, ""),
    ("test_100_match_single: (@anyvm, @dispvm)", [f"{ANYWHERE} allow"], "vm1", "@disposable", ALLOW,
     "@disposable:disposable"),
    ("test_100_match_single: (@tag:tag1, test-vm3)", ["* * * @tag:tag1 allow"], "vm1", "vm3", DENY, ""),
    ("test_100_match_single: (@tag:dom0-tag, @adminvm)", ["* * * @tag:core allow"], "vm1", "@core", DENY, ""),
    ("test_050_match", ["test.Service +argument @any @disposable allow"], "vm1", "@disposable:vm3", DENY, ""),
    ("test_050_match", ["test.Service +argument @any @disposable:disposable allow"], "vm1", "@disposable", ALLOW,
     "@disposable:disposable"),
]  # fmt: skip

OTHERWISE = [
    # as above with their verdict and ours, and why
    ("test_100_match_single: (@anyvm, @default)", [f"{ANYWHERE} ask"], "vm1", "", ASK, DENY,
     "@any is every cage, and no cage was named"),
    ("test_100_match_single: (@default, no-such-vm)", ["* * * @default allow target=vm2", "* * * vm2 allow"], "vm1",
     "no-such-vm", ALLOW, DENY, "a name of no cage is no request for whatever the policy likes"),
    ("test_050_match: from no-such-vm", [f"{ANYWHERE} allow"], "vm1", "no-such-vm", ALLOW, DENY, "likewise"),
    ("test_084_eval_override_target_dom0", [f"{ANYWHERE} allow target=@core"], "vm3", "vm1", ALLOW, DENY,
     "the new pair is decided again, and @any is not the core"),
    ("test_031_eval_default, without its first rule", EVALUATE[1:], "vm1", "", ALLOW, ASK,
     "the new pair is decided again, and about that a person is asked"),
]  # fmt: skip


@pytest.mark.parametrize(("source_of_it", "lines", "source", "target", "action", "goes"), SAME)
def test_as_there(source_of_it: str, lines: list[str], source: str, target: str, action: Action, goes: str) -> None:
    found = decide(lines, source, target)
    assert (found.action, found.target) == (action, goes), source_of_it


@pytest.mark.parametrize(("source_of_it", "lines", "source", "target", "there", "here", "why"), OTHERWISE)
def test_otherwise_than_there(
    source_of_it: str, lines: list[str], source: str, target: str, there: Action, here: Action, why: str
) -> None:  # fmt: skip
    assert decide(lines, source, target).action is here is not there, f"{source_of_it}: {why}"


def test_who_names_no_target_is_sent_on_first() -> None:
    """test_010_find_rule: there `@anyvm ask` is about @default too, and a person may choose any; here only vm3."""
    assert decide(FIND, "vm1", "").choices == ("vm3",)


def test_targets_for_ask() -> None:
    """test_020_collect_targets_for_ask: what a person may choose is what would be asked about or allowed."""
    lines = ["* * vm2 @default ask", *FIND[2:]]
    assert decide(lines, "vm2", "").choices == ("@disposable:disposable",)
    lines = ["* * vm1 @default ask", *FIND]
    assert set(decide(lines, "vm1", "").choices) == CAGES.keys() - {"vm1"} | {"@disposable:disposable"}


def test_what_is_preselected() -> None:
    """test_041_eval_ask, and test_043_eval_ask_invalid_default_target: only what can be chosen."""
    assert decide(EVALUATE, "standalone", "vm3").default_target == "vm3"
    assert decide(["* * vm3 vm2 ask default-target=vm1"], "vm3", "vm2").default_target == ""


def test_a_persons_answer() -> None:
    """test_110 and test_112 of handle_user_response: what was offered is allowed, anything else refused."""
    assert decide(EVALUATE, "standalone", "vm2", chosen="vm2").action is ALLOW
    assert decide(EVALUATE, "standalone", "vm2", chosen="no-such-vm").action is DENY


INVALID = [
    # test_030_line_invalid, and the table of doc/multifile-policy.markdown of what may stand where
    "test.Service +argument @disposable @default allow", "test.Service +argument @default @default allow",
    "test.Service +argument @any @default allow target=@tag:tag1",
    "test.Service +argument @any @default deny target=vm1", "test.Service +argument @any @any deny default-target=vm1",
    "test.Service +argument @any @any deny user=user", "test.Service +argument @any @any invalid",
    "test.Service +argument @any @any allow invalid=xx", "test.Service +argument @any @any",
    "test.Service +argument @any @any allow default-target=vm1", "test.Service +argument @invalid @any allow",
    "test.Service +argument @any @invalid deny", "test.Service +argument @any @any allow extra",
    "test.Service +argument @any @default allow", "test.Service +argument @any @any allow notify",
    "test.Service +argument @any @any allow notify=xx", "* +argument @any @default allow target=vm1",
    "test.Service +argument @any @any allow target=@any", "test.Service +argument @any @any allow target=@default",
    "test.Service +argument @tag: @any allow", "test.Service +argument @any @disposable: allow",
    # what is valid there, and not here
    "test.Service +argument @core @any allow", "test.Service +argument @disposable:vm3 @any allow",
    "test.Service +argument @any @disposable:@tag:tag3 allow", "test.Service + @any @any allow",
    "test.Service +argument @any @default ask target=vm1 default-target=vm1", "* * @any @any allow user=user",
    "!compat-4.0", "!include-service policy.List * include/admin-policy-ro",
]  # fmt: skip


@pytest.mark.parametrize("line", INVALID)
def test_lines_that_are_none(line: str) -> None:
    with pytest.raises(PolicySyntaxError):
        parse(line.encode(), file="p", levels=LEVELS, kinds=KINDS)


@pytest.mark.parametrize("line", [
    # test_060_serialization
    "test.Service +argument @any @any allow", "test.Service +argument @any @any ask",
    "test.Service +argument @any @any deny", "test.Service * @any @any deny",
    "test.Service +argument @any @disposable:disposable allow",
    "test.Service +argument @tag:tag1 vm2 ask target=vm2 user=user",
    "test.Service +argument @any @any allow target=@core",
])  # fmt: skip
def test_lines_that_read_back(line: str) -> None:
    assert [str(rule) for rule in parse(line.encode(), file="p", levels=LEVELS, kinds=KINDS)] == [line]
