# SPDX-License-Identifier: LGPL-2.1-or-later
"""Nothing, the most and one more, of every field of every method of every mediator (M12), from both sides.

Nothing that is asked for here is permitted: what is well-formed is refused by policy, and what is not is refused as
malformed, before policy is asked.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from xml.etree import ElementTree as ET

import pytest

from mediators import wire
from tests.privileged.conftest import MakeCage
from tests.privileged.rules import policy
from tests.privileged.runtime import TOP, Cage, Runtime
from tests.privileged.sides import DESCRIPTOR, Said, from_half, from_user, in_its_turn

REFUSED, DONE = {"PolicyRefused"}, {""}
MALFORMED = {"InvalidArgument", "InvalidName"}
FILE = "nothing in it"
CAGE, LONG_CAGE = "a" * 31, "a" * 32
BLOB = b"\0\0\0\x0bssh-ed25519\0\0\0\x20" + b"k" * 32
DATA = b"SSHSIG\0\0\0\x04file\0\0\0\0\0\0\0\x06sha512\0\0\0\x40" + b"d" * 64
OPTION = {"no-such-option": ("s", "")}
TARGETS = [("", REFUSED), ("a", REFUSED), (CAGE, REFUSED), (LONG_CAGE, MALFORMED)]
OPEN_TARGETS = [*TARGETS, ("@disposable:" + CAGE, REFUSED), ("@disposable:" + LONG_CAGE, MALFORMED)]
NAMES = [("", MALFORMED), ("a", REFUSED), ("a" * 255, REFUSED), ("a" * 256, MALFORMED), ("\u00e9" * 127, REFUSED),
         ("\u00e9" * 128, MALFORMED)]
SENT = [({}, REFUSED), (OPTION, MALFORMED), ({"conflict": ("s", "")}, MALFORMED),
        ({"conflict": ("s", "skip")}, REFUSED), ({"conflict": ("u", 0)}, MALFORMED), ({"move": ("b", True)}, REFUSED),
        ({"move": ("u", 1)}, MALFORMED)]
NO_OPTIONS = [({}, REFUSED), (OPTION, MALFORMED)]
WORDS = [("", MALFORMED), ("a", REFUSED), ("a" * 64, REFUSED), ("a" * 65, MALFORMED)]
NUMBERS = [(0, DONE), (1, DONE), (2**32 - 1, DONE)]


def options(name: str, most: int) -> list[tuple[object, set[str]]]:
    """Of the clipboard's Copy, of which the descriptor is looked at last and has nothing in it."""
    good = {"TransferFailed"}
    return [({name: ("u", value)}, expected) for value, expected in (
        (0, MALFORMED), (1, good), (most, good), (most + 1, MALFORMED), (2**32 - 1, MALFORMED))]


def told_later(values: Sequence[tuple[object, set[str]]]) -> list[tuple[object, set[str]]]:
    """Of what a cage half answers at once: what the core half refuses comes through a pipe."""
    return [(value, expected if expected is MALFORMED else expected | DONE) for value, expected in values]


SIGNATURES = [({"signature": ("ay", b"")}, MALFORMED), ({"signature": ("ay", b"s" * 8192)}, REFUSED),
              ({"signature": ("ay", b"s" * 8193)}, MALFORMED), ({"signature": ("s", "s")}, MALFORMED)]
