# SPDX-License-Identifier: LGPL-2.1-or-later
"""Each wall with others taken away: what it holds alone, and which other one holds what it held."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.privileged.runtime import PREFIX, SECONDS

SHIPPED = PREFIX / "bin/cage-spawner"


@pytest.mark.parametrize("words", [
    ("--without", "seccomp"), ("--walls", "none"), ("--no-seccomp",), ("seccomp=off",),
])
def test_the_shipped_spawner_leaves_no_wall_out(words: tuple[str, ...]) -> None:
    ended = subprocess.run([SHIPPED, *words], capture_output=True, text=True, timeout=SECONDS, check=False)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == f"cage-spawner: unrecognized arguments: {' '.join(words)}; see cage-spawner --help\n"


@pytest.mark.parametrize("table", ["walls = []\n", "[walls]\nseccomp = false\n", "[spawner]\nlandlock = false\n"])
def test_no_configuration_leaves_a_wall_out(tmp_path: Path, table: str) -> None:
    file = tmp_path / "caged.conf"
    file.write_text(f'{table}[paths]\nrun = "{tmp_path}/run"\nstate = "{tmp_path}/state"\n')
    ended = subprocess.run([SHIPPED, "--config", file], capture_output=True, text=True, timeout=SECONDS, check=False)
    assert ended.returncode not in (0, -9)
    assert "unknown" in ended.stderr, ended.stderr
    assert not (tmp_path / "run").exists()
