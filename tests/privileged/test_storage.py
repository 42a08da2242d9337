# SPDX-License-Identifier: LGPL-2.1-or-later
"""The storage of cages, as root: a home is deleted because its cage was destroyed, and for no other reason."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cage_runtime.config import Ids
from cage_runtime.errors import RuntimeFailure, WrongState
from cage_runtime.model import FIRST_RANGE, ID_RANGE, LAST_RANGE, USER_UID
from cage_runtime.spawner import storage as module
from cage_runtime.spawner import syscall
from cage_runtime.spawner.storage import Stage, Storage, holds_documents
from tests.privileged.conftest import MakeCage
from tests.privileged.runtime import Runtime

pytestmark = pytest.mark.privileged

A, B = "a" * 32, "b" * 32


def a_storage(top: Path, last: int = LAST_RANGE) -> Storage:
    return Storage(top / "state", top / "run", Ids(last=last).numbers())


def removed(storage: Storage, uuid: str) -> None:
    deleting = storage.remove(uuid)
    if deleting is not None:
        assert deleting.wait() == 0
        storage.removed(uuid)


def test_a_range_is_recorded_and_the_home_is_its_user_s(tmp_path: Path) -> None:
    storage = a_storage(tmp_path)
    storage.make(A, ephemeral=False)
    home = storage.home(A)
    assert home is not None
    assert home.stat().st_uid == FIRST_RANGE * ID_RANGE + USER_UID
    assert a_storage(tmp_path).base(A) == storage.base(A) == FIRST_RANGE * ID_RANGE


def test_a_range_is_not_given_twice_and_comes_free_with_the_storage(tmp_path: Path) -> None:
    storage = a_storage(tmp_path)
    storage.make(A, ephemeral=False)
    storage.make(B, ephemeral=True)
    assert storage.base(A) != storage.base(B)
    taken = storage.base(A)
    storage.condemn(A)
    storage.make("c" * 32, ephemeral=True)
    assert storage.base("c" * 32) != taken, "a condemned home is still there, and so are its owner's ids"
    deleting = storage.remove(A)
    assert deleting is not None
    storage.make("e" * 32, ephemeral=True)
    assert storage.base("e" * 32) != taken, "it is being deleted, and not gone"
    assert deleting.wait() == 0
    storage.removed(A)
    storage.make("d" * 32, ephemeral=True)
    assert storage.base("d" * 32) == taken


def test_ranges_are_those_that_the_configuration_gives(tmp_path: Path) -> None:
    storage = a_storage(tmp_path, last=FIRST_RANGE + 1)
    for uuid, free in ((A, 1), (B, 0)):
        storage.make(uuid, ephemeral=True)
        assert storage.free == free
    with pytest.raises(RuntimeFailure, match="every id range for cages is in use"):
        storage.make("c" * 32, ephemeral=True)


def test_what_is_kept_is_never_deleted_unless_it_is_condemned(tmp_path: Path) -> None:
    storage = a_storage(tmp_path)
    storage.make(A, ephemeral=False)
    storage.keep(A)
    with pytest.raises(WrongState, match="has to be condemned"):
        storage.remove(A)
    again = a_storage(tmp_path)
    assert again.listed(Stage.KEPT) == [A]
    with pytest.raises(WrongState, match="has to be condemned"):
        again.remove(A)
    again.condemn(A)
    removed(again, A)
    assert list((tmp_path / "state").iterdir()) == []


def test_every_stage_is_found_again_after_a_crash(tmp_path: Path) -> None:
    storage = a_storage(tmp_path)
    for uuid in (A, B, "c" * 32):
        storage.make(uuid, ephemeral=False)
    storage.keep(B)
    storage.keep("c" * 32)
    storage.condemn("c" * 32)
    again = a_storage(tmp_path)
    assert (again.listed(Stage.NEW), again.listed(Stage.KEPT), again.listed(Stage.GONE)) == ([A], [B], ["c" * 32])
    assert again.free == storage.free


@pytest.mark.parametrize("content", [None, "", "not a number"])
def test_a_range_that_was_not_recorded_is_read_off_the_home(tmp_path: Path, content: str | None) -> None:
    """What was cut off half made is found as new, and a damaged record costs nobody their documents."""
    for uuid, stage in ((A, Stage.NEW), (B, Stage.KEPT)):
        storage = a_storage(tmp_path)
        storage.make(uuid, ephemeral=False)
        if stage is Stage.KEPT:
            storage.keep(uuid)
        base, record = storage.base(uuid), tmp_path / "state" / (stage + uuid) / "range"
        record.unlink() if content is None else record.write_text(content)
        again = a_storage(tmp_path)
        assert (again.base(uuid), again.listed(stage), again.faults) == (base, [uuid], [])


@pytest.mark.parametrize("content", [None, "", "not a number"])
def test_ephemeral_storage_that_was_cut_off_is_gone(tmp_path: Path, content: str | None) -> None:
    """Killed while it was made or removed: the next spawner starts all the same."""
    a_storage(tmp_path).make(A, ephemeral=True)
    record = tmp_path / "run" / A / "range"
    record.unlink() if content is None else record.write_text(content)
    again = a_storage(tmp_path)
    assert (list((tmp_path / "run").iterdir()), again.faults) == ([], [])


def test_what_is_not_storage_is_left_alone(tmp_path: Path) -> None:
    """The file system's own directory, and something of a cage's name without anything in it."""
    a_storage(tmp_path)
    (tmp_path / "state/lost+found").mkdir()
    (tmp_path / "state" / A).mkdir()
    again = a_storage(tmp_path)
    assert (again.listed(Stage.KEPT), len(again.faults)) == ([], 1)
    assert "has neither a record of its id range nor a home" in again.faults[0]
    assert {entry.name for entry in (tmp_path / "state").iterdir()} == {"lost+found", A}


@pytest.mark.parametrize(("path", "holds"), [
    (None, False), (".config/program/state", False), (".bash_history", False), ("Documents/letter", True),
    ("Inbox/work/figures.txt", True), ("Documents", True), ("notes.txt", True),
])
def test_documents_are_what_somebody_would_miss(tmp_path: Path, path: str | None, holds: bool) -> None:
    storage = a_storage(tmp_path)
    storage.make(A, ephemeral=False)
    home = storage.home(A)
    assert home is not None
    if path == "Documents":  # which a cage has put elsewhere
        (home / path).rmdir()
        (home / path).symlink_to("/")
    elif path is not None:
        (home / path).parent.mkdir(parents=True, exist_ok=True)
        (home / path).touch()
    assert holds_documents(home) is holds


def test_a_home_with_no_end_of_hidden_entries_holds_nobody_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An entry may be but another name of one file; all cages wait while they are read."""
    monkeypatch.setattr(module, "LOOKED_AT_MAX", 100)
    home = tmp_path / "home"
    home.mkdir()
    (home / ".0").touch()
    for number in range(1, 100):
        os.link(home / ".0", home / f".{number}")
    assert not holds_documents(home)
    os.link(home / ".0", home / ".100")
    assert holds_documents(home)


