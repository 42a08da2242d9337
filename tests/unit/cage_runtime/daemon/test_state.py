# SPDX-License-Identifier: LGPL-2.1-or-later
"""The registry: a cage is there or it is not, whatever instant the machine stops at."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from cage_runtime.config import Apps, Definition, Session
from cage_runtime.daemon.state import Record, Registry, now
from cage_runtime.errors import NameTaken


def a_record(name: str, *, ephemeral: bool = False) -> Record:
    definition = Definition(level="internal", session=Session(ephemeral=ephemeral))
    return Record(name=name, uuid=name[0] * 32, created=now(), owner=0, definition=definition)


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "persistent", tmp_path / "ephemeral")


def test_what_is_added_is_there_again(registry: Registry) -> None:
    records = [a_record("work"), a_record("scratch", ephemeral=True)]
    for record in records:
        registry.add(record)
    assert registry.load() == records


def test_the_files_are_the_core_s_alone(registry: Registry, tmp_path: Path) -> None:
    registry.add(a_record("work"))
    assert oct((tmp_path / "persistent" / "work").stat().st_mode & 0o777) == "0o700"


def test_a_name_is_given_once(registry: Registry, tmp_path: Path) -> None:
    registry.add(a_record("work"))
    with pytest.raises(NameTaken):
        registry.add(a_record("work"))
    assert sorted(entry.name for entry in (tmp_path / "persistent").iterdir()) == ["work"]


def test_a_changed_definition_replaces_the_old_one(registry: Registry) -> None:
    record = a_record("work")
    registry.add(record)
    changed = registry.redefine(record, msgspec.structs.replace(record.definition, apps=Apps(allow=["org.x.Y"])))
    assert registry.load() == [changed]


def test_what_is_removed_is_gone(registry: Registry, tmp_path: Path) -> None:
    record = a_record("work")
    registry.add(record)
    registry.remove(record)
    assert registry.load() == []
    assert list((tmp_path / "persistent").iterdir()) == []


def test_what_was_cut_off_is_removed(registry: Registry, tmp_path: Path) -> None:
    registry.add(a_record("work"))
    for leftover in (".new-" + "a" * 32, ".gone-" + "b" * 32):
        (tmp_path / "persistent" / leftover).mkdir()
        (tmp_path / "persistent" / leftover / "cage.toml").touch()
    assert [record.name for record in registry.load()] == ["work"]
    assert [entry.name for entry in (tmp_path / "persistent").iterdir()] == ["work"]


def test_a_broken_definition_keeps_the_cage_and_says_why(registry: Registry, tmp_path: Path) -> None:
    registry.add(a_record("work"))
    (tmp_path / "persistent" / "work" / "cage.toml").write_text("level = 'internal'\ncolour = 'red'\n")
    (record,) = registry.load()
    assert record.uuid == "w" * 32
    assert 'cage.toml:2: unknown key "colour"' in record.fault


@pytest.mark.parametrize("damaged", [b"{}", b"", b'{"uuid":"\xff\xff"}', b'{"x":' + b"[" * 3000])
def test_an_entry_that_cannot_be_read_costs_no_other_cage(registry: Registry, tmp_path: Path, damaged: bytes) -> None:
    """A damaged record, and what the file system has put there; their names stay taken."""
    registry.add(a_record("work"))
    (tmp_path / "persistent/work/instance.json").write_bytes(damaged)
    (tmp_path / "persistent/lost+found").mkdir()
    registry.add(a_record("other"))
    assert [record.name for record in registry.load()] == ["other"]
    assert len(registry.faults) == 2
    assert all(str(tmp_path) in fault or "lost+found" in fault for fault in registry.faults)
    with pytest.raises(NameTaken):
        registry.add(a_record("work"))
