# SPDX-License-Identifier: LGPL-2.1-or-later
"""For every test of this tier: cages that are gone when it ends, and a core that runs when it begins."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.vm.machine import ok, run

MakeCage = Callable[..., str]


@pytest.fixture(autouse=True)
def core() -> None:
    """caged runs, whatever an earlier test did to it."""
    run("systemctl", "reset-failed")
    ok("systemctl", "start", "caged.service")


@pytest.fixture
def cage() -> Iterator[MakeCage]:
    """Creates a cage by name, with the options of cagectl create; destroys it at the end."""
    made: list[str] = []

    def make(name: str, *options: str) -> str:
        made.append(name)
        ok("cagectl", "create", name, *options)
        return name

    yield make
    there = ok("cagectl", "list", "--json=short")
    for name in made:
        if f'"{name}"' in there:
            ok("cagectl", "destroy", name, "--yes")
