# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which cage a scope is of, which is all that is known of one that ends."""

from __future__ import annotations

from pathlib import Path

import pytest

from cage_runtime.scopes.spec import name_of, runtime_of, scope_of
from cage_runtime.spawner.cgroup import Cgroup
from cage_runtime.spawner.scopes import Scopes
from cage_runtime.spawner.slice import Slice

UUID = "0123456789abcdef" * 2


class Told(Scopes):
    def __init__(self) -> None:
        self.told: list[tuple[str, str]] = []

    def start(self) -> None:  # type: ignore[override]
        """Nobody is needed."""

    def unregister(self, name: str, uuid: str) -> None:
        self.told.append((name, uuid))


@pytest.mark.parametrize("configured", ["cage-runtime", "cage-test.1"])
def test_the_name_is_in_the_unit_s(configured: str) -> None:
    runtime = runtime_of(configured)
    assert name_of(runtime, scope_of(runtime, "my-cage")) == "my-cage"
    for unit in ("session-1.scope", "cage-.scope", "cage-A.scope", "cage-a.other.scope", "cages.slice", "", "cage-a"):
        assert name_of(runtime, unit) == ""


def test_machined_is_told_of_the_end_of_those_that_are_in_a_scope(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").write_text("")
    told = Told()
    cages = Slice(tmp_path, "cage-runtime", told)
    for directory in ("cages.slice/cage-my-cage.scope", "cages.slice"):
        cages.ended(Cgroup(tmp_path / directory / UUID))
    assert told.told == [("my-cage", UUID)]
