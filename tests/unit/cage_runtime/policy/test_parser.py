# SPDX-License-Identifier: LGPL-2.1-or-later
"""The policy language, from its corpora.  The first line of a bad file says `# expects LINE: part of the sentence`."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cage_runtime.errors import PolicySyntaxError, Refused
from cage_runtime.model import POLICY_BYTES_MAX, POLICY_LINE_MAX, Levels
from cage_runtime.policy.parser import parse

CORPUS = Path(__file__).parent / "corpus"
SHIPPED = Path(__file__).parents[4] / "policies" / "policy.d"
LEVELS = Levels(names=("public", "internal", "secret"), compartments=frozenset({"finance"}))

GOOD = {
    "empty": [],
    "comments-only": [],
    "shapes": [
        "2 files.Send * work vault allow",
        "3 files.Send * @level:public @level:secret allow",
        "4 files.Send * @level:public @dominates allow max-size=2147483648",
        "5 clipboard.Paste * * @same-label allow",
        "6 call.SshAgent +sign dev keys allow declassify max-size=65536",
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
        for file in sorted(SHIPPED.glob("*.policy"))
        for rule in parse(file.read_bytes(), file=file.name, levels=LEVELS)
    ]
    assert rules == ["files.Send * * @same-label allow", "files.Send * * @dominates allow", "* * * * deny"]