NO_SIGNATURE = ({"signature": ("ay", b"s")}, MALFORMED)
"""Of a tree there is none."""
RECEIPT_TOLD_TWICE = ({"receipt": ("b", True)}, MALFORMED)
"""Of a method that gives one anyway."""
RECEIPTED = [({"receipt": ("b", True)}, REFUSED), ({"receipt": ("s", "yes")}, MALFORMED)]
FIELDS = {
    ("call", "Call"): (("Echo", "", "a", {}), {
        "service": [("", MALFORMED), ("a", REFUSED), ("a" * 59, REFUSED), ("a" * 60, MALFORMED)],
        "argument": [("", REFUSED), ("a" * 64, REFUSED), ("a" * 65, MALFORMED)],
        "target": TARGETS, "options": NO_OPTIONS}),
    ("call", "Services"): ((), {}),
    ("clipboard", "Copy"): (("text/plain", DESCRIPTOR, {}), {
        "type": [("", MALFORMED), ("text/plain", {"TransferFailed"}), ("text/plain;", MALFORMED)],
        "descriptor": [], "options": [*options("pastes", 100), *options("seconds", 3600), (OPTION, MALFORMED)]}),
    ("clipboard", "Paste"): (("text/plain", {}), {
        "type": [("", MALFORMED), ("text/plain", REFUSED), ("text/plain;", MALFORMED)], "options": NO_OPTIONS}),
    ("files", "Send"): (("a", "x", DESCRIPTOR, {}), {
        "target": TARGETS, "name": NAMES, "descriptor": [], "options": [*SENT, *SIGNATURES, RECEIPT_TOLD_TWICE]}),
    ("files", "SendReceipted"): (("a", "x", DESCRIPTOR, {}), {
        "target": TARGETS, "name": NAMES, "descriptor": [], "options": [*SENT, *SIGNATURES, RECEIPT_TOLD_TWICE]}),
    ("files", "SendTree"): (("a", "x", {}), {
        "target": TARGETS, "name": NAMES, "options": [*SENT, *RECEIPTED, NO_SIGNATURE]}),
    ("files", "StartFile"): (("a", "x", DESCRIPTOR, {}), {
        "target": told_later(TARGETS), "name": told_later(NAMES), "descriptor": [],
        "options": told_later([*SENT, *RECEIPTED, *SIGNATURES])}),
    ("files", "StartTree"): (("a", "x", {}), {
        "target": TARGETS, "name": NAMES, "options": [*SENT, *RECEIPTED, NO_SIGNATURE]}),
    ("files", "ListJobs"): ((), {}),
    ("keys", "List"): (("a", {}), {"target": TARGETS, "options": NO_OPTIONS}),
    ("keys", "Sign"): (("a", "work", BLOB, DATA, 0, {}), {
        "target": TARGETS, "name": WORDS, "options": NO_OPTIONS,
        "key": [(b"", MALFORMED), (BLOB, REFUSED), (BLOB + b"k", REFUSED), (b"\0" * 2049, MALFORMED)],
        "data": [(b"", MALFORMED), (DATA, REFUSED), (DATA + b"d", MALFORMED), (b"\0" * 16385, MALFORMED)],
        "flags": [(0, REFUSED), (1, MALFORMED), (2**32 - 1, MALFORMED)]}),
    ("keys", "Secret"): (("a", "org.example.X", {}), {"target": TARGETS, "application": WORDS, "options": NO_OPTIONS}),
    ("log", "Write"): ((["x"], {}), {
        "lines": [([], MALFORMED), ([""], REFUSED), (["x"] * 32, REFUSED), (["x"] * 33, MALFORMED),
                  (["x" * 2000], REFUSED), (["x" * 2001], MALFORMED), (["x" * 2000] * 8, REFUSED),
                  ([*["x" * 2000] * 8, "x"], MALFORMED)],
        "options": [*NO_OPTIONS, ({"tag": ("s", "")}, MALFORMED), ({"tag": ("s", "a" * 32)}, REFUSED),
                    ({"tag": ("s", "a" * 33)}, MALFORMED), ({"priority": ("s", "emerg")}, MALFORMED),
                    ({"priority": ("s", "err")}, REFUSED), ({"priority": ("u", 3)}, MALFORMED)]}),
    ("notify", "Show"): (("x", "", {}), {
        "summary": [("", MALFORMED), ("x", REFUSED), ("x" * 20_000, REFUSED)],
        "body": [("", REFUSED), ("x\n" * 10_000, REFUSED)],
        "options": [*NO_OPTIONS, ({"urgency": ("s", "")}, MALFORMED), ({"replaces": ("u", 2**32 - 1)}, REFUSED),
                    ({"actions": ("a(ss)", [(str(n), "") for n in range(8)])}, REFUSED),
                    ({"actions": ("a(ss)", [(str(n), "") for n in range(9)])}, MALFORMED),
                    ({"actions": ("a(ss)", [("", "")])}, MALFORMED)]}),
    ("notify", "Close"): ((1,), {"id": NUMBERS}),
    ("notify", "Wait"): (([1],), {"ids": [([], MALFORMED), ([0], DONE), ([2**32 - 1], DONE), ([1] * 32, DONE),
                                          ([1] * 33, MALFORMED)]}),
    ("open", "Uri"): (("https://example.org/", "a", {}), {
        "uri": [("", MALFORMED), ("https://e.org/" + "x" * (8192 - 14), REFUSED),
                ("https://e.org/" + "x" * (8192 - 13), MALFORMED)],
        "target": OPEN_TARGETS, "options": NO_OPTIONS}),
    ("open", "File"): (("x", "a", DESCRIPTOR, {}), {
        "name": NAMES, "target": OPEN_TARGETS, "descriptor": [], "options": NO_OPTIONS}),
    ("open", "Edited"): (("a", {}), {
        "session": [("", MALFORMED), ("a" * 10_000, MALFORMED)], "options": [(OPTION, MALFORMED)]}),
}
"""By mediator and method: values of which nothing is malformed, and of each argument what is tried, with the errors
that it may be.  Descriptors are in test_descriptors.py."""
RULES = "* * bounded * deny\n"
METHODS = {(mediator, method.attrib["name"]): method for mediator, _ in FIELDS
           for method in wire.interface(mediator).findall("method")}


