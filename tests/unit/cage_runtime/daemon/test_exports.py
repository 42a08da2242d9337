# SPDX-License-Identifier: LGPL-2.1-or-later
"""Menu entries on disk: whole, only those of cages that there are, and behind a list that lets one person in."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from cage_runtime.config import Apps, Definition, convert
from cage_runtime.daemon.exports import Exports
from cage_runtime.daemon.state import Record
from cage_runtime.errors import CageError
from cage_runtime.model import APPLICATION_MAX, NAME_MAX

APP, VALUES = "org.example.App", {"Name": "App", "Terminal": "true"}
ALICE, BOB = 1000, 1001


def record(name: str, owner: int = ALICE, *applications: str) -> Record:
    definition = Definition(apps=Apps(allow=list(applications or (APP,))))
    return Record(name=name, uuid=name.ljust(32, "0"), created="", owner=owner, definition=definition)


@pytest.fixture
def exports(tmp_path: Path) -> Exports:
    (tmp_path / "exports").mkdir(0o711)
    return Exports(tmp_path / "exports", "/usr/bin/cagectl")


def there(tmp_path: Path) -> set[str]:
    return {str(file.relative_to(tmp_path / "exports")) for file in tmp_path.rglob("exports/**/*") if file.is_file()}


def test_an_entry_comes_and_goes(exports: Exports, tmp_path: Path) -> None:
    work = record("work")
    exports.put(work, APP, VALUES)
    name = f"{ALICE}/share/applications/work.{APP}.desktop"
    assert there(tmp_path) == {name}
    assert exports.has(work, APP)
    file = tmp_path / "exports" / name
    assert "Name=App [work]\n" in file.read_text()
    assert (file.stat().st_mode & 0o777, file.parent.stat().st_mode & 0o777) == (0o644, 0o755)
    exports.put(work, APP, {"Name": "Other"})
    assert "Name=Other [work]\n" in file.read_text()
    exports.put(work, APP, {})
    assert there(tmp_path) == set()
    exports.drop(work, APP)
    assert exports.fault == ""


def test_an_entry_that_cannot_be_shown_is_not_left_as_it_was(exports: Exports, tmp_path: Path) -> None:
    exports.put(record("work"), APP, VALUES)
    exports.put(record("work"), APP, {"Name": "\u202e"})
    assert there(tmp_path) == set()


def test_with_the_last_cage_goes_the_directory(exports: Exports, tmp_path: Path) -> None:
    work, vault, other = record("work"), record("vault"), record("other", BOB)
    for each in (work, vault, other):
        exports.welcome(each)
        exports.put(each, APP, VALUES)
    exports.forget(work, [vault, other])
    assert there(tmp_path) == {f"{ALICE}/share/applications/vault.{APP}.desktop",
                               f"{BOB}/share/applications/other.{APP}.desktop"}
    exports.forget(vault, [other])
    assert os.listdir(tmp_path / "exports") == [str(BOB)]
    exports.welcome(work)
    assert sorted(os.listdir(tmp_path / "exports")) == [str(ALICE), str(BOB)]


def test_what_no_cage_accounts_for_is_removed_at_the_start(exports: Exports, tmp_path: Path) -> None:
    stays, gone, elsewhere = record("stays"), record("gone"), record("stays", BOB)
    for each in (stays, gone, elsewhere):
        exports.put(each, APP, VALUES)
    exports.put(stays, "org.example.Removed", VALUES)
    place = tmp_path / "exports" / str(ALICE) / "share/applications"
    (place / f".stays.{APP}.desktop.new").write_text("half")
    Exports(tmp_path / "exports", "").begin([stays])
    assert os.listdir(place) == [f"stays.{APP}.desktop"]
    assert os.listdir(tmp_path / "exports") == [str(ALICE)]


# --- who may look ----------------------------------------------------------------------------------------------------
def access(path: Path) -> list[tuple[int, int, int]]:
    raw = os.getxattr(path, "system.posix_acl_access")
    return [(int.from_bytes(raw[at:at + 2], "little"), int.from_bytes(raw[at + 2:at + 4], "little"),
             int.from_bytes(raw[at + 4:at + 8], "little")) for at in range(4, len(raw), 8)]


def test_one_person_is_let_in(exports: Exports, tmp_path: Path) -> None:
    exports.welcome(record("work"))
    directory = tmp_path / "exports" / str(ALICE)
    assert access(directory) == [(1, 7, 0xFFFFFFFF), (2, 5, ALICE), (4, 0, 0xFFFFFFFF), (16, 5, 0xFFFFFFFF),
                                 (32, 0, 0xFFFFFFFF)]
    os.removexattr(directory, "system.posix_acl_access")
    exports.put(record("work"), APP, VALUES)
    assert access(directory)[1] == (2, 5, ALICE), "as one that comes from a backup"


def test_without_lists_there_are_no_entries(
    exports: Exports, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exports.put(record("work"), APP, VALUES)

    def no_lists(*_: object, **__: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "setxattr", no_lists)
    exports.put(record("work"), APP, VALUES)
    assert os.listdir(tmp_path / "exports") == []
    assert exports.fault == ("applications in cages are not in anybody's menu, because the file system of "
                             f"{tmp_path}/exports has no access control lists")


def test_a_full_disk_leaves_no_half_entry(exports: Exports, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exports.put(record("work"), APP, VALUES)
    before = (tmp_path / f"exports/{ALICE}/share/applications/work.{APP}.desktop").read_text()

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    exports.put(record("work"), APP, {"Name": "New"})
    assert (tmp_path / f"exports/{ALICE}/share/applications/work.{APP}.desktop").read_text() == before
    assert "No space left on device" in exports.fault


def test_the_longest_names_have_an_entry(exports: Exports, tmp_path: Path) -> None:
    longest = "org.example." + "a" * (APPLICATION_MAX - len("org.example."))
    cage = record("c" * NAME_MAX, ALICE, longest)
    assert not exports.has(cage, longest)
    exports.put(cage, longest, VALUES)
    assert exports.has(cage, longest)
    exports.drop(cage, longest)
    assert (there(tmp_path), exports.fault) == (set(), "")
    with pytest.raises(CageError):
        convert({"apps": {"allow": [f"{longest}a"]}}, Definition)


def test_an_entry_that_cannot_be_looked_for_is_a_fault_and_no_more(exports: Exports) -> None:
    """A cage starts all the same, which is when it is looked for."""
    exports.welcome(record("work"))
    assert not exports.has(record("work"), "a" * 300)
    assert "File name too long" in exports.fault
