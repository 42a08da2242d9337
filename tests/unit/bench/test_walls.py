# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the wall costs, without measuring it: each bound is of something measured, each wall is left out once."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

# python3-prctl is the distribution's, wherever the spawner runs.
sys.path.append("/usr/lib/python3/dist-packages")

from cage_runtime.spawner.walls import Walls
from tests.bench import bench, walls


def test_each_bound_is_of_what_is_measured() -> None:
    calls = {(f"P10 {call}", contender) for call in walls.CALLS for contender in (*walls.WALLS, walls.OUTSIDE)}
    measured = calls | {("P1", bench.P1), ("P1", walls.BEFORE)}
    assert {(bound.figure, name) for bound in walls.BOUNDS for name in (bound.ours, bound.peer)} <= measured


@pytest.mark.parametrize("wall", [field.name for field in fields(Walls) if field.name != "lsm"])
def test_each_wall_is_left_out_once_and_stands_alone_once(wall: str) -> None:
    def has(kind: Walls) -> dict[str, bool]:
        return {field.name: bool(getattr(kind, field.name)) for field in fields(Walls) if field.name != "lsm"}

    shown = [has(kind) for kind in walls.WALLS.values()]
    every = dict.fromkeys(shown[0], True)
    assert every | {wall: False} in shown
    assert dict.fromkeys(every, False) | {wall: True} in shown


@pytest.mark.parametrize("words", list(walls.CALLS.values()))
@pytest.mark.parametrize("filtered", [False, True])
def test_the_program_measures_each_call(tmp_path: Path, words: tuple[str, ...], filtered: bool) -> None:
    program = tmp_path / "calls"
    subprocess.run(["cc", "-Wall", "-Wextra", "-Werror", "-o", program, walls.SOURCE], check=True)
    path = str(tmp_path / "file") if words[-1].startswith("/dev") else words[-1]
    more = [path, *(["filtered"] if filtered else [])]
    ended = subprocess.run([program, words[0], "3", *more], capture_output=True, text=True, check=True)
    assert float(ended.stdout) > 0
