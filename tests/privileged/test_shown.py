# SPDX-License-Identifier: LGPL-2.1-or-later
"""Whatever a cage says in any text of any mediator, and wherever that is shown (M80, M81): nothing of it moves a
cursor, is a link, a command or a line of its own.  (In a person's dialogs and notifications: tests/bus/desktop.)"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from jeepney import DBusAddress, new_method_call

from cage_runtime.text import is_visible
from tests.privileged.conftest import MakeCage
from tests.privileged.gateways import gateway
from tests.privileged.rules import policy, until
from tests.privileged.runtime import Cage, Runtime
from tests.privileged.sides import DESCRIPTOR, Said, from_half, from_user
from tests.privileged.test_bounds import BLOB, FIELDS, METHODS, _inward

HOSTILE = {
    "return": "a\rforged", "backspace": "a\b\b\bforged", "OSC 8": "a\x1b]8;;https://e.org\x07b\x1b]8;;\x07",
    "OSC 52": "a\x1b]52;c;aWQ=\x07", "DCS": "a\x1bP$q\x1b\\", "C1": "a\u009b2J\u0090x\u009c",
    "a line": "a\nforged: line",
    "direction": "a\u202eb\u2066c", "separators": "a\u2028b\u0085c\u00a0d",
    "nothing to see": "a\u200b\ufeffb\U000e0041",
    "backslash": "a\\x1b[2J",
}
LISTS = (("audit", "tail", "-n", "400"), ("prompts", "list"), ("grants", "list"), ("list",), ("status", "shows"))
AS_JSON = "as JSON"
PERMITTED = "* * shows * allow\n"


@pytest.fixture(scope="module")
def shows(shared_cage: MakeCage) -> Cage:
    cage = shared_cage("shows", "--level", "internal")
    cage.enter("incage", "call", "Nothing", "nowhere")  # so that the gateway is there
    return cage


def texts(word: str) -> Iterator[Said]:
    """Each text of each method, and the name and the value of an option, with the word in its place."""
    for key, (usual, _) in FIELDS.items():
        arguments = _inward(METHODS[key])
        signature = "".join(argument.attrib["type"] for argument in arguments)
        for number, argument in enumerate(arguments):
            hostile: Any = {"s": word, "a{sv}": {word: ("s", word)}, "as": [word]}.get(argument.attrib["type"])
            if hostile is not None:
                yield Said(name=f"{key[0].capitalize()}1", member=key[1], signature=signature,
                           kind="nothing in it" if DESCRIPTOR in usual else "",
                           values=(*usual[:number], hostile, *usual[number + 1 :]))


def strings(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for name, content in value.items():
            yield from strings([name, content])
    elif isinstance(value, list):
        for content in value:
            yield from strings(content)
    elif isinstance(value, str):
        yield value


def check(text: str, what: str) -> None:
    for line in text.split("\n"):
        assert is_visible(line.replace("\t", " ")), (what, line)
        # In JSON a line of a notification's is a string of its own, and no more than that.
        assert AS_JSON in what or not line.lstrip().startswith("forged"), (what, line)


def shown(runtime: Runtime) -> Iterator[tuple[str, str]]:
    for words in LISTS:
        yield " ".join(words), runtime.ok(*words)
        for value in strings(runtime.json(*words)):
            assert "\n" not in value, (words, value)
            yield f"{words} {AS_JSON}", value


@pytest.mark.parametrize("what", HOSTILE)
def test_from_a_half(runtime: Runtime, shows: Cage, what: str) -> None:
    before = len(runtime.log())
    with policy(runtime, PERMITTED):
        for said in texts(HOSTILE[what]):
            error, sentence = from_half(runtime, shows, said)
            if error:
                check(sentence, f"{said.name}.{said.member}")
    check(runtime.log()[before:], "the core's log")
    for where, text in shown(runtime):
        check(text, where)


@pytest.mark.parametrize("what", HOSTILE)
def test_from_a_user(runtime: Runtime, shows: Cage, what: str) -> None:
    before = len(runtime.log())
    with policy(runtime, PERMITTED):
        said = list(texts(HOSTILE[what]))
        for one, (error, sentence) in zip(said, from_user(shows, *said), strict=True):
            if error:
                check(sentence, f"{one.name}.{one.member}")
        for words in (("send", HOSTILE[what], "--to", "shows"), ("open", HOSTILE[what]), ("call", HOSTILE[what], "x"),
                      ("call", "x", HOSTILE[what]), ("log", HOSTILE[what]), ("notify", HOSTILE[what], HOSTILE[what]),
                      ("copy", "--type", HOSTILE[what]), ("paste", "--type", HOSTILE[what]),
                      ("agent", "--to", HOSTILE[what], "--", "true")):
            ended = shows.enter("incage", *words)
            check(ended.stderr.decode(), f"incage {words[0]}")
    check(runtime.log()[before:], "the core's log")
    for where, text in shown(runtime):
        check(text, where)


def _signed(namespace: str) -> bytes:
    told = namespace.encode()
    return (b"SSHSIG" + len(told).to_bytes(4, "big") + told + b"\0\0\0\0\0\0\0\x06sha512\0\0\0\x40" + b"d" * 64)


@pytest.mark.parametrize("what", HOSTILE)
def test_what_a_person_is_asked(runtime: Runtime, shows: Cage, shared_cage: MakeCage, what: str) -> None:
    """Everything that has lines in a question, at once: those are shown, and what stands of an answer."""
    word = HOSTILE[what]
    asked = {"log.Write": ("Log1", "Write", "asa{sv}", ([word], {})),
             "notify.Show": ("Notify1", "Show", "ssa{sv}", (word, word, {})),
             "keys.Sign": ("Keys1", "Sign", "ssayayua{sv}", ("key-cage", "work", BLOB, _signed(word), 0, {}))}
    if "key-cage" not in {entry["name"] for entry in runtime.json("list")}:
        shared_cage("key-cage", "--level", "internal")
    with policy(runtime, "* * shows * ask\n"), ExitStack() as open_halves:
        for name, member, signature, values in asked.values():
            half = open_halves.enter_context(gateway(runtime, shows))
            address = DBusAddress(f"/org/cageruntime/{name}", f"org.cageruntime.{name}", f"org.cageruntime.{name}")
            half.send(new_method_call(address, member, signature, values))
        until(lambda: len(runtime.call("ListPrompts", "a{sv}", {})[0]) >= 2, "the questions")
        for where, text in shown(runtime):
            check(text, where)
        for prompt in runtime.call("ListPrompts", "a{sv}", {})[0]:
            runtime.call("AnswerPrompt", "ssa{sv}", prompt["id"][1], "deny", {"for": ("u", 60)})
        until(lambda: runtime.call("ListGrants", "a{sv}", {})[0], "what stands")
        for where, text in shown(runtime):
            check(text, where)
        for grant in runtime.call("ListGrants", "a{sv}", {})[0]:
            runtime.call("RevokeGrant", "sa{sv}", grant["id"][1], {})
    until(lambda: not runtime.call("ListPrompts", "a{sv}", {})[0], "no question")
