# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a call may say of itself: names and arguments are taken by what they are made of, and nothing else is."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cage_runtime.errors import UsageError
from cage_runtime.outcome import Outcome, parse_outcome
from cage_runtime.policy.parser import _ARGUMENT, _SERVICE
from mediators.call import protocol

ODD = ("$(id)", "`id`", "a;id", "a\nb", "a\0b", "+a", "a+b", "-a", "a b", "a/b", "..", ".a", "ä", "a" * 65, "a" * 65001,
       "\udce9", "a\u202eb", "a*", "a?", "~", "$HOME", "a=b", '"', "'", "\\")
"""M1 of mediators.md, and more of what a shell, a path or a terminal would make something of."""


@pytest.mark.parametrize("name", ["Echo", "e", "qubes.Gpg", "ssh-agent", "a.b.c", "x" * protocol.SERVICE_MAX])
def test_a_service_has_such_a_name(name: str) -> None:
    assert protocol.check_service(name) == name


@pytest.mark.parametrize("name", ["", ".", "a.", ".a", "a..b", "1a", "a._b", "a_b", "a.1b", *ODD])
def test_and_no_other(name: str) -> None:
    with pytest.raises(UsageError) as refusal:
        protocol.check_service(name)
    assert len(refusal.value.sentence) < 400
    assert refusal.value.sentence.isprintable()


@pytest.mark.parametrize("argument", ["", "a", "1", "work.key_2-x", "0" * protocol.ARGUMENT_MAX])
def test_a_call_has_such_an_argument(argument: str) -> None:
    assert protocol.check_argument(argument) == argument


@pytest.mark.parametrize("argument", ["_a", *ODD])
def test_and_no_other_argument(argument: str) -> None:
    with pytest.raises(UsageError):
        protocol.check_argument(argument)


@given(st.text(max_size=80))
def test_what_is_taken_is_what_policy_can_name(text: str) -> None:
    """So that no rule is passed by in a spelling that no rule can have."""
    try:
        protocol.check_service(text)
    except UsageError:
        taken = False
    else:
        taken = True
    assert taken == (_SERVICE.match(f"call.{text}") is not None)
    try:
        protocol.check_argument(text)
    except UsageError:
        taken = False
    else:
        taken = True
    assert taken == (text == "" or _ARGUMENT.match(f"+{text}") is not None)


def test_a_service_is_split_from_its_argument() -> None:
    assert protocol.split("ssh-agent+key") == ("ssh-agent", "key")
    assert protocol.split("Echo") == ("Echo", "")


@pytest.mark.parametrize("text", ["Echo+", "+", "+a", "Echo+a+b", "Echo++", ""])
def test_a_plus_has_something_on_either_side(text: str) -> None:
    with pytest.raises(UsageError):
        protocol.split(text)


def test_a_delivery_is_read_as_it_was_written() -> None:
    written = protocol.Delivery(service="Echo", argument="a.b", source="work")
    read = protocol.parse_delivery(written.arguments())
    assert (read.service, read.argument, read.source) == ("Echo", "a.b", "work")


@pytest.mark.parametrize("arguments", [
    [], ["Echo"], ["Echo", ""], ["Echo", "", "work", "x"], ["Echo", "", ""], ["../x", "", "work"],
    ["Echo", "-x", "work"], ["Echo", "", "a b"], ["Echo", "", "a" * 65],
])
def test_a_delivery_of_another_shape_is_none(arguments: list[str]) -> None:
    with pytest.raises(UsageError):
        protocol.parse_delivery(arguments)


@pytest.mark.parametrize(("status", "sentence"), [(0, ""), (255, ""), (126, "more than may go through")])
def test_an_outcome_is_read_as_it_was_written(status: int, sentence: str) -> None:
    read = parse_outcome(Outcome(status, sentence).line())
    assert read is not None
    assert (read.status, read.sentence) == (status, sentence)


@pytest.mark.parametrize("line", [
    b"", b"\n", b"0\n", b"[]\n", b'{"status": 0}', b'{"status": -1}\n', b'{"status": 256}\n', b'{"status": true}\n',
    b'{"status": "0"}\n', b'{"status": 0, "sentence": 1}\n', b"[" * 1000 + b"\n",
    b'{"status": 0}' + b" " * 1024 + b"\n", b"\xff\n",
])
def test_another_line_is_no_outcome(line: bytes) -> None:
    assert parse_outcome(line) is None


@given(st.binary(max_size=100))
def test_no_line_is_more_than_an_outcome_or_none(line: bytes) -> None:
    outcome = parse_outcome(line)
    assert outcome is None or json.loads(line)["status"] == outcome.status