def test_condemned_storage_cannot_be_used(tmp_path: Path) -> None:
    storage = a_storage(tmp_path)
    storage.make(A, ephemeral=False)
    storage.condemn(A)
    with pytest.raises(KeyError):
        storage.base(A)


def test_two_homes_with_one_range_are_not_used(tmp_path: Path) -> None:
    storage = a_storage(tmp_path)
    storage.make(A, ephemeral=False)
    (tmp_path / "state" / f".new-{A}").rename(tmp_path / "away")
    again = a_storage(tmp_path)
    again.make(B, ephemeral=False)
    (tmp_path / "away").rename(tmp_path / "state" / f".new-{A}")
    both = a_storage(tmp_path)
    for uuid in (A, B):
        with pytest.raises(RuntimeFailure, match="the same id range"):
            both.base(uuid)


def test_what_is_condemned_is_kept_no_more(tmp_path: Path) -> None:
    """A keep that is late does not bring it back."""
    storage = a_storage(tmp_path)
    storage.make(A, ephemeral=False)
    storage.condemn(A)
    with pytest.raises(WrongState, match="is condemned"):
        storage.keep(A)
    removed(storage, A)


def test_what_somebody_has_mounted_in_a_home_is_not_deleted_with_it(tmp_path: Path) -> None:
    """Of the same file system even, which rm(1) would not notice."""
    storage = a_storage(tmp_path)
    storage.make(A, ephemeral=False)
    home, precious = storage.home(A), tmp_path / "precious of mine"
    assert home is not None
    precious.mkdir()
    (precious / "canary").touch()
    syscall.mount(str(precious), str(home / "Documents"), None, syscall.MS_BIND)
    try:
        storage.condemn(A)
        with pytest.raises(RuntimeFailure, match="is mounted in the storage of"):
            storage.remove(A)
    finally:
        syscall.umount2(str(tmp_path / f"state/.gone-{A}/home/Documents"), 0)
    assert (precious / "canary").exists()
    removed(storage, A)


