# SPDX-License-Identifier: LGPL-2.1-or-later
"""On a full disk nothing begins, and everything can still be brought to an end and recorded (law 11)."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from cage_runtime.audit.chain import Chain
from cage_runtime.audit.event import Kind
from cage_runtime.audit.reserve import NAME, RESERVE_BYTES
from cage_runtime.errors import RuntimeFailure


class Disk:
    """A disk that others fill: of what the chain has on it, only the reserve can be given up."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.full = False
        self._reserve = directory / NAME
        self._write, self._fallocate = os.write, os.posix_fallocate
        monkeypatch.setattr(os, "write", self.write)
        monkeypatch.setattr(os, "posix_fallocate", self.fallocate)

    def write(self, descriptor: int, content: bytes) -> int:
        if self.full and self._reserve.exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self._write(descriptor, content)

    def fallocate(self, descriptor: int, offset: int, size: int) -> None:
        if self.full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._fallocate(descriptor, offset, size)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "audit"


@pytest.fixture
def disk(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(directory, monkeypatch)


@pytest.fixture
def chain(directory: Path, disk: Disk) -> Iterator[Chain]:
    del disk
    with Chain.open(directory) as chain:
        chain.append(Kind.CAGE_STARTED, {"cage": "work"})
        yield chain


def kinds(chain: Chain) -> list[str]:
    return [line.partition('"kind":"')[2].partition('"')[0] for line in chain.tail(100)]


def test_the_reserve_is_held_from_the_first_record_on(directory: Path, chain: Chain) -> None:
    assert (directory / NAME).stat().st_size == RESERVE_BYTES
    assert kinds(chain) == ["cage-started"]


def test_nothing_begins_on_a_full_disk(chain: Chain, disk: Disk) -> None:
    disk.full = True
    with pytest.raises(RuntimeFailure, match=r"no audit record can be written in .*: No space left on device; make r"):
        chain.append(Kind.CAGE_ENTERED, {"cage": "work"})
    assert kinds(chain) == ["cage-started"]
    assert chain.verify() is None


def test_what_ends_something_is_recorded_in_the_reserve(directory: Path, chain: Chain, disk: Disk) -> None:
    disk.full = True
    chain.append(Kind.CAGE_STOPPED, {"cage": "work"})
    assert not (directory / NAME).exists()
    chain.append(Kind.CAGE_DESTROYED, {"cage": "work"})
    assert kinds(chain) == ["cage-started", "cage-stopped", "cage-destroyed"]
    assert chain.verify() is None


def test_what_was_given_up_is_not_for_others(chain: Chain, disk: Disk) -> None:
    disk.full = True
    chain.append(Kind.CAGE_STOPPED, {"cage": "work"})
    with pytest.raises(RuntimeFailure, match="No space left on device"):
        chain.append(Kind.DECISION, {"cage": "work"})


def test_the_reserve_is_held_again_once_there_is_room(directory: Path, chain: Chain, disk: Disk) -> None:
    disk.full = True
    chain.append(Kind.CAGE_STOPPED, {"cage": "work"})
    disk.full = False
    chain.append(Kind.CAGE_STARTED, {"cage": "work"})
    assert (directory / NAME).stat().st_size == RESERVE_BYTES
