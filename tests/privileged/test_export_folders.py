# SPDX-License-Identifier: LGPL-2.1-or-later
"""The folders of menu entries as the spawner makes them: caged has one in each, and can make nothing beside it."""

from __future__ import annotations

import errno
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cage_runtime.errors import CageError
from cage_runtime.model import CAGES_MAX
from cage_runtime.spawner import exports as module
from cage_runtime.spawner.exports import Exports
from cage_runtime.spawner.loop import Loop

ALICE, BOB = 61234, 61235
"""Uids of nobody on this host."""
CAGED = pwd.getpwnam("nobody")
ACCESS, DEFAULT = "system.posix_acl_access", "system.posix_acl_default"


class Place:
    def __init__(self, directory: Path) -> None:
        self.directory, self.loop = directory, Loop()
        self.told: list[str] = []

    def begin(self) -> Exports:
        """What a spawner does that starts; returns when nothing is being deleted."""
        exports = Exports(self.directory, CAGED.pw_uid, self.loop)
        self.rest(exports)
        return exports

    def welcome(self, exports: Exports, *uids: int) -> None:
        exports.welcome(uids, self.tell)
        self.rest(exports)

    def tell(self, error: CageError | None) -> None:
        self.told.append("" if error is None else error.sentence)

    def rest(self, exports: Exports) -> None:
        while exports._deleting:
            self.loop.turn()

    def found(self) -> dict[str, tuple[int, int, int]]:
        """Owner, group and mode of all that is there."""
        stats = {str(path.relative_to(self.directory)): path.lstat() for path in self.directory.rglob("*")}
        return {name: (it.st_uid, it.st_gid, it.st_mode & 0o7777) for name, it in stats.items()}


@pytest.fixture
def place() -> Iterator[Place]:
    """Where other users reach it, from whom pytest keeps its own directories."""
    top = Path(tempfile.mkdtemp(prefix="exports-"))
    top.chmod(0o711)
    (top / "exports").mkdir(0o711)
    (top / "exports").chmod(0o711)
    yield Place(top / "exports")
    shutil.rmtree(top)


def sh(uid: int, script: str, directory: Path) -> subprocess.CompletedProcess[str]:
    """As that user, who has no capability, in `directory`."""
    return subprocess.run(["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "--", "sh", "-c",
                           f'cd "$1" && {script}', "sh", str(directory)],
                          capture_output=True, text=True, check=False)  # fmt: skip


MADE = {
    str(ALICE): (0, 0, 0o750), f"{ALICE}/share": (0, 0, 0o755),
    f"{ALICE}/share/applications": (CAGED.pw_uid, CAGED.pw_gid, 0o755),
}


def test_caged_has_one_folder_and_nothing_beside_it(place: Place) -> None:
    exports = place.begin()
    place.welcome(exports, ALICE)
    assert (place.told, place.found()) == ([""], MADE)
    assert sh(CAGED.pw_uid, "echo entry >applications/work.desktop", place.directory / f"{ALICE}/share").returncode == 0
    for script in (
        f"mkdir {BOB}", f"mkdir {ALICE}/x", f"mkdir -p {ALICE}/share/dbus-1/services", f"touch {ALICE}/share/x",
        f"mv {ALICE} {BOB}", f"mv {ALICE}/share {ALICE}/x", f"mv {ALICE}/share/applications {ALICE}/share/x",
        f"rmdir {ALICE}/share/applications", f"ln -s /tmp {ALICE}/share/x", f"chmod 777 {ALICE}/share",
        "touch .gone-x", "ls", f"ls {ALICE}",
    ):
        refused = sh(CAGED.pw_uid, script, place.directory)
        assert refused.returncode != 0, script
        assert any(word in refused.stderr for word in ("Permission denied", "not permitted")), script
    assert sh(ALICE, "cat share/applications/*", place.directory / str(ALICE)).stdout == "entry\n"
    assert sh(ALICE, "touch share/applications/mine", place.directory / str(ALICE)).returncode != 0
    assert sh(BOB, "ls", place.directory / str(ALICE)).returncode != 0


def test_whoever_is_not_named_any_more_has_no_folder(place: Place) -> None:
    exports = place.begin()
    place.welcome(exports, ALICE, BOB)
    sh(CAGED.pw_uid, "mkdir -p a/b && touch a/b/c", place.directory / f"{BOB}/share/applications")
    inode = (place.directory / f"{ALICE}/share/applications").stat().st_ino
    place.welcome(exports, ALICE)
    assert (place.told, place.found()) == (["", ""], MADE)
    assert (place.directory / f"{ALICE}/share/applications").stat().st_ino == inode, "who watches it goes on"
    assert place.begin() is not exports
    assert place.found() == MADE, "the next spawner leaves it as it is"
    place.welcome(exports)
    assert place.found() == {}


