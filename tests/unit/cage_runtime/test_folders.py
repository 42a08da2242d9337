# SPDX-License-Identifier: LGPL-2.1-or-later
"""What is wrong with a folder of the core is said, with what would help, and nothing of it is changed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cage_runtime import folders, generate, manifest
from cage_runtime.config import Paths, RuntimeConfig, Users, uid_of
from cage_runtime.errors import HostUnsupported
from cage_runtime.folders import Owned

TOP = Path(__file__).parents[3]
TMPFILES = TOP / "systemd/cage-runtime.tmpfiles.conf"


def owned(path: Path, mode: int = 0o700) -> Owned:
    return Owned(path=path, uid=os.geteuid(), mode=mode)


def refusal(*of: Owned) -> str:
    with pytest.raises(HostUnsupported) as refused:
        folders.check(of)
    return refused.value.sentence


def test_what_is_missing_is_made_and_what_is_there_is_left(tmp_path: Path) -> None:
    there, missing = owned(tmp_path / "there"), owned(tmp_path / "a/missing", 0o755)
    there.path.mkdir(mode=0o700)
    (there.path / "file").write_text("kept")
    for _ in range(2):
        folders.prepare([there, missing])
    folders.check([there, missing])
    assert (there.path / "file").read_text() == "kept"


def test_a_wrong_one_keeps_the_others_from_being_made(tmp_path: Path) -> None:
    wrong, missing = owned(tmp_path / "wrong"), owned(tmp_path / "missing")
    wrong.path.mkdir(mode=0o755)
    with pytest.raises(HostUnsupported):
        folders.prepare([missing, wrong])
    assert os.listdir(tmp_path) == ["wrong"]


def test_each_fault_is_told_with_what_would_help(tmp_path: Path) -> None:
    """All of them at once, so that nobody mends one to be told of the next."""
    sound, open_, file = owned(tmp_path / "sound"), owned(tmp_path / "open"), owned(tmp_path / "file")
    sound.path.mkdir(mode=0o700)
    open_.path.mkdir()
    open_.path.chmod(0o777)
    file.path.write_text("")
    gone = owned(tmp_path / "gone")
    assert refusal(sound, open_, file, gone) == (
        f"{open_.path} has the mode 0777 and has to have 0700: chmod 0700 {open_.path}; "
        f"{file.path} is not a directory: move away what is there; "
        f"{gone.path} is missing: start cage-spawner, which makes it, or restore it from a backup")


def test_whose_it_is_and_whose_it_has_to_be_is_told(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    mine = os.geteuid()
    of_root = Owned(path=tmp_path, uid=0, mode=0o700)
    of_another = Owned(path=tmp_path, uid=mine + 12345, mode=0o700)
    assert refusal(of_another) == (
        f"{tmp_path} belongs to uid {mine} and has to belong to {mine + 12345}: chown -R {mine + 12345}: {tmp_path}")
    if mine:
        assert refusal(of_root) == f"{tmp_path} belongs to uid {mine} and has to belong to root: chown root: {tmp_path}"


def test_one_that_was_somebody_else_s_in_an_earlier_version_is_left_to_whoever_takes_it_back(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    mine = os.geteuid()
    folders.check([Owned(path=tmp_path, uid=mine + 12345, mode=0o711, earlier=mine)])
    assert "has to belong to" in refusal(Owned(path=tmp_path, uid=mine + 12345, mode=0o711, earlier=mine + 1))


def test_one_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(HostUnsupported) as refused:
        folders.prepare([owned(tmp_path / "file/below")])
    assert refused.value.sentence == f"{tmp_path}/file/below is missing and cannot be made: Not a directory"


def test_they_are_those_of_tmpfiles_d(monkeypatch: pytest.MonkeyPatch) -> None:
    """What systemd makes and what the spawner makes where there is no systemd."""
    config = RuntimeConfig(paths=Paths(shipped=str(TOP / "policies"), administrator="/nonexistent"))
    mediators = manifest.load(config.paths)
    users = ["root", Users().caged, Users().apps, *(Users().mediator(mediator.name) for mediator in mediators)]
    monkeypatch.setattr(folders, "uid_of", users.index)
    text = TMPFILES.read_text() + generate.tmpfiles(mediators)
    lines = [line.split() for line in text.splitlines() if line.startswith("d ")]
    told = {(words[1], int(words[2], 8), words[3]) for words in lines if words[1].startswith(Paths().state)}
    assert told == {(str(it.path), it.mode, users[it.uid]) for it in folders.of_state(config)}


def test_a_missing_user_is_told_with_who_adds_it() -> None:
    with pytest.raises(HostUnsupported, match="no user nosuchuser on this host; systemd-sysusers cage-runtime"):
        folders.of_state(RuntimeConfig(users=Users(caged="nosuchuser")))
    assert uid_of("root") == 0
