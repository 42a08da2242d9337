# SPDX-License-Identifier: LGPL-2.1-or-later
"""A cage that may not be reached is like one that there is not, to every service of every mediator (M3): the same
reply, the same code, within 5 ms over 200 tries; and so is the asking cage itself (M9)."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cage_runtime.model import CLIP_BURST, DECISIONS_BURST
from tests.privileged.conftest import MakeCage
from tests.privileged.gateways import ask, await_core_half, gateway
from tests.privileged.rules import policy
from tests.privileged.runtime import Cage, Runtime
from tests.privileged.sides import DESCRIPTOR, Said, from_user
from tests.privileged.test_bounds import BLOB, DATA

TRIES = 200
TARGET = "TARGET"
FORBIDDEN, BELOW, UNKNOWN = "hidden", "beneath", "nothing"
"""One that a rule denies for what it is, one to which data would go down, and none."""
RULES = "".join(f"{service}  *  @tag:asks  @tag:hides  deny\n{service}  *  @tag:asks  @level:public  allow\n"
                for service in (
    "files.Send", "files.Move", "call.Echo", "keys.List", "keys.Sign", "keys.Secret", "open.Uri", "open.File"))
SERVICES: dict[str, tuple[str, str, str, tuple[Any, ...], str]] = {
    "files.Send": ("Files1", "Send", "ssha{sv}", (TARGET, "x", DESCRIPTOR, {}), "s"),
    "files.Move": ("Files1", "Send", "ssha{sv}", (TARGET, "x", DESCRIPTOR, {"move": ("b", True)}), "s"),
    "files.Send of a tree": ("Files1", "SendTree", "ssa{sv}", (TARGET, "x", {}), "hh"),
    "call.Echo": ("Call1", "Call", "sssa{sv}", ("Echo", "", TARGET, {}), "hhh"),
    "keys.List": ("Keys1", "List", "sa{sv}", (TARGET, {}), "a(say)"),
    "keys.Sign": ("Keys1", "Sign", "ssayayua{sv}", (TARGET, "work", BLOB, DATA, 0, {}), "ay"),
    "keys.Secret": ("Keys1", "Secret", "ssa{sv}", (TARGET, "org.example.X", {}), "ay"),
    "open.Uri": ("Open1", "Uri", "ssa{sv}", ("https://example.org/", TARGET, {}), ""),
    "open.File": ("Open1", "File", "ssha{sv}", ("x", TARGET, DESCRIPTOR, {}), "s"),
}
"""Of log and notify the core is the target, which is always there; the clipboard's is in its own test."""


