# SPDX-License-Identifier: LGPL-2.1-or-later
"""What makes a session look for menu entries of cages: once, after everything else, for whoever the session is."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from cage_runtime.config import Paths

SYSTEMD = Path(__file__).parents[3] / "systemd"
GENERATOR = SYSTEMD / "user-environment-generators/60-cage-runtime"
PROFILE = SYSTEMD / "profile.d/cage-runtime.sh"
OURS = f"{Paths().state}/exports/1000/share"
Way = Callable[[dict[str, str]], str]
USUAL = "/usr/local/share:/usr/share"


def environment_of(uid: int, before: str | None, directory: Path) -> dict[str, str]:
    """As a session of `uid` begins with it; who that is, id(1) says."""
    (directory / "id").write_text(f"#!/bin/sh\necho {uid}\n")
    (directory / "id").chmod(0o755)
    return {"PATH": f"{directory}:/usr/bin:/bin"} | ({} if before is None else {"XDG_DATA_DIRS": before})


def generated(environment: dict[str, str]) -> str:
    """XDG_DATA_DIRS as the user manager has it after the generator."""
    said = subprocess.run([GENERATOR], env=environment, capture_output=True, text=True, check=True)
    assert said.stderr == ""
    lines = said.stdout.splitlines()
    return lines[0].removeprefix("XDG_DATA_DIRS=") if lines else environment.get("XDG_DATA_DIRS", "")


def sourced(environment: dict[str, str]) -> str:
    """The same after a login shell has read the profile; sh is what a display manager reads it with."""
    script = f'set -eu; . {PROFILE}; [ -z "${{cage_runtime_exports+set}}" ]; env'
    said = subprocess.run(["sh", "-c", script], env=environment, capture_output=True, text=True, check=True)
    return dict(line.split("=", 1) for line in said.stdout.splitlines()).get("XDG_DATA_DIRS", "")


@pytest.mark.parametrize("way", [generated, sourced])
@pytest.mark.parametrize(("before", "after"), [
    (None, f"{USUAL}:{OURS}"),
    ("", f"{USUAL}:{OURS}"),
    ("/usr/share/gnome:/usr/share", f"/usr/share/gnome:/usr/share:{OURS}"),
    (f"/a:{OURS}:/b", f"/a:{OURS}:/b"),
    (f"{OURS}0", f"{OURS}0:{OURS}"),
])
def test_the_entries_are_looked_for(way: Way, before: str | None, after: str, tmp_path: Path) -> None:
    assert way(environment_of(1000, before, tmp_path)) == after


@pytest.mark.parametrize("way", [generated, sourced])
@pytest.mark.parametrize("before", [None, "/usr/share/gnome:/usr/share"])
def test_root_looks_for_nothing_where_caged_writes(way: Way, before: str | None, tmp_path: Path) -> None:
    """An entry is one click away from being run, with all that root may."""
    assert way(environment_of(0, before, tmp_path)) == (before or "")


@pytest.mark.parametrize("base", ["/usr", "/usr/local"])
def test_they_are_installed_where_they_are_looked_for(tmp_path: Path, base: str) -> None:
    build = SYSTEMD.parent / ".build"
    subprocess.run([SYSTEMD.parent / "scripts/stage", "--prefix=/opt/x", f"--wheels={build}/wheels-here",
                    f"--tools={build}/tools", f"--base={base}", tmp_path / "root"], check=True)
    generator = tmp_path / f"root{base}/lib/systemd/user-environment-generators/60-cage-runtime"
    assert os.access(generator, os.X_OK)
    assert generator.read_text() == GENERATOR.read_text()
    assert (tmp_path / "root/etc/profile.d/cage-runtime.sh").read_text() == PROFILE.read_text()
