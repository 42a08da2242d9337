# SPDX-License-Identifier: LGPL-2.1-or-later
"""The same request from both sides of a cage half: from whoever is in the cage, by raw D-Bus on the cage's own bus, and
from a hostile half, on the gateway.

What is said of a descriptor is its kind (kinds.py); it is made on the side that says it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cage_runtime import handed
from tests.privileged import kinds
from tests.privileged.gateways import ask, await_core_half, gateway
from tests.privileged.rules import until
from tests.privileged.runtime import SECONDS, Cage, Runtime

IN_CAGE = Path(kinds.__file__).read_text() + r"""
import ast, json, sys
sys.path[:0] = ["/opt/cage-runtime/lib"]
from cage_runtime.sdbus import BusError, Connection
bus = Connection()
for line in sys.stdin:
    name, member, signature, values, kind, returns = ast.literal_eval(line)
    kept = of(kind) if kind else (-1, [])
    values = tuple(kept[0] if value == "DESCRIPTOR" else value for value in values)
    names = (f"org.cageruntime.{name}", f"/org/cageruntime/{name}", f"org.cageruntime.{name}")
    try:
        bus.call(*names, member, signature, values, returns=returns, timeout=25)
        said = ["", ""]
    except BusError as error:
        said = [error.name.rpartition(".")[2], error.sentence]
    except Exception as error:
        said = [type(error).__name__, str(error)]
    if kind:
        os.close(kept[0])
    print(json.dumps(said), flush=True)
"""
DESCRIPTOR = "DESCRIPTOR"
"""Stands in the values for the one descriptor of a request."""


@dataclass(frozen=True, kw_only=True)
class Said:
    """A request; `returns` is the signature of its answer."""

    name: str
    member: str
    signature: str
    values: tuple[Any, ...]
    kind: str = ""
    returns: str = ""


def from_half(runtime: Runtime, cage: Cage, said: Said) -> tuple[str, str]:
    """On a connection of its own, because an attack may cost the channel."""
    with gateway(runtime, cage) as connection:
        await_core_half(connection, said.name)
        descriptor, kept = kinds.of(said.kind) if said.kind else (-1, [])
        values = tuple(descriptor if value == DESCRIPTOR else value for value in said.values)
        try:
            error, body = ask(connection, said.name, said.member, said.signature, *values)
        finally:
            if descriptor >= 0:
                handed.close([descriptor])
        del kept
    return error, str(body) if error else ""


def from_user(cage: Cage, *said: Said) -> list[tuple[str, str]]:
    """By a program of the cage's user, one after the other."""
    lines = [repr((each.name, each.member, each.signature, each.values, each.kind, each.returns)) for each in said]
    ended = cage.enter("/usr/bin/python3", "-IS", "-c", IN_CAGE, input="\n".join(lines).encode(),
                       seconds=3 * SECONDS)
    assert ended.returncode == 0, ended.stderr.decode()
    answers = [json.loads(line) for line in ended.stdout.splitlines()]
    assert len(answers) == len(said)
    return [(error, sentence) for error, sentence in answers]


def in_its_turn(attempt: Callable[[], tuple[str, str]]) -> tuple[str, str]:
    """The answer of `attempt` once it is another than that this cage asks too often."""
    answers: list[tuple[str, str]] = []

    def answered() -> bool:
        answers.append(attempt())
        return "too often" not in answers[-1][1]

    until(answered, "its turn")
    return answers[-1]
