# SPDX-License-Identifier: LGPL-2.1-or-later
"""The storage of cages and the id ranges that go with it: STATE/storage/UUID/{range,home}, root's alone.

A cage's record of its range *is* the allocation: the pool is what is read back from the records, so that a range
cannot be handed out twice whatever caged says, and comes free when its storage is gone.  Names of cages do not occur
here, and nothing in a parent directory of a home belongs to anybody but root, so that no link can lead astray.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from cage_runtime.errors import RuntimeFailure
from cage_runtime.model import FIRST_RANGE, ID_RANGE, LAST_RANGE, USER_UID
from cage_runtime.spawner.mount import Directory
from cage_runtime.spawner.root import new_home

_NEW, _GONE = ".new-", ".gone-"


class Storage:
    def __init__(self, persistent: Path, ephemeral: Path) -> None:
        self._directories = {False: persistent, True: ephemeral}
        for directory in self._directories.values():
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.chown(directory, 0, 0)
            directory.chmod(0o700)
        self._ranges: dict[str, int] = {}
        self._reserved = _subordinate_ranges()
        self._read_back()

    def _read_back(self) -> None:
        for directory in self._directories.values():
            for entry in directory.iterdir():
                if entry.name.startswith((_NEW, _GONE)):
                    _delete(entry).wait()
                else:
                    self._ranges[entry.name] = int((entry / "range").read_text(encoding="ascii"))

    def stored(self) -> list[str]:
        return list(self._ranges)

    @property
    def free(self) -> int:
        return LAST_RANGE - FIRST_RANGE + 1 - len(set(self._ranges.values()) | self._reserved)

    def base(self, uuid: str) -> int:
        """The first host id of the cage's range; KeyError where it has no storage."""
        return self._ranges[uuid] * ID_RANGE

    def home(self, uuid: str) -> Path | None:
        """The home to bind, None for an ephemeral cage."""
        path = self._directories[False] / uuid / "home"
        return path if path.is_dir() else None

    def make(self, uuid: str, *, ephemeral: bool) -> None:
        """An id range, and unless `ephemeral` a home; either all of it is there afterwards or nothing."""
        if uuid in self._ranges:
            raise RuntimeFailure(f"the cage {uuid} has storage already")
        number = self._lowest_free()
        parent = self._directories[ephemeral]
        fresh = parent / (_NEW + uuid)
        try:
            fresh.mkdir(mode=0o700)
            (fresh / "range").write_text(str(number), encoding="ascii")
            if not ephemeral:
                _make_home(fresh, number)
            fresh.rename(parent / uuid)
        except OSError as error:
            _delete(fresh).wait()
            raise RuntimeFailure(f"{parent} takes no storage for another cage: {error.strerror}") from error
        if not ephemeral:
            _sync(parent)
        self._ranges[uuid] = number

    def remove(self, uuid: str) -> subprocess.Popen[bytes] | None:
        """Delete the storage and give the range back; the process that is still deleting a home, if there is one.

        The home's old name is free at once; a deletion that is cut off is finished at the next start.
        """
        if uuid not in self._ranges:
            return None
        ephemeral, persistent = self._directories[True] / uuid, self._directories[False] / uuid
        deleting = None
        if ephemeral.is_dir():
            (ephemeral / "range").unlink()
            ephemeral.rmdir()
        else:
            gone = persistent.with_name(_GONE + uuid)
            persistent.rename(gone)
            deleting = _delete(gone)
        del self._ranges[uuid]
        return deleting

    def _lowest_free(self) -> int:
        used = set(self._ranges.values()) | self._reserved
        for number in range(FIRST_RANGE, LAST_RANGE + 1):
            if number not in used:
                return number
        raise RuntimeFailure("every id range for cages is in use; destroy a cage that is not needed")


def _make_home(fresh: Path, number: int) -> None:
    """The home of a cage with the id range `number`, on stable storage with the record of that."""
    owner = number * ID_RANGE + USER_UID
    Directory(path="/home", mode=0o700, owner=owner).execute(str(fresh))
    for step in new_home("/home", owner):
        step.execute(str(fresh))
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


def _delete(path: Path) -> subprocess.Popen[bytes]:
    """Delete a tree of a cage's making: rm(1) copes with any depth, follows no link and stays on the file system."""
    return subprocess.Popen(["/bin/rm", "-rf", "--one-file-system", "--", str(path)], stdin=subprocess.DEVNULL)
