# SPDX-License-Identifier: LGPL-2.1-or-later
"""A root is left by no path: what a step works on is beneath it and no link."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from cage_runtime.spawner import applications as room
from cage_runtime.spawner.mount import Directory, File, Link, Masks, Operation, Root, Source, exact_modes, opened

TREE = "app/org.example.App"
LINK = errno.ELOOP, errno.ENOTDIR
"""As the kernel says of a link that is none but the last name, or the last one."""


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Root]:
    (tmp_path / "root").mkdir()
    (tmp_path / "outside").mkdir()
    with opened(os.open(tmp_path / "root", os.O_RDONLY | os.O_DIRECTORY)) as directory, exact_modes():
        yield Root(directory)


def carry_out(root: Root, *steps: Operation) -> None:
    for step in steps:
        step.execute(root)


def test_what_is_made_has_the_modes_that_steps_say(root: Root, tmp_path: Path) -> None:
    carry_out(root, Directory(path="/a", mode=0o1777), Directory(path="/a/b", mode=0o700),
              File(path="/a/b/file", content="text", mode=0o666), Link(path="/a/link", to="b"))
    made = {entry: entry.lstat().st_mode & 0o7777 for entry in (tmp_path / "root").rglob("*") if not entry.is_symlink()}
    top = tmp_path / "root"
    assert made == {top / "a": 0o1777, top / "a/b": 0o700, top / "a/b/file": 0o666}
    assert (top / "a/link").readlink() == Path("b")
    assert (top / "a/b/file").read_text() == "text"


@pytest.mark.parametrize("leads", ["../outside", "/outside", "outside"])
@pytest.mark.parametrize("step", [
    Directory(path="/link/made"), File(path="/link/made", content=""), Link(path="/link/made", to="x"),
])
def test_no_step_goes_through_a_link(root: Root, tmp_path: Path, leads: str, step: Operation) -> None:
    carry_out(root, Directory(path="/outside"), Link(path="/link", to=leads))
    with pytest.raises(OSError) as refused:
        step.execute(root)
    assert refused.value.errno in LINK
    assert [*(tmp_path / "outside").iterdir(), *(tmp_path / "root/outside").iterdir()] == []


def test_no_step_goes_above_the_root(root: Root, tmp_path: Path) -> None:
    with pytest.raises(OSError) as refused:
        Directory(path="/../outside/made").execute(root)
    assert refused.value.errno == errno.EXDEV
    assert list((tmp_path / "outside").iterdir()) == []


def test_a_file_is_made_or_nothing_is(root: Root, tmp_path: Path) -> None:
    (tmp_path / "root/file").symlink_to(tmp_path / "outside/file")
    with pytest.raises(FileExistsError):
        File(path="/file", content="text").execute(root)
    assert list((tmp_path / "outside").iterdir()) == []


def test_a_source_is_a_directory_and_no_link_to_one(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(NotADirectoryError):
        Source.of(tmp_path / "link")


def test_nothing_but_a_procfs_is_masked(root: Root) -> None:
    carry_out(root, Directory(path="/proc"), File(path="/proc/stat", content=""), File(path="/none", content=""))
    with pytest.raises(OSError, match="not a procfs"):
        Masks(over=(("stat", "/none"),)).execute(root)


# --- where the cage's own root can write: the directory of its applications ----------------------------------------
@pytest.fixture
def applications(root: Root, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    del root
    monkeypatch.setattr(room, "DIRECTORY", str(tmp_path / "root"))
    return tmp_path / "root"


@pytest.mark.parametrize("link", ["app", "app/org.example.App"])
def test_an_application_is_attached_through_no_link(applications: Path, tmp_path: Path, link: str) -> None:
    (applications / link).parent.mkdir(exist_ok=True)
    (applications / link).symlink_to(tmp_path / "outside")
    with pytest.raises(OSError) as refused:
        room.attach([TREE], [-1])
    assert refused.value.errno in LINK
    assert list((tmp_path / "outside").iterdir()) == []


def test_what_is_concealed_is_reached_through_no_link(applications: Path, tmp_path: Path) -> None:
    (tmp_path / "outside/org.example.App").mkdir()
    (applications / "app").symlink_to(tmp_path / "outside")
    with pytest.raises(OSError) as refused:
        room.detach([TREE])
    assert refused.value.errno in LINK
    assert (tmp_path / "outside/org.example.App").is_dir()


def test_what_is_not_there_is_concealed_already(applications: Path) -> None:
    room.detach([TREE])
    assert list(applications.iterdir()) == []