def test_a_cage_has_one_storage(tmp_path: Path) -> None:
    storage = a_storage(tmp_path)
    storage.make(A, ephemeral=True)
    with pytest.raises(RuntimeFailure, match="has storage already"):
        storage.make(A, ephemeral=False)
    with pytest.raises(RuntimeFailure, match="has no storage"):
        storage.keep(B)
    assert storage.remove(B) is None


def test_a_deep_tree_of_a_cage_s_making_is_deleted(tmp_path: Path) -> None:
    storage = a_storage(tmp_path)
    storage.make(A, ephemeral=False)
    home = storage.home(A)
    assert home is not None
    canary = tmp_path / "canary"
    canary.write_text("stays")
    (home / "link").symlink_to(canary)
    deep = home
    for _ in range(1500):
        deep /= "d"
        deep.mkdir()
    removed(storage, A)
    assert list((tmp_path / "state").iterdir()) == []
    assert canary.read_text() == "stays"


def test_a_lost_registry_takes_no_documents_with_it(runtime: Runtime, cage: MakeCage) -> None:
    work = cage("keeper", "--level", "internal")
    uuid, definition = work.uuid, runtime.state / "cages" / "keeper"
    work.sh("echo dear > Documents/letter")
    runtime.ok("stop", "keeper")
    runtime.stop()
    definition.rename(runtime.top / "backup")
    runtime.start()
    assert runtime.json("list") == []
    assert (runtime.storage / uuid / "home/Documents/letter").read_text() == "dear\n"
    doctor = {check["detail"] for check in runtime.json("doctor") if check["check"] == "storage"}
    assert doctor == {f"{uuid} belongs to no cage that is known, and is kept"}
    runtime.stop()
    (runtime.top / "backup").rename(definition)
    runtime.start()
    runtime.ok("start", "keeper")
    assert work.sh("cat Documents/letter") == "dear\n"


def test_lost_storage_takes_no_definition_with_it(runtime: Runtime, cage: MakeCage) -> None:
    work = cage("waiter", "--level", "internal")
    storage, away = runtime.storage / work.uuid, runtime.top / "elsewhere"
    runtime.ok("stop", "waiter")
    runtime.stop()
    storage.rename(away)
    runtime.start()
    assert runtime.state_of("waiter") == "failed"
    assert "its storage" in runtime.ok("status", "waiter")
    assert runtime.cagectl("start", "waiter").returncode == 1
    runtime.stop()
    away.rename(storage)
    runtime.start()
    runtime.ok("start", "waiter")
