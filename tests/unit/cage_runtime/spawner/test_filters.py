# SPDX-License-Identifier: LGPL-2.1-or-later
"""Kept filters: found again where they are whole and ours, compiled again otherwise."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.append("/usr/lib/python3/dist-packages")

from cage_runtime.errors import DefinitionError
from cage_runtime.spawner import filters, seccomp
from cage_runtime.spawner.filters import ENTRIES_MAX, Store
from tests.unit.cage_runtime.spawner.test_seccomp import PROFILES


class Compiler:
    """seccomp.build and seccomp.without_own, counted."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        for name in ("build", "without_own"):
            monkeypatch.setattr(seccomp, name, self._counted(getattr(seccomp, name)))

    def _counted(self, call: Callable[..., seccomp.Filter]) -> Callable[..., seccomp.Filter]:
        def counted(*arguments: object) -> seccomp.Filter:
            self.count += 1
            return call(*arguments)

        return counted


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> Compiler:
    return Compiler(monkeypatch)


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    directory = tmp_path / "filters"
    directory.mkdir(mode=0o700)
    return directory


def entry_of(kept: Path) -> Path:
    (entry,) = kept.iterdir()
    return entry


def test_a_filter_is_compiled_once(kept: Path, compiler: Compiler) -> None:
    first = Store(kept).build(PROFILES, "init")
    assert compiler.count == 1
    assert Store(kept).build(PROFILES, "init") == first == seccomp.build(PROFILES, "init")
    assert compiler.count == 2, "the second one is the test's own"
    assert entry_of(kept).stat().st_mode & 0o777 == 0o600


def test_what_is_kept_needs_no_compiler(kept: Path) -> None:
    Store(kept).build(PROFILES, "session")
    code = ("import sys; from pathlib import Path; from cage_runtime.spawner.filters import Store; "
            "filter_ = Store(Path(sys.argv[1])).build(Path(sys.argv[2]), 'session'); "
            "print(len(filter_.programs), 'pyseccomp' in sys.modules)")
    ended = subprocess.run([sys.executable, "-c", code, str(kept), str(PROFILES)], capture_output=True, check=True,
                           cwd=PROFILES.parents[1])
    assert ended.stdout == b"3 False\n"


def test_each_name_and_each_kind_has_its_own(kept: Path) -> None:
    store = Store(kept)
    made = [store.build(PROFILES, "init"), store.build(PROFILES, "session"), store.without_own(PROFILES, "init")]
    assert len({one.programs for one in made}) == len(made) == len(list(kept.iterdir()))


@pytest.mark.parametrize("change", ["the text", "the base's text", "libseccomp", "the architecture", "the compiler"])
def test_what_makes_another_filter_is_compiled(
    change: str, kept: Path, tmp_path: Path, compiler: Compiler, monkeypatch: pytest.MonkeyPatch,
) -> None:
    profiles = tmp_path / "seccomp.d"
    shutil.copytree(PROFILES, profiles)
    Store(kept).build(profiles, "init")
    if change in ("the text", "the base's text"):
        with (profiles / ("init.toml" if change == "the text" else "session.toml")).open("a") as file:
            file.write("# changed\n")
    elif change == "libseccomp":
        monkeypatch.setattr(filters, "libseccomp_version", lambda: "2.99.0")
    elif change == "the architecture":
        monkeypatch.setattr(filters.platform, "machine", lambda: "riscv64")
    else:
        monkeypatch.setattr(filters, "_SOURCES", ("seccomp.py",))
    Store(kept).build(profiles, "init")
    assert compiler.count == 2


def cut(entry: Path) -> None:
    entry.write_bytes(entry.read_bytes()[:-1])


def flip(entry: Path) -> None:
    content = bytearray(entry.read_bytes())
    content[-20] ^= 1
    entry.write_bytes(content)


def empty(entry: Path) -> None:
    entry.write_bytes(b"")


