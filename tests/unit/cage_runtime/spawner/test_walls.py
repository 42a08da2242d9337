# SPDX-License-Identifier: LGPL-2.1-or-later
"""A wall can be left out by the tests' own spawner, and by nothing that is shipped."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import pytest

from cage_runtime.spawner import main, service, syscall
from cage_runtime.spawner.walls import ALL, Namespace, Walls

TOP = Path(__file__).parents[4]
SHIPPED = [*(TOP / "cage_runtime").rglob("*.py"), *(TOP / "mediators").rglob("*.py"), TOP / "scripts/stage"]


def test_all_walls_stand_unless_one_is_left_out() -> None:
    assert Walls(namespaces=frozenset(Namespace), seccomp=True, landlock=True, capabilities=True, lsm=True) == ALL
    assert Walls(namespaces=frozenset(), lsm=False).flags(*Namespace) == 0
    assert ALL.flags(Namespace.PID, Namespace.NET) == syscall.CLONE_NEWPID | syscall.CLONE_NEWNET


@pytest.mark.parametrize("kind", Namespace)
def test_a_kind_that_is_left_out_is_not_made_and_all_others_are(kind: Namespace) -> None:
    left_out = ALL.flags(*Namespace) & ~Walls(namespaces=frozenset(Namespace) - {kind}, lsm=False).flags(*Namespace)
    assert left_out == ALL.flags(kind) != 0


def test_a_context_has_no_right_over_the_hosts_user_namespace() -> None:
    with pytest.raises(ValueError, match="user namespace"):
        Walls(namespaces=frozenset(Namespace) - {Namespace.USER})


def test_what_starts_the_spawner_gives_it_all_walls() -> None:
    assert inspect.signature(main.main).parameters["walls"].default is ALL
    assert inspect.signature(service.Service).parameters["walls"].default is ALL


def called(node: ast.Call) -> str:
    match node.func:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
    return ""


def test_nothing_that_is_shipped_makes_other_walls() -> None:
    """`Walls()` once, without an argument; `main` never with one; nothing copies a value with a change."""
    made: list[str] = []
    for file in SHIPPED:
        for node in ast.walk(ast.parse(file.read_text())):
            if not isinstance(node, ast.Call):
                continue
            name, given = called(node), [*map(ast.unparse, node.args), *(ast.unparse(word) for word in node.keywords)]
            other = ast.unparse(node.func) == "main" or (name == "replace" and "walls" in str(given))
            if name == "Walls" or (other and given):
                made.append(f"{file.name}: {ast.unparse(node)}")
    assert made == ["walls.py: Walls()"]


def test_no_word_of_the_configuration_or_of_a_message_is_of_walls() -> None:
    for file in ("cage_runtime/config.py", "cage_runtime/spawner/spec.py", "cage_runtime/arguments.py"):
        assert "walls" not in (TOP / file).read_text().lower()
