# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a dialog says, and what may be answered."""

from __future__ import annotations

from typing import Any

import pytest

from cage_runtime.desktop import prompt as words
from cage_runtime.desktop.prompt import Answer, End, Prompt
from cage_runtime.errors import RuntimeFailure


def prompt(**more: Any) -> Prompt:
    return words.read({"id": "1", "service": "files.Send", "rule": "a:1", "source": "work", "target": "vault",
                       "choices": {"vault": "secret"}, **more})


OPEN = {"target": "", "choices": {"diary": "public", "vault": "secret"}}


@pytest.mark.parametrize("values", [
    {}, {"id": 1}, {"size": "x"}, {"lines": "x"}, {"choices": ["vault"]}, {"for": -0.5}])
def test_what_is_no_prompt_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(RuntimeFailure, match="another version"):
        words.read(values if not values else {"id": "1", "service": "x", "rule": "a:1", "source": "work", **values})


def test_a_later_caged_may_say_more() -> None:
    assert prompt(mood="good").source == "work"


@pytest.mark.parametrize(("colour", "kept"), [
    ("#ef6c00", "#ef6c00"), ("#EF6C00", "#EF6C00"), ("", ""), ("red", ""), ("#fff", ""),
    ("#000000; } * { color: #ffffff", ""), ("#000000\n", ""),
])
def test_a_colour_is_six_digits_or_none(colour: str, kept: str) -> None:
    it = prompt(**{"source-level": "public", "source-colour": colour, "source-compartments": ["a", "b"]})
    shown = words.source(it)
    assert shown == End(name="work", label="public, a, b", colour=kept)


@pytest.mark.parametrize(("colour", "ink"), [("#ffffff", "#000000"), ("#000000", "#ffffff"), ("#ef6c00", "#ffffff"),
                                             ("#ffeb3b", "#000000")])
def test_ink_can_be_read(colour: str, ink: str) -> None:
    assert words.ink(colour) == ink


def test_choices_have_their_levels_colours() -> None:
    it = prompt(**OPEN, colours={"secret": "#c62828"})
    assert words.choice(it, "vault") == End(name="vault", label="secret", colour="#c62828")
    assert words.choice(it, "diary") == End(name="diary", label="public", colour="")
    assert words.choice(prompt(target="", choices={"@core": ""}), "@core") == End(name="the core", label="", colour="")


@pytest.mark.parametrize(("service", "said"), [
    ("files.Send", "asks to send to"), ("call.Backup", "asks to call"), ("nobody.Knows", "asks for nobody.Knows of")])
def test_a_wish_is_said_in_words(service: str, said: str) -> None:
    assert words.wish(prompt(service=service)) == said


def test_facts_are_those_there_are() -> None:
    assert words.facts(prompt()) == [("Service", "files.Send"), ("Rule", "a:1")]
    assert words.facts(prompt(argument="x", asked="@default", flow="down", size=1536, files=2, types=["a/b", "c/d"],
                              sha256="ab", waiting=3, transform="encrypt:press-key")) == [
        ("Service", "files.Send +x"), ("Direction", words._FLOWS["down"]), ("Asked for", "@default"),
        ("Size", "2 files, 1.5 KiB (1 536 bytes)"), ("Types", "a/b, c/d"), ("SHA-256", "ab"),
        ("On its way", "encrypted for press-key"), ("Rule", "a:1"),
        ("Waiting", "3 requests")]


@pytest.mark.parametrize(("size", "said"), [
    (1, "1 bytes"), (1023, "1 023 bytes"), (1024, "1.0 KiB (1 024 bytes)"),
    (1 << 40, "1.0 TiB (1 099 511 627 776 bytes)"),
    (2**64 - 1, "16777216.0 TiB (18 446 744 073 709 551 615 bytes)")])
def test_sizes(size: int, said: str) -> None:
    assert words.bytes_(size) == said


@pytest.mark.parametrize(("stands", "answer", "minutes", "seconds", "said"), [
    (0, Answer.ONCE, 10, 0, "Allow once"), (0, Answer.WHILE, 1, 60, "Allow for 1 minute"),
    (600, Answer.WHILE, 1440, 600, "Allow for 10 minutes"), (45, Answer.WHILE, 1, 45, "Allow for 45 seconds"),
    (45, Answer.DENY_WHILE, 1, 60, "Deny for 1 minute"), (0, Answer.DENY, 10, 0, "Deny"),
    (0, Answer.SESSION, 10, 0, "Allow this session"),
])
def test_an_answer_stands_no_longer_than_the_rule_lets_it(stands: int, answer: Answer, minutes: int, seconds: int,
                                                          said: str) -> None:
    it = prompt(**{"for": stands})
    assert words.seconds(it, answer, minutes) == seconds
    assert words.words(it, answer, minutes) == said
    assert (Answer.SESSION in words.offered(it)) is (stands == 0)


def test_nothing_is_chosen_unless_the_rule_says() -> None:
    assert prompt(**OPEN).chosen == ""
    assert prompt(**OPEN, default="vault").chosen == "vault"
    assert prompt(**OPEN, default="elsewhere").chosen == ""


@pytest.mark.parametrize("answer", Answer)
def test_a_target_is_chosen_before_it_is_allowed(answer: Answer) -> None:
    it = prompt(**OPEN)
    assert words.possible(it, answer, "") is (answer not in words.ALLOWS)
    assert words.possible(it, answer, "elsewhere") is (answer not in words.ALLOWS)
    assert words.possible(it, answer, "vault")
    assert words.possible(prompt(), answer, "vault")
    given = words.options(it, answer, 5, "vault")
    assert ("target" in given) is (answer in words.ALLOWS)
    assert ("session" in given) is not ("for" in given)
    assert "target" not in words.options(prompt(), answer, 5, "vault")
    assert words.verdict(answer) == answer.value.split()[0]