def huge(entry: Path) -> None:
    os.truncate(entry, filters.ENTRY_BYTES_MAX + 1)


def without_programs(entry: Path) -> None:
    content = b'{"programs":[],"unknown":[]}'
    entry.write_bytes(filters._sum(entry.name, content) + content)


def of_another_name(entry: Path) -> None:
    allow_all = b'{"programs":["BgAAAAAA/38="],"unknown":[]}'
    entry.write_bytes(filters._sum("0" * 64, allow_all) + allow_all)


def a_link(entry: Path) -> None:
    there = entry.rename(entry.parent.parent / "elsewhere")
    entry.symlink_to(there)


def a_fifo(entry: Path) -> None:
    entry.unlink()
    os.mkfifo(entry)


def others_can_write(entry: Path) -> None:
    entry.chmod(0o622)


@pytest.mark.parametrize("spoil", [cut, flip, empty, huge, without_programs, of_another_name, a_link, a_fifo,
                                   others_can_write])
def test_what_is_not_whole_or_not_ours_is_compiled_again(spoil: Callable[[Path], None], kept: Path,
                                                         compiler: Compiler) -> None:
    right = Store(kept).build(PROFILES, "session")
    entry = entry_of(kept)
    spoil(entry)
    assert Store(kept).build(PROFILES, "session") == right
    assert compiler.count == 2
    assert not entry.is_symlink()
    assert entry.stat().st_mode & 0o177777 == 0o100600, "and kept again"
    assert Store(kept).build(PROFILES, "session") == right
    assert compiler.count == 2


def test_an_entry_of_another_user_is_compiled_again(kept: Path, compiler: Compiler,
                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    Store(kept).build(PROFILES, "session")
    # Asked for the directory first, which stays ours, and then for what is in it.
    answers = iter([os.geteuid(), os.geteuid() + 1])
    monkeypatch.setattr(filters.os, "geteuid", lambda: next(answers))
    Store(kept).build(PROFILES, "session")
    assert compiler.count == 2


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o750])
def test_a_directory_that_others_reach_is_not_used(mode: int, kept: Path, compiler: Compiler,
                                                   caplog: pytest.LogCaptureFixture) -> None:
    kept.chmod(mode)
    Store(kept).build(PROFILES, "session")
    Store(kept).build(PROFILES, "session")
    assert compiler.count == 2
    assert list(kept.iterdir()) == []
    assert "is not ours alone" in caplog.text


def test_without_a_directory_it_is_compiled(tmp_path: Path, compiler: Compiler) -> None:
    assert Store(tmp_path / "nowhere").build(PROFILES, "session").programs
    (tmp_path / "link").symlink_to(tmp_path)
    assert Store(tmp_path / "link").build(PROFILES, "session").programs
    assert compiler.count == 2


def test_a_full_directory_keeps_nothing_and_fails_nothing(kept: Path, monkeypatch: pytest.MonkeyPatch,
                                                          caplog: pytest.LogCaptureFixture) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(filters.os, "rename", full)
    assert Store(kept).build(PROFILES, "session").programs
    assert "a compiled filter is not kept" in caplog.text


def test_no_more_than_so_many_are_kept(kept: Path) -> None:
    for number in range(ENTRIES_MAX):
        (kept / f"{number}").touch()
        os.utime(kept / f"{number}", (number, number))
    Store(kept).build(PROFILES, "session")
    names = {entry.name for entry in kept.iterdir()}
    assert len(names) == ENTRIES_MAX
    assert "0" not in names
    assert "1" in names


def test_a_profile_that_is_wrong_is_said_and_not_kept(kept: Path, tmp_path: Path) -> None:
    (tmp_path / "session.toml").write_text("wrong = 1\n")
    with pytest.raises(DefinitionError, match=r"session\.toml"):
        Store(kept).build(tmp_path, "session")
    assert list(kept.iterdir()) == []