@pytest.fixture(scope="module", autouse=True)
def others(runtime: Runtime, shared_cage: MakeCage, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    definition = tmp_path_factory.mktemp("hides") / "hides.toml"
    definition.write_text('level = "internal"\ntags = ["hides"]\n')
    shared_cage(FORBIDDEN, "--from", str(definition))
    shared_cage(BELOW, "--level", "public")
    with policy(runtime, RULES):
        yield


@pytest.fixture
def asker(cage: MakeCage, tmp_path: Path) -> Callable[[], Cage]:
    """A new cage each time, which has all its turns left."""
    definition = tmp_path / "asks.toml"
    definition.write_text('level = "internal"\ntags = ["asks"]\n')
    numbers = iter(range(100))

    def make() -> Cage:
        made = cage(f"asker-{next(numbers)}", "--from", str(definition), "--ephemeral")
        assert made.enter("incage", "call", "Nothing", "nowhere").returncode == 126  # so that the gateway is there
        return made

    return make


def filled(values: tuple[Any, ...], target: str, descriptor: int) -> tuple[Any, ...]:
    return tuple({TARGET: target, DESCRIPTOR: descriptor}.get(value, value) if isinstance(value, str) else value
                 for value in values)


@pytest.mark.parametrize("service", SERVICES)
def test_from_a_half(runtime: Runtime, asker: Callable[[], Cage], service: str) -> None:
    name, member, signature, values, _ = SERVICES[service]
    took: dict[str, list[float]] = {target: [] for target in (FORBIDDEN, BELOW, UNKNOWN)}
    said: dict[str, set[tuple[str, str]]] = {target: set() for target in took}
    each = (DECISIONS_BURST - 1) // len(took)
    file = os.open("/etc/hostname", os.O_RDONLY)
    try:
        while len(took[UNKNOWN]) < TRIES // 2:
            with gateway(runtime, asker()) as half:
                await_core_half(half, name)
                for _ in range(each):
                    for target in took:
                        began = time.perf_counter()
                        error, sentence = ask(half, name, member, signature, *filled(values, target, file))
                        took[target].append(time.perf_counter() - began)
                        said[target].add((error, str(sentence).replace(target, TARGET)))
    finally:
        os.close(file)
    assert len(said[UNKNOWN]) == 1, said
    assert said[FORBIDDEN] == said[UNKNOWN]
    assert said[BELOW] == said[UNKNOWN]
    assert next(iter(said[UNKNOWN]))[0] == "PolicyRefused"
    medians = {target: statistics.median(times) for target, times in took.items()}
    assert max(medians.values()) - min(medians.values()) < 0.005, medians


def test_from_a_user(asker: Callable[[], Cage]) -> None:
    cage = asker()
    for service, (name, member, signature, values, returns) in SERVICES.items():
        kind = "a file" if DESCRIPTOR in values else ""
        targets = (FORBIDDEN, BELOW, UNKNOWN)
        answers = from_user(cage, *(Said(
            name=name, member=member, signature=signature, kind=kind, returns=returns,
            values=tuple(target if value == TARGET else value for value in values)) for target in targets))
        same = {(error, sentence.replace(target, TARGET))
                for target, (error, sentence) in zip(targets, answers, strict=True)}
        assert len(same) == 1, service
        assert same.pop()[0] == "PolicyRefused"


@pytest.mark.parametrize("service", SERVICES)
def test_a_cage_is_none_to_itself(runtime: Runtime, asker: Callable[[], Cage], service: str) -> None:
    """M9, from both sides."""
    name, member, signature, values, returns = SERVICES[service]
    cage = asker()
    with gateway(runtime, cage) as half, open("/etc/hostname", "rb") as file:
        await_core_half(half, name)
        error, sentence = ask(half, name, member, signature, *filled(values, cage.name, file.fileno()))
    assert (error, cage.name in sentence or "different" in sentence) == ("PolicyRefused", True), sentence
    ((error, _),) = from_user(cage, Said(
        name=name, member=member, signature=signature, kind="a file" if DESCRIPTOR in values else "", returns=returns,
        values=tuple(cage.name if value == TARGET else value for value in values)))
    assert error == "PolicyRefused"


def test_a_clip_that_may_not_be_had_is_like_none(runtime: Runtime, asker: Callable[[], Cage], cage: MakeCage) -> None:
    """As often as may be asked at once, with an offer of a cage that no rule lets it have, and with none."""
    took: dict[str, list[float]] = {"none": [], "forbidden": []}
    said: dict[str, set[tuple[str, str]]] = {name: set() for name in took}
    offering = cage("offering", "--level", "secret")
    askers = {what: asker() for what in took}
    for what, times in took.items():
        if what == "forbidden":
            assert offering.enter("incage", "copy", "--pastes", "100", input=b"of offering").returncode == 0
        with gateway(runtime, askers[what]) as half:
            await_core_half(half, "Clipboard1")
            for _ in range(CLIP_BURST):
                began = time.perf_counter()
                error, sentence = ask(half, "Clipboard1", "Paste", "sa{sv}", "text/plain", {})
                times.append(time.perf_counter() - began)
                said[what].add((error, str(sentence)))
    assert said["none"] == said["forbidden"]
    assert len(said["none"]) == 1
    assert abs(statistics.median(took["none"]) - statistics.median(took["forbidden"])) < 0.005
