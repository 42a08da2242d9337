# SPDX-License-Identifier: LGPL-2.1-or-later
"""The kept machines: built once, removed when they are old and nobody uses them, and never half done."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.vm.host import cache
from tests.vm.host.image import Files
from tests.vm.host.recipe import Recipe, Suite

MADE = Recipe(suite=Suite.BOOKWORM, packages=("dbus",), emulator="QEMU 7.2", made_by="digest")
NEXT = replace(MADE, packages=("dbus", "systemd"))
OTHER_SUITE = replace(MADE, suite=Suite.TRIXIE)


class Builder:
    """Counts what it builds."""

    def __init__(self) -> None:
        self.built = 0

    def __call__(self, directory: Path) -> Files:
        self.built += 1
        (directory / "vmlinuz").write_text(str(self.built))
        return Files(directory=directory)


def test_a_machine_is_built_once(tmp_path: Path) -> None:
    build = Builder()
    for _ in range(2):
        with cache.machine(MADE, build, tmp_path) as files:
            assert files.kernel.read_text() == "1"
    assert build.built == 1


def test_an_older_one_of_the_same_suite_goes_and_no_other(tmp_path: Path) -> None:
    with cache.machine(MADE, Builder(), tmp_path) as old, cache.machine(OTHER_SUITE, Builder(), tmp_path) as other, \
            cache.machine(NEXT, Builder(), tmp_path) as new:
        assert old.directory.is_dir(), "somebody runs it"
    with cache.machine(NEXT, Builder(), tmp_path):
        assert not old.directory.exists()
        assert new.directory.is_dir()
        assert other.directory.is_dir()


def test_a_build_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def fails(directory: Path) -> Files:
        (directory / "root").mkdir()
        raise ConnectionError("no archive")

    with pytest.raises(ConnectionError, match="no archive"), cache.machine(MADE, fails, tmp_path):
        pytest.fail("there is no machine")
    assert [path.name for path in tmp_path.iterdir()] == ["bookworm.lock"]


def test_what_a_killed_build_has_left_is_no_machine(tmp_path: Path) -> None:
    left = tmp_path / f"bookworm-{MADE.key}.new"
    left.mkdir()
    (left / "vmlinuz").write_text("half")
    with cache.machine(MADE, Builder(), tmp_path) as files:
        assert files.kernel.read_text() == "1"
    assert not left.exists()


def test_a_run_has_a_directory_of_its_own_and_removes_what_a_killed_one_has_left(tmp_path: Path) -> None:
    left = tmp_path / "run-killed"
    left.mkdir()
    with cache.run_directory(tmp_path) as one, cache.run_directory(tmp_path) as two:
        assert one != two
        assert one.is_dir()
        assert not left.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["runs.lock"]
