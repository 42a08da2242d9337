# SPDX-License-Identifier: LGPL-2.1-or-later
"""The policy language, from its corpora.  The first line of a bad file says `# expects LINE: part of the sentence`."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cage_runtime.config import Paths
from cage_runtime.errors import PolicySyntaxError, Refused
from cage_runtime.manifest import service_kinds
from cage_runtime.model import POLICY_BYTES_MAX, POLICY_LINE_MAX, Levels, ServiceKind
from cage_runtime.policy.parser import parse, read
from cage_runtime.policy.rule import Include, Rule
from cage_runtime.text import is_visible

CORPUS = Path(__file__).parent / "corpus"
SHIPPED = Path(__file__).parents[4] / "policies"
SHIPPED_KINDS = service_kinds(Paths(shipped=str(SHIPPED), administrator="/nonexistent"))
LEVELS = Levels(names=("public", "internal", "secret"), compartments=frozenset({"finance"}))

KINDS = {
    "files.Send": ServiceKind(one_way=True, parameters=frozenset(
        {"max-size", "max-files", "types", "transform", "require"})),
    "clipboard.Paste": ServiceKind(one_way=True, parameters=frozenset({"max-size", "types"})),
    "call.*": ServiceKind(one_way=False, parameters=frozenset({"user", "direction", "max-size"})),
    "open.Uri": ServiceKind(one_way=True, parameters=frozenset()),
    "keys.List": ServiceKind(one_way=False, parameters=frozenset()),
    "keys.Sign": ServiceKind(one_way=False, parameters=frozenset()),
}

GOOD = {
    "empty": [],
    "comments-only": [],
    "shapes": [
        "2 files.Send * work vault allow",
        "3 files.Send * @level:public @level:secret allow",
        "4 files.Send * @level:public @dominates allow max-size=2G",
        "5 clipboard.Paste * * @same-label allow",
        "6 call.SshAgent +sign dev keys allow declassify max-size=64K",
        "7 call.SshAgent +v1.2_x dev keys deny",
        "8 files.Send * vault press allow declassify max-size=1",
        "9 * * * * deny",
    ],
}


@pytest.mark.parametrize("file", sorted((CORPUS / "good").iterdir()), ids=lambda file: file.stem)
def test_good(file: Path) -> None:
    rules = parse(file.read_bytes(), file="f", levels=LEVELS)
    assert [f"{rule.place.removeprefix('f:')} {rule}" for rule in rules] == GOOD[file.stem]


@pytest.mark.parametrize("file", sorted((CORPUS / "bad").iterdir()), ids=lambda file: file.stem)
def test_bad(file: Path) -> None:
    text = file.read_bytes()
    expected = re.match(r"# expects (\d+): (.+)\n", text.split(b"\n")[0].decode() + "\n")
    assert expected, "a bad file begins with what it expects"
    with pytest.raises(PolicySyntaxError) as caught:
        parse(text, file="/x/50-a.policy", levels=LEVELS)
    assert caught.value.sentence.startswith(f"/x/50-a.policy:{expected[1]}: ")
    assert expected[2] in caught.value.sentence
    assert "\n" not in caught.value.sentence


def lines_of(name: str) -> list[str]:
    return [line for line in (CORPUS / name).read_text().split("\n") if line]


def bad_lines() -> list[tuple[str, str]]:
    """Each bad rule after what is expected to be said of it."""
    found, lines = [], lines_of("bad-lines.policy")
    for before, line in itertools.pairwise(lines):
        if not line.startswith("# "):
            assert before.startswith("# expects: "), f"{line}: nothing is expected to be said of it"
            found.append((line, before.removeprefix("# expects: ")))
    return found


@pytest.mark.parametrize(("line", "expected"), bad_lines())
def test_a_bad_line(line: str, expected: str) -> None:
    with pytest.raises(PolicySyntaxError) as caught:
        parse(line.encode(), file="f", levels=LEVELS, kinds=KINDS)
    assert caught.value.sentence.startswith("f:1: ")
    assert expected in caught.value.sentence


def good_lines() -> list[tuple[str, str]]:
    """Each good rule, and what it is to be read as."""
    lines = [line for line in lines_of("good-lines.policy") if not line.startswith("#")]
    return [(line, after.removeprefix("= ") if after.startswith("= ") else line)
            for line, after in zip(lines, [*lines[1:], ""], strict=True) if not line.startswith("= ")]


@pytest.mark.parametrize(("line", "expected"), good_lines())
def test_a_good_line_is_read_as_it_is_written_and_reads_back_as_itself(line: str, expected: str) -> None:
    rules = parse(line.encode(), file="f", levels=LEVELS, kinds=KINDS)
    assert [str(rule) for rule in rules] == [expected]
    assert parse(expected.encode(), file="f", levels=LEVELS, kinds=KINDS) == rules


BOUNDS = [
    # field, the line around it, what just goes, what just does not: the smallest of each first where that is bounded
    ("service", "{} * * * deny", ["a.b", "f." + "x" * 62], ["a.", "f." + "x" * 63]),
    ("argument", "files.Send +{} * * deny", ["a", "x" * 64], ["", "x" * 65]),
    ("name", "files.Send * {} * deny", ["a", "x" * 31], ["x" * 32]),
    ("tag", "files.Send * @tag:{} * deny", ["a", "x" * 31], ["", "x" * 32]),
    ("template", "files.Send * * @disposable:{} deny", ["a", "x" * 31], ["", "x" * 32]),
    ("max-size", "files.Send * * * allow max-size={}", ["1", "999999T"], ["", "0", "1000000T"]),
    ("max-files", "files.Send * * * allow max-files={}", ["1", "1000000"], ["", "0", "1000001", "9" * 30]),
    ("limit", "files.Send * * * allow limit={}/s", ["1", "1000000"], ["", "0", "1000001", "9" * 30]),
    ("for", "files.Send * * * ask for={}", ["1s", "30d", "720h"], ["", "0s", "31d", "721h", "9" * 30 + "s"]),
    ("types", "files.Send * * * allow types={}", ["a/b", ",".join(f"a/{n}" for n in range(32)), "a/" + "x" * 127],
     ["", ",".join(f"a/{n}" for n in range(33)), "a/" + "x" * 128]),
    ("transform", "files.Send * * * allow transform={}", ["a", "a:b", "x" * 31 + ":" + "y" * 64],
     ["", "a:", "x" * 32, "a:" + "y" * 65]),
    ("user", "call.X * * * allow user={}", ["a", "x" * 31], ["", "x" * 32]),
]  # fmt: skip


@pytest.mark.parametrize(("line", "good", "bad"), [bound[1:] for bound in BOUNDS], ids=[bound[0] for bound in BOUNDS])
def test_the_bounds_of_each_field(line: str, good: list[str], bad: list[str]) -> None:
    """M12: the least and the most go, less and more do not."""
    for value in good:
        assert len(parse(line.format(value).encode(), file="f", levels=LEVELS, kinds=KINDS)) == 1, value
    for value in bad:
        with pytest.raises(PolicySyntaxError, match=r"\Af:1: "):
            parse(line.format(value).encode(), file="f", levels=LEVELS, kinds=KINDS)


def test_instructions_are_read() -> None:
    text = b"!include include/common\n!include-dir /etc/cage-runtime/more.d # a comment\n"
    assert list(read(text, file="f", levels=LEVELS)) == [
        Include(path="include/common", directory=False, place="f:1"),
        Include(path="/etc/cage-runtime/more.d", directory=True, place="f:2"),
    ]


WORDS = st.sampled_from([
    "*", "files.Send", "call.X", "+a", "work", "vault", "@any", "@core", "@default", "@disposable", "@disposable:t",
    "@level:public", "@compartment:finance", "@tag:t", "@owner", "@dominates", "@same-label", "allow", "ask", "deny",
    "declassify", "target=vault", "default-target=@core", "limit=1/s", "for=1m", "until=2027-01-31T18:00Z", "#",
    "!include", "types=a/b,c/*", "direction=two-way", "log=no", "notify=yes", "=", "@", "max-size=1", "\x00", "\x1b[2J",
    "é",
])  # fmt: skip


@given(st.one_of(st.binary(max_size=300), st.lists(WORDS, max_size=9).map(lambda words: " ".join(words).encode())))
@example(b"\xff\xfe* * * * allow")
@example(b"files.Send * * * allow until=0001-01-31T18:00Z")
def test_whatever_the_bytes_are_they_are_rules_or_a_fault_with_its_line(text: bytes) -> None:
    for found in read(text, file="f", levels=LEVELS, kinds=KINDS):
        if isinstance(found, Rule):
            assert parse(str(found).encode(), file="f", levels=LEVELS, kinds=KINDS)[0] == replace(found, place="f:1")
        else:
            said = found.sentence if isinstance(found, PolicySyntaxError) else found.place
            assert re.match(r"f:[1-9][0-9]*(: |\Z)", said)
            assert is_visible(said)


def test_a_rule_reads_back_as_itself() -> None:
    rules = parse((CORPUS / "good" / "shapes.policy").read_bytes(), file="f", levels=LEVELS)
    again = parse("\n".join(map(str, rules)).encode(), file="f", levels=LEVELS)
    assert [str(rule) for rule in again] == [str(rule) for rule in rules]


def test_a_syntax_error_is_a_refusal() -> None:
    with pytest.raises(Refused):
        parse(b"nonsense", file="f", levels=LEVELS)


def test_the_longest_line() -> None:
    line = b"* * * * deny #"
    assert len(parse(line.ljust(POLICY_LINE_MAX, b"x"), file="f", levels=LEVELS)) == 1
    with pytest.raises(PolicySyntaxError, match=rf"\Af:2: the line has more than {POLICY_LINE_MAX} bytes"):
        parse(b"\n" + line.ljust(POLICY_LINE_MAX + 1, b"x"), file="f", levels=LEVELS)


def test_the_biggest_file() -> None:
    text = (b"#".ljust(1023, b"x") + b"\n") * (POLICY_BYTES_MAX // 1024 - 1) + b"* * * * deny".ljust(1024)
    assert len(text) == POLICY_BYTES_MAX
    assert len(parse(text, file="f", levels=LEVELS)) == 1
    with pytest.raises(PolicySyntaxError, match=f"more than {POLICY_BYTES_MAX} bytes"):
        parse(text + b"\n", file="f", levels=LEVELS)


def test_a_hostile_word_is_cut_in_the_sentence() -> None:
    with pytest.raises(PolicySyntaxError) as caught:
        parse(b"* * * * " + b"x" * 4000, file="f", levels=LEVELS)
    assert len(caught.value.sentence) < 200


def test_the_shipped_policy_is_sound() -> None:
    rules = [
        str(rule)
        for file in sorted(SHIPPED.glob("policy.d/*.policy"))
        for rule in parse(file.read_bytes(), file=file.name, levels=LEVELS, kinds=SHIPPED_KINDS)
    ]
    assert rules == [
        "files.Send * * @same-label allow", "files.Send * * @dominates allow", "files.Send * * @default ask",
        "files.Move * * @same-label allow", "files.Move * * @dominates allow", "files.Move * * @default ask",
        "clipboard.Paste * * @same-label ask", "open.Uri * * @disposable ask",
        "open.Uri * * @default ask default-target=@disposable", "open.File * * @disposable ask",
        "open.File * * @default ask default-target=@disposable", "notify.Show * * @core allow limit=60/min",
        "log.Write * * @core allow", "* * * * deny",
    ]  # fmt: skip


@pytest.mark.parametrize("file", sorted(SHIPPED.glob("examples/*.policy")), ids=lambda file: file.stem)
def test_the_examples_are_sound(file: Path) -> None:
    assert parse(file.read_bytes(), file=file.name, levels=LEVELS, kinds=KINDS)