def _inward(method: ET.Element) -> list[ET.Element]:
    return [argument for argument in method.findall("arg") if argument.attrib["direction"] == "in"]


def requests(key: tuple[str, str]) -> list[tuple[Said, set[str]]]:
    """Each value in its place, the others as they are well-formed."""
    usual, tried = FIELDS[key]
    arguments = [argument.attrib["name"] for argument in _inward(METHODS[key])]
    signature = "".join(argument.attrib["type"] for argument in _inward(METHODS[key]))
    returns = "".join(argument.attrib["type"] for argument in METHODS[key].findall("arg")
                      if argument.attrib["direction"] == "out")
    return [
        (Said(name=f"{key[0].capitalize()}1", member=key[1], signature=signature, returns=returns,
              kind=FILE if DESCRIPTOR in usual else "",
              values=tuple(value if name == argument else other
                           for argument, other in zip(arguments, usual, strict=True))), expected)
        for name, values in tried.items() for value, expected in values
    ]


@pytest.fixture(scope="module")
def bounded(runtime: Runtime, shared_cage: MakeCage) -> Iterator[Cage]:
    with policy(runtime, RULES):
        cage = shared_cage("bounded", "--level", "internal")
        cage.enter("incage", "call", "Nothing", "a")  # so that the gateway is there
        yield cage


def test_every_field_is_tried() -> None:
    """A method or an argument that is new has its bounds tried too."""
    known = {path.stem for path in (TOP / "policies/mediators.d").glob("*.toml")}
    assert {mediator for mediator, _ in FIELDS} == known
    assert FIELDS.keys() == METHODS.keys()
    for key, (usual, tried) in FIELDS.items():
        assert {argument.attrib["name"] for argument in _inward(METHODS[key])} == tried.keys()
        assert len(usual) == len(tried)


def shown(said: Said) -> str:
    return f"{said.name}.{said.member}{str(said.values)[:120]}"


@pytest.mark.parametrize("key", FIELDS, ids=".".join)
def test_by_a_user(bounded: Cage, key: tuple[str, str]) -> None:
    wanted = requests(key)
    for (said, expected), (error, sentence) in zip(
            wanted, from_user(bounded, *(said for said, _ in wanted)), strict=True):
        assert error in expected or "too often" in sentence, (shown(said), error, sentence)


@pytest.mark.parametrize("key", FIELDS, ids=".".join)
def test_by_a_half(runtime: Runtime, bounded: Cage, key: tuple[str, str]) -> None:
    for said, expected in requests(key):
        error, sentence = in_its_turn(lambda said=said: from_half(runtime, bounded, said))
        assert error in expected, (shown(said), error, sentence)
