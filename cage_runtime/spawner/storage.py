# SPDX-License-Identifier: LGPL-2.1-or-later
"""The storage of cages and the id ranges that go with it: STATE/storage/UUID/{range,home,private}, root's alone.

A cage's record of its range *is* the allocation: the pool is what is read back from the records, so that a range
cannot be handed out twice whatever caged says, and comes free when its storage is gone.  Names of cages do not occur
here, and nothing in a parent directory of a home belongs to anybody but root, so that no link can lead astray.

A home that was once kept is deleted for one reason: its cage was destroyed by request.  That a cage is unknown to
caged is none; a registry can be lost, and what people wrote must not go with it.
"""

from __future__ import annotations

import errno
import os
import re
import subprocess
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from cage_runtime.errors import RuntimeFailure, WrongState
from cage_runtime.model import FIRST_RANGE, ID_RANGE, LAST_RANGE, USER_UID
from cage_runtime.spawner.mount import Directory, Root, Source, exact_modes, opened
from cage_runtime.spawner.root import USER_DIRECTORIES, new_home

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
PRIVATE = "private"
"""A file beside the home of a private cage."""
LOOKED_AT_MAX = 10_000
"""Entries of a home; they are read in some milliseconds, and all cages wait meanwhile."""


class Stage(StrEnum):
    """How far a cage's storage is; the value is the prefix of its directory's name."""

    NEW = ".new-"
    """Made, and its cage not yet written down: worth nothing without it."""
    KEPT = ""
    """A cage's: never removed but by a request that condemns it first."""
    GONE = ".gone-"
    """Its cage is destroyed, whatever else has been done about that."""


_ENTRY = re.compile(r"(?P<stage>\.new-|\.gone-|)(?P<uuid>[0-9a-f]{32})")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Place:
    parent: Path
    stage: Stage
    number: int
    """Of the id range."""
    private: bool = False
    """Whatever a birth says, the cage that has this home is private."""


