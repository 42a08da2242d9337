# SPDX-License-Identifier: LGPL-2.1-or-later
"""Names that are more than one visible name, to all that takes a file's name, from both sides (M20, M26)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.privileged.conftest import MakeCage
from tests.privileged.rules import policy
from tests.privileged.runtime import Cage, Runtime
from tests.privileged.sides import DESCRIPTOR, Said, from_half, from_user

NAMES = {
    "up": "..", "absolute": "/etc/passwd", "up and up": "a/../../b", "here": ".", "twice": "a//b", "trailing": "a/",
    "empty": "", "long path": "a/" * 8192 + "a", "long component": "a" * 256, "long in bytes": "\u00e9" * 128,
    "bidi": "a\u202egpj.exe", "ESC": "a\x1b[2J", "newline": "a\nb", "leading -": "-rf", "trailing space": "a ",
    "trailing dot": "a.", "unseen": "a\u200bb", "C1": "a\u009bb", "tab": "a\tb",
}
PLACES = {
    "files.Send": ("Files1", "Send", "ssha{sv}", lambda name: ("gets", name, DESCRIPTOR, {}), "a file", "s"),
    "files.Send of a tree": ("Files1", "SendTree", "ssa{sv}", lambda name: ("gets", name, {}), "", "hh"),
    "open.File": ("Open1", "File", "ssha{sv}", lambda name: (name, "gets", DESCRIPTOR, {}), "a file", "s"),
}
TWINS = ("e\u0301tude", "\u00e9tude")
"""One name in two normal forms."""


@pytest.fixture(scope="module")
def gets(shared_cage: MakeCage) -> Cage:
    return shared_cage("gets", "--level", "internal")


@pytest.fixture(scope="module")
def names(runtime: Runtime, shared_cage: MakeCage, gets: Cage) -> Iterator[Cage]:
    with policy(runtime, "files.Send * names gets allow\nopen.File * names gets allow\n"):
        cage = shared_cage("names", "--level", "internal")
        cage.enter("incage", "call", "Nothing", "nowhere")  # so that the gateway is there
        yield cage
    assert gets.sh("cd; [ ! -d Inbox ] || find Inbox -type f") == ""


def said(place: str, name: str) -> Said:
    bus, member, signature, values, kind, returns = PLACES[place]
    return Said(name=bus, member=member, signature=signature, values=values(name), kind=kind, returns=returns)


@pytest.mark.parametrize("what", NAMES)
@pytest.mark.parametrize("place", PLACES)
def test_from_a_half(runtime: Runtime, names: Cage, place: str, what: str) -> None:
    error, sentence = from_half(runtime, names, said(place, NAMES[what]))
    assert error == "InvalidName", sentence


@pytest.mark.parametrize("place", PLACES)
def test_from_a_user(names: Cage, place: str) -> None:
    for what, (error, sentence) in zip(
            NAMES, from_user(names, *(said(place, name) for name in NAMES.values())), strict=True):
        assert error == "InvalidName", (what, sentence)


def test_twins_are_one_name(runtime: Runtime, names: Cage, gets: Cage) -> None:
    """They arrive beside each other, and as two that can be told apart."""
    for name in TWINS:
        assert from_half(runtime, names, said("files.Send", name))[0] == ""
    first, second = sorted(gets.sh("cd; ls Inbox/names").splitlines())
    assert {first, second} == {TWINS[1], f"{TWINS[1]} (2)"}
    gets.sh("rm -r ~/Inbox")
