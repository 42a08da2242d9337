# SPDX-License-Identifier: LGPL-2.1-or-later
"""Menu entries on disk: whole, and only those of cages that there are, in folders that somebody else makes."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
from pathlib import Path

import pytest

from cage_runtime.config import Apps, Definition, convert
from cage_runtime.daemon.exports import Exports
from cage_runtime.daemon.state import Record
from cage_runtime.errors import CageError, HostUnsupported
from cage_runtime.model import APPLICATION_MAX, CAGES_MAX, NAME_MAX

APP, VALUES = "org.example.App", {"Name": "App", "Terminal": "true"}
ALICE, BOB, STRANGER = 1000, 1001, 4711


def record(name: str, owner: int = ALICE, *applications: str) -> Record:
    definition = Definition(apps=Apps(allow=list(applications or (APP,))))
    return Record(name=name, uuid=name.ljust(32, "0"), created="", owner=owner, definition=definition)


class Spawner:
    """Its part of it, as far as caged sees that."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.asked: list[list[int]] = []
        self.fault = ""

    async def ask(self, uids: list[int]) -> None:
        self.asked.append(uids)
        if self.fault:
            raise HostUnsupported(self.fault)
        for person in self.directory.iterdir():
            if int(person.name) not in uids:
                shutil.rmtree(person)
        for uid in uids:
            (self.directory / f"{uid}/share/applications").mkdir(parents=True, exist_ok=True)


@pytest.fixture
def spawner(tmp_path: Path) -> Spawner:
    (tmp_path / "exports").mkdir(0o711)
    return Spawner(tmp_path / "exports")


@pytest.fixture
def exports(spawner: Spawner) -> Exports:
    exports = Exports(spawner.directory, "/usr/bin/cagectl", spawner.ask)
    asyncio.run(exports.welcome([ALICE, BOB]))
    return exports


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


def test_with_the_cage_go_its_entries(exports: Exports, tmp_path: Path) -> None:
    work, vault, other = record("work"), record("vault"), record("other", BOB)
    for each in (work, vault, other):
        exports.put(each, APP, VALUES)
    exports.forget(work)
    assert there(tmp_path) == {f"{ALICE}/share/applications/vault.{APP}.desktop",
                               f"{BOB}/share/applications/other.{APP}.desktop"}
    exports.forget(record("nothing", STRANGER))
    assert exports.fault == ""


def test_what_no_cage_accounts_for_is_removed_at_the_start(exports: Exports, spawner: Spawner, tmp_path: Path) -> None:
    stays, gone = record("stays"), record("gone")
    for each in (stays, gone):
        exports.put(each, APP, VALUES)
    exports.put(stays, "org.example.Removed", VALUES)
    place = tmp_path / "exports" / str(ALICE) / "share/applications"
    (place / f".stays.{APP}.desktop.new").write_text("half")
    Exports(spawner.directory, "", spawner.ask).begin([stays, record("stays", STRANGER)])
    assert os.listdir(place) == [f"stays.{APP}.desktop"]


# --- the folders, which are the spawner's to make ---------------------------------------------------------------------
def test_the_spawner_is_told_who_has_cages(exports: Exports, spawner: Spawner) -> None:
    assert (exports.welcomes(ALICE), exports.welcomes(STRANGER)) == (True, False)
    asyncio.run(exports.welcome([BOB, 0, BOB]))
    asyncio.run(exports.welcome(range(CAGES_MAX + 5)))
    assert spawner.asked[1:] == [[0, BOB], list(range(CAGES_MAX))], "more are no request at all"
    assert exports.fault == ""


def test_what_the_spawner_cannot_do_is_told_for_as_long_as_that_is_so(exports: Exports, spawner: Spawner) -> None:
    spawner.fault = "applications in cages are not in anybody's menu, because it rains"
    asyncio.run(exports.welcome([ALICE]))
    exports.put(record("new", STRANGER), APP, VALUES)
    assert exports.fault == spawner.fault
    spawner.fault = ""
    asyncio.run(exports.welcome([ALICE]))
    assert exports.fault == ""


def test_an_entry_whose_folder_is_missing_is_told_of(exports: Exports) -> None:
    exports.put(record("new", STRANGER), APP, VALUES)
    assert "No such file or directory" in exports.fault


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
    assert not exports.has(record("work"), "a" * 300)
    assert "File name too long" in exports.fault