class Storage:
    def __init__(self, persistent: Path, ephemeral: Path, numbers: range) -> None:
        """In these two directories, with id ranges out of `numbers`."""
        self._persistent, self._ephemeral, self._numbers = persistent, ephemeral, numbers
        for directory in (persistent, ephemeral):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._places: dict[str, _Place] = {}
        self.faults: list[str] = []
        """What is there and cannot be used, a sentence each."""
        self._reserved = _subordinate_ranges()
        for directory in (persistent, ephemeral):
            self._read_back(directory)

    def _read_back(self, parent: Path) -> None:
        for entry in parent.iterdir():
            found = _ENTRY.fullmatch(entry.name)
            if found is None:
                continue  # the file system's own, such as lost+found
            stage, uuid = Stage(found["stage"]), found["uuid"]
            number = _recorded(entry)
            if number is not None:
                private = (entry / PRIVATE).exists()
                self._places[uuid] = _Place(parent=parent, stage=stage, number=number, private=private)
            elif parent == self._persistent and stage is Stage.KEPT:
                self.faults.append(f"{entry} has neither a record of its id range nor a home, and is left alone")
            else:
                delete(entry).wait()  # cut off before it was whole, or after it was not any more

    def listed(self, stage: Stage, *, ephemeral: bool = False) -> list[str]:
        """The cages whose storage is that far."""
        parent = self._ephemeral if ephemeral else self._persistent
        return [uuid for uuid, place in self._places.items() if place.stage is stage and place.parent == parent]

    @property
    def free(self) -> int:
        return len(set(self._numbers) - self._used())

    def base(self, uuid: str) -> int:
        """The first host id of the cage's range; KeyError where it has no storage, or condemned one.

        RuntimeFailure where storage that was away for a while has come back and shares it with another's.
        """
        place = self._places[uuid]
        if place.stage is Stage.GONE:
            raise KeyError(uuid)
        if [other.number for other in self._places.values()].count(place.number) > 1:
            raise RuntimeFailure(f"the storage of {uuid} has the same id range as another's; keep one of the two")
        return place.number * ID_RANGE

    def home(self, uuid: str) -> Path | None:
        """The home to bind, None for an ephemeral cage; KeyError where it has no storage."""
        place = self._places[uuid]
        return None if place.parent == self._ephemeral else place.parent / (place.stage + uuid) / "home"

    def open_home(self, uuid: str) -> Source | None:
        """The home to bind, held open, None for an ephemeral cage; KeyError where it has no storage.

        RuntimeFailure says what keeps it from being the cage's.
        """
        place = self._places[uuid]
        if place.parent == self._ephemeral:
            return None
        name, first = f"{place.stage}{uuid}/home", place.number * ID_RANGE
        home = place.parent / name
        with opened(os.open(place.parent, _FOLDER & ~os.O_NOFOLLOW)) as directory:  # an administrator's link may be
            try:
                source = Source(name=str(home), descriptor=Root(directory).open(name))
            except OSError as error:
                if error.errno != errno.ENOENT:
                    raise RuntimeFailure(f"{home} is no directory of the cage's: {error.strerror}") from error
                raise RuntimeFailure(f"{home} is missing; restore it from a backup, or destroy the cage") from error
        uid = os.fstat(source.descriptor).st_uid
        if first <= uid < first + ID_RANGE:
            return source
        os.close(source.descriptor)
        owner = first + USER_UID
        raise RuntimeFailure(
            f"{home} belongs to uid {uid} and has to belong to the cage's user: chown -R {owner}:{owner} {home}")

    def private(self, uuid: str) -> bool:
        """Whether it was made for a private cage, which that one is for good."""
        return self._places[uuid].private

    def make(self, uuid: str, *, ephemeral: bool, private: bool = False) -> None:
        """An id range, and unless `ephemeral` a new home, to be kept; either all of it is there or nothing."""
        if uuid in self._places:
            raise RuntimeFailure(f"the cage {uuid} has storage already")
        parent, stage = (self._ephemeral, Stage.KEPT) if ephemeral else (self._persistent, Stage.NEW)
        place = _Place(parent=parent, stage=stage, number=self._lowest_free(), private=private)
        directory = parent / (stage + uuid)
        try:
            directory.mkdir(mode=0o700)
            if private:
                (directory / PRIVATE).touch()
            (directory / "range").write_text(str(place.number), encoding="ascii")
            if not ephemeral:
                _make_home(directory, place.number)
        except OSError as error:
            delete(directory).wait()
            raise RuntimeFailure(f"{parent} takes no storage for another cage: {error.strerror}") from error
        self._places[uuid] = place

    def keep(self, uuid: str) -> None:
        """The cage is written down: from now on its home is somebody's.  What is condemned stays so."""
        place = self._places.get(uuid)
        if place is not None and place.stage is Stage.GONE:
            raise WrongState(f"the storage of {uuid} is condemned")
        self._move(uuid, Stage.KEPT)

    def condemn(self, uuid: str) -> None:
        """The cage is destroyed, from this moment on and whatever comes; its range is not free before `remove`."""
        if uuid in self._places:
            self._move(uuid, Stage.GONE)

    def _move(self, uuid: str, stage: Stage) -> None:
        place = self._places.get(uuid)
        if place is None:
            raise RuntimeFailure(f"the cage {uuid} has no storage")
        if place.stage is not stage:
            (place.parent / (place.stage + uuid)).rename(place.parent / (stage + uuid))
        # Also where nothing moves: a spawner that was killed has come as far as that, and was asked again.
        _sync(place.parent)
        self._places[uuid] = replace(place, stage=stage)

    def remove(self, uuid: str) -> subprocess.Popen[bytes] | None:
        """Delete storage that is not kept, or an ephemeral cage's, and give the range back.

        Answers with the process that is deleting a home, if there is one: when it has ended well, `removed` has to be
        called, and until then the range is in use.  Nothing happens where there is no storage.
        """
        place = self._places.get(uuid)
        if place is None:
            return None
        directory = place.parent / (place.stage + uuid)
        if place.parent == self._ephemeral:
            for name in ("range", PRIVATE):
                (directory / name).unlink(missing_ok=True)
            directory.rmdir()
            self.removed(uuid)
            return None
        if place.stage is Stage.KEPT:
            raise WrongState(f"the storage of {uuid} is kept; it has to be condemned before it is deleted")
        if mounted := _mounted_below(directory):
            raise RuntimeFailure(f"{mounted} is mounted in the storage of {uuid}, which cannot be deleted with it; "
                                 "unmount it, and the rest is deleted when the core starts again")
        return delete(directory)

    def removed(self, uuid: str) -> None:
        """Nothing is left of it, so nothing has ids of its range any more."""
        self._places.pop(uuid, None)

    def _used(self) -> set[int]:
        return {place.number for place in self._places.values()} | self._reserved

    def _lowest_free(self) -> int:
        used = self._used()
        for number in self._numbers:
            if number not in used:
                return number
        raise RuntimeFailure("every id range for cages is in use; destroy a cage that is not needed")


