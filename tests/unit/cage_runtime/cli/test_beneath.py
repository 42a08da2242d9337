# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which files incage opens: regular, not empty, and in the home directory by the kernel's own resolution."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from cage_runtime.cli import beneath, incage, verbs_incage
from cage_runtime.cli.beneath import open_source
from cage_runtime.errors import CageError


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    directory = tmp_path / "home"
    (directory / "Documents").mkdir(parents=True)
    (directory / "Documents" / "figures.txt").write_text("quarterly figures")
    (tmp_path / "outside.txt").write_text("not yours")
    monkeypatch.setenv("HOME", str(directory))
    monkeypatch.chdir(directory)
    return directory


@pytest.mark.parametrize(
    "path",
    [
        "Documents/figures.txt",
        "./Documents//figures.txt",
        "Documents/../Documents/figures.txt",
        "linked/figures.txt",
        "HOME/Documents/figures.txt",
        "HOME/./Documents/figures.txt",
    ],
)
def test_a_file_in_the_home_directory_is_opened(home: Path, path: str) -> None:
    (home / "linked").symlink_to("Documents")
    descriptor = open_source(path.replace("HOME", str(home)))
    try:
        assert os.read(descriptor, 100) == b"quarterly figures"
        assert not os.get_inheritable(descriptor)
    finally:
        os.close(descriptor)


def test_a_path_is_relative_to_the_working_directory(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home / "Documents")
    os.close(open_source("figures.txt"))
    os.close(open_source("../Documents/figures.txt"))


def test_a_home_that_is_a_link_is_the_same_home(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "alias").symlink_to(home)
    monkeypatch.setenv("HOME", str(tmp_path / "alias"))
    os.close(open_source("Documents/figures.txt"))
    os.close(open_source(str(tmp_path / "alias" / "Documents" / "figures.txt")))


def odd_files(home: Path) -> None:
    (home / "empty").touch()
    os.mkfifo(home / "fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
    (home / "link").symlink_to("Documents/figures.txt")
    (home / "link-out").symlink_to("../outside.txt")
    (home / "absolute").symlink_to("/etc")
    (home / "up").symlink_to("..")
    (home / "loop").symlink_to("loop")
    (home / "ENOTDIR").write_text("x")


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("empty", "is empty; there is nothing to send"),
        ("fifo", "is a FIFO"),
        ("socket", "is a socket"),
        ("missing", "does not exist"),
        ("missing/file", "does not exist"),
        ("ENOTDIR/file", "does not exist"),
        ("link", "is a symbolic link"),
        ("link-out", "is a symbolic link"),
        ("loop", "is a symbolic link"),
        ("up/outside.txt", "leads out of your home directory"),
        ("absolute/passwd", "leads out of your home directory"),
        ("../outside.txt", "leads out of your home directory"),
        ("Documents/../../outside.txt", "leads out of your home directory"),
        ("/etc/passwd", "is not in your home directory"),
        ("/dev/null", "is not in your home directory"),
        ("/proc/self/root/etc/passwd", "is not in your home directory"),
    ],
)
def test_anything_else_has_its_own_sentence(home: Path, path: str, why: str) -> None:
    odd_files(home)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(CageError, match=why) as caught:
        open_source(path)
    assert caught.value.sentence.startswith(f'"{path}" ')
    assert caught.value.exit_status == 1
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.usefixtures("home")
def test_a_sibling_whose_name_begins_like_home_is_outside(tmp_path: Path) -> None:
    (tmp_path / "home2").mkdir()
    (tmp_path / "home2" / "file").write_text("x")
    with pytest.raises(CageError, match="is not in your home directory"):
        open_source(str(tmp_path / "home2" / "file"))


@pytest.mark.usefixtures("home")
def test_an_unreadable_file_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever runs the tests may read everything, so the kernel's answer is given here."""

    def refuse(*_: object, **__: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(beneath, "openat2", refuse)
    with pytest.raises(CageError, match="you have no permission"):
        open_source("Documents/figures.txt")


@pytest.mark.usefixtures("home")
def test_a_kernel_without_openat2_sends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> int:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(beneath, "openat2", refuse)
    with pytest.raises(CageError, match="does not offer openat2") as caught:
        open_source("Documents/figures.txt")
    assert caught.value.exit_status == 125


def test_incage_reports_each_bad_file_before_it_looks_for_a_bus(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(verbs_incage, "IDENTITY", __file__)
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/nonexistent")
    odd_files(home)
    assert incage.main(["send", "empty", "fifo", "--to", "vault"]) == 1
    assert capsys.readouterr().err == (
        'incage: "empty" is empty; there is nothing to send\nincage: "fifo" is a FIFO; only regular files can be sent\n'
    )