# --- what caged had in an earlier version -----------------------------------------------------------------------------
def earlier(directory: Path, theirs: Path) -> None:
    """All is caged's, as earlier versions had it, and one that has been taken over has used that."""
    os.chown(directory, CAGED.pw_uid, CAGED.pw_gid)
    theirs.mkdir()
    (theirs / "kept").write_text("kept")
    theirs.chmod(0o777)
    ours = f"{ALICE}/share"
    planted = sh(CAGED.pw_uid, f"""set -e
        mkdir -p {ours}/applications {ours}/dbus-1/services {ours}/bash-completion {BOB} {ALICE}/bin
        touch {ours}/applications/work.desktop {ours}/dbus-1/services/x.service {BOB}/kept
        ln -s "{theirs}" {BOB}/share; ln -s "{theirs}" 61236; ln -s "{theirs}" .gone-1; ln -s "{theirs}" 0
        touch 61237 00 word; mkdir .gone-2 4294967295 '99999999999'""", directory)  # fmt: skip
    assert planted.stderr == ""


def test_what_an_earlier_version_left_is_made_anew(place: Place, tmp_path: Path) -> None:
    earlier(place.directory, tmp_path / "theirs")
    exports = place.begin()
    found = place.directory.stat()
    assert (place.found(), found.st_uid, found.st_mode & 0o7777) == ({}, 0, 0o711)
    place.welcome(exports, ALICE)
    assert (place.told, place.found()) == ([""], MADE)
    assert [path.name for path in (tmp_path / "theirs").iterdir()] == ["kept"], "no link is followed"


def acl(*, uid: int) -> bytes:
    """One by which that user may do everything."""
    return module._for(uid, CAGED.pw_uid).replace(b"\x05\x00\xff", b"\x07\x00\xff").replace(
        b"\x02\x00\x01\x00", b"\x02\x00\x07\x00")


def test_lists_of_caged_s_let_it_in_nowhere(place: Place) -> None:
    """As systemd-tmpfiles leaves it, which gives the folder to root and leaves its lists; and a chown of the rest."""
    for path in (place.directory, place.directory / f"{ALICE}", place.directory / f"{ALICE}/share"):
        path.mkdir(exist_ok=True)
        for name in (ACCESS, DEFAULT):
            os.setxattr(path, name, acl(uid=ALICE))
    assert sh(CAGED.pw_uid, "touch x && rm x", place.directory / f"{ALICE}/share").returncode == 0, "the lists work"
    exports = place.begin()
    place.welcome(exports, ALICE, BOB)
    assert place.found() == MADE | {name.replace(str(ALICE), str(BOB)): it for name, it in MADE.items()}
    for uid in (ALICE, BOB):
        for path in (place.directory, place.directory / f"{uid}", place.directory / f"{uid}/share"):
            assert sh(CAGED.pw_uid, "touch x", path).returncode != 0, path
            assert (set(os.listxattr(path)) & {ACCESS, DEFAULT}) == ({ACCESS} if path.name == str(uid) else set())


@pytest.mark.parametrize("planted", ["file", "link", "root", "other"])
def test_what_is_in_the_place_of_the_entries_is_moved_away(place: Place, tmp_path: Path, planted: str) -> None:
    exports = place.begin()
    place.welcome(exports, ALICE)
    entries = place.directory / f"{ALICE}/share/applications"
    entries.rmdir()
    make: dict[str, Callable[[], None]] = {
        "file": entries.touch, "link": lambda: entries.symlink_to(tmp_path), "root": entries.mkdir,
        "other": lambda: (entries.mkdir(), os.chown(entries, BOB, BOB))[1],  # type: ignore[func-returns-value]
    }
    make[planted]()
    place.welcome(exports, ALICE)
    assert (place.told, place.found()) == (["", ""], MADE)
    assert tmp_path.stat().st_uid == 0


def test_more_than_is_looked_at_at_once_goes_too(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOOKED_AT_MAX", 5)
    monkeypatch.setattr(module, "DELETED_AT_ONCE", 2)
    for number in range(1, 30):
        (place.directory / str(number)).mkdir()
        os.chown(place.directory / str(number), CAGED.pw_uid, CAGED.pw_gid)
    place.begin()
    assert place.found() == {}


# --- bounds -----------------------------------------------------------------------------------------------------------
def test_as_many_as_may_have_cages_and_one_deletion_at_a_time(place: Place) -> None:
    exports = place.begin()
    place.welcome(exports, *range(100_000, 100_000 + CAGES_MAX))
    assert len(list(place.directory.iterdir())) == CAGES_MAX
    exports.welcome([ALICE], place.tell)
    for uid in range(200_000, 200_010):
        exports.welcome([uid], place.tell)
    assert len(list(place.directory.iterdir())) <= CAGES_MAX + 1, "no more while those are deleted"
    place.rest(exports)
    assert place.told == ["", "", *["the folders of menu entries have been asked for anew meanwhile"] * 9, ""]
    assert [path.name for path in place.directory.iterdir()] == ["200009"]


def test_without_lists_there_is_no_folder(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    exports = place.begin()

    def no_lists(*_: object, **__: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "setxattr", no_lists)
    place.welcome(exports, ALICE)
    assert place.told == ["applications in cages are not in anybody's menu, because the file system of "
                          f"{place.directory} has no access control lists"]
    assert not (place.directory / f"{ALICE}/share").exists()
    assert sh(ALICE, "ls", place.directory / str(ALICE)).returncode != 0