def _make_home(fresh: Path, number: int) -> None:
    """The home of a cage with the id range `number`, on stable storage with the record of that."""
    owner = number * ID_RANGE + USER_UID
    with opened(os.open(fresh, _FOLDER)) as directory, exact_modes():
        for step in (Directory(path="/home", mode=0o700, owner=owner), *new_home("/home", owner)):
            step.execute(Root(directory))
    _sync(fresh / "range")
    _sync(fresh)


def _subordinate_ranges() -> set[int]:
    """Ranges that /etc/subuid or /etc/subgid gives to somebody else."""
    taken: set[int] = set()
    for file in ("/etc/subuid", "/etc/subgid"):
        try:
            lines = Path(file).read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            continue
        for line in lines:
            parts = line.split(":")
            if len(parts) == 3 and parts[1].isdigit() and parts[2].isdigit() and int(parts[2]):
                first, last = int(parts[1]), int(parts[1]) + int(parts[2]) - 1
                taken.update(range(max(FIRST_RANGE, first // ID_RANGE), min(LAST_RANGE, last // ID_RANGE) + 1))
    return taken


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def holds_documents(home: Path) -> bool:
    """Whether somebody has put anything where documents are; what programs keep in hidden directories is not asked for.

    It all belongs to a cage: no link is followed, each directory is read up to its first entry that counts, and a home
    with more than LOOKED_AT_MAX that do not is taken for one with documents.
    """
    with opened(os.open(home, _FOLDER)) as top, os.scandir(top) as entries:
        for number, entry in enumerate(entries):
            if number == LOOKED_AT_MAX:
                return True
            if entry.name.startswith("."):
                continue
            if entry.name not in USER_DIRECTORIES.values() or not entry.is_dir(follow_symlinks=False):
                return True
            with opened(os.open(entry.name, _FOLDER, dir_fd=top)) as inner, os.scandir(inner) as documents:
                if next(documents, None) is not None:
                    return True
    return False


def _recorded(entry: Path) -> int | None:
    """The number of the range of the cage whose storage `entry` is: as recorded, or as its home has it."""
    try:
        return int((entry / "range").read_text(encoding="ascii"))
    except (FileNotFoundError, ValueError):
        pass
    try:
        number = (entry / "home").lstat().st_uid // ID_RANGE
    except FileNotFoundError:
        return None
    return number if FIRST_RANGE <= number <= LAST_RANGE else None


def _mounted_below(directory: Path) -> str | None:
    """A mount of somebody else's at or below `directory`: rm(1) would delete what is in it (proc(5), mountinfo)."""
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        place = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), line.split(" ")[4])
        if Path(place).is_relative_to(directory):
            return place
    return None


def delete(*paths: Path) -> subprocess.Popen[bytes]:
    """Delete trees of others' making: rm(1) copes with any depth, follows no link and stays on the file system."""
    return subprocess.Popen(["/bin/rm", "-rf", "--one-file-system", "--", *map(str, paths)], stdin=subprocess.DEVNULL)
