# SPDX-License-Identifier: LGPL-2.1-or-later
"""The core half's notes: whole, and its own, or nothing; and a disk that takes no more."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import stat
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cage_runtime.errors import TransferFailed
from cage_runtime.model import KEPT_RECORD_BYTES
from mediators.files import kept
from mediators.files.kept import Folder, Record
from mediators.reading import TYPES_MAX
from mediators.stage import Staged

CONTENT = b"quarterly figures\n"
REQUEST = "0123456789abcdef" * 2


def record(request: str = REQUEST, **but: object) -> Record:
    whole = Record(
        request=request, since=1764200000, service="files.Send", source="uuid-work", source_name="work", asked="vault",
        target="vault", target_uuid="uuid-vault", name="figures.txt", tree=False, conflict="rename", transform="",
        log="", size=len(CONTENT), content=len(CONTENT), files=1, sha256="a" * 64)
    return msgspec.structs.replace(whole, **but)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    directory = tmp_path / "staging"
    directory.mkdir(0o700)
    return directory


@pytest.fixture
def staged(directory: Path) -> Staged:
    writable = os.open(directory, os.O_TMPFILE | os.O_RDWR, 0o600)
    os.write(writable, CONTENT)
    return Staged(owner="uuid-work", writable=writable, size=len(CONTENT), sha256="a" * 64)


def keep(directory: Path, staged: Staged) -> None:
    async def run() -> None:
        await Folder(directory).keep(record(), staged)

    asyncio.run(run())


def names(directory: Path) -> list[str]:
    return sorted(os.listdir(directory))


def test_what_is_kept_is_found_by_the_next_one(directory: Path, staged: Staged) -> None:
    Folder(directory).begin(record())
    keep(directory, staged)
    assert names(directory) == [f"{REQUEST}.copy", f"{REQUEST}.kept"]
    modes = {stat.S_IMODE((directory / name).stat().st_mode) for name in names(directory)}
    assert modes == {0o600}
    found = Folder(directory).load()
    assert (found.kept, found.begun, found.named, found.useless) == ([record()], [], [], [])
    again = found.kept[0].staged()
    Folder(directory).open(REQUEST, again)
    assert os.pread(again.descriptor, 100, 0) == CONTENT
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.write(again.descriptor, b"x")
    again.discard()
    Folder(directory).forget(REQUEST)
    assert names(directory) == []


def test_what_has_only_begun_says_how_far_it_was(directory: Path) -> None:
    folder = Folder(directory)
    folder.begin(record(size=0, content=0, files=0, sha256=""))
    assert [each.request for each in folder.load().begun] == [REQUEST]
    folder.pass_(REQUEST)
    assert [each.request for each in folder.load().named] == [REQUEST]
    folder.forget(REQUEST)
    folder.pass_(REQUEST)
    assert names(directory) == []


def test_all_of_it_is_on_disk_before_its_name_says_so(
    directory: Path, staged: Staged, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In this order, the machine may end at each step."""
    steps: list[str] = []

    def seen(name: str) -> None:
        call = getattr(os, name)

        def step(*arguments: object, **more: object) -> object:
            about = arguments[0]
            where = os.readlink(f"/proc/self/fd/{about}") if isinstance(about, int) else str(about)
            steps.append(f"{name} {'folder' if where == str(directory) else Path(where).suffix[:6] or 'copy'}")
            return call(*arguments, **more)

        monkeypatch.setattr(kept.os, name, step)

    for name in ("fsync", "link", "rename"):
        seen(name)
    folder = Folder(directory)
    assert folder._keep(record(), staged.writable) == b"kept"
    assert steps == ["fsync copy", "link copy", "fsync .new", "rename .new", "fsync folder"]


@pytest.mark.parametrize("fails", ["fsync", "link", "write", "rename"])
def test_a_disk_that_is_full_keeps_nothing_and_says_so(
    directory: Path, staged: Staged, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    def fail(*_: object, **_more: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(kept.os, fails, fail)
    with pytest.raises(TransferFailed, match="the core cannot keep it: No space left on device"):
        keep(directory, staged)
    assert names(directory) == []


def test_nor_does_one_that_takes_a_part(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept.os, "write", lambda _descriptor, content: len(content) - 1)
    with pytest.raises(TransferFailed, match="the core cannot note it down: No space left on device"):
        Folder(directory).begin(record())


def test_a_process_that_dies_while_it_keeps_it_is_a_failure(
    directory: Path, staged: Staged, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept.os, "fsync", lambda _descriptor: os._exit(1))
    with pytest.raises(TransferFailed, match="the process that writes it failed"):
        keep(directory, staged)
    assert names(directory) == []


def test_whoever_gives_it_up_meanwhile_leaves_nothing(
    directory: Path, staged: Staged, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it was on disk already, and nobody had been told."""
    def stand_still(*_: object, **__: object) -> None:
        os.kill(os.getppid(), signal.SIGUSR1)
        signal.pause()

    monkeypatch.setattr(kept.os, "rename", stand_still)

    async def run() -> None:
        written = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, written.set)
        keeping = asyncio.ensure_future(Folder(directory).keep(record(), staged))
        async with asyncio.timeout(20):
            await written.wait()
        assert f"{REQUEST}.copy" in names(directory)
        keeping.cancel()
        with pytest.raises(asyncio.CancelledError):
            await keeping

    asyncio.run(run())
    assert names(directory) == []


@pytest.mark.parametrize("longest", ["ä" * 127, '"' * 255, "\U0001f600" * 63])
def test_the_longest_record_is_read_back(directory: Path, longest: str) -> None:
    whole = record(name=longest, target="t" * 31, types=("application/" + "x" * 60,) * TYPES_MAX, transform="e" * 64)
    assert len(msgspec.json.encode(whole)) < KEPT_RECORD_BYTES
    Folder(directory).begin(whole)
    assert Folder(directory).load().begun == [whole]


FOUND: list[tuple[dict[str, object], str]] = [
    ({"source": ""}, "`$.source`"), ({"source": "u" * 65}, "`$.source`"), ({"name": "a/b"}, 'it has a "/"'),
    ({"name": ""}, "it is empty"), ({"conflict": "merge"}, "no conflict policy"), ({"service": "open.Uri"}, "service"),
    ({"asked": "../x"}, "cannot be a cage's name"), ({"source_name": "Work"}, "cannot be a cage's name"),
    ({"size": 0}, "does not say what was kept"), ({"sha256": ""}, "does not say what was kept"),
    ({"sha256": "g" * 64}, "sha256"), ({"target_uuid": ""}, "does not say what was kept"),
    ({"size": 65 << 30}, "`$.size`"), ({"types": ("x",) * (TYPES_MAX + 1)}, "types"), ({"since": -1}, "since"),
    ({"version": 2}, "version"),
]


@pytest.mark.parametrize(("but", "says"), FOUND)
def test_a_record_that_says_what_cannot_be_is_set_aside(directory: Path, but: dict[str, object], says: str) -> None:
    file = directory / f"{REQUEST}.kept"
    file.write_bytes(msgspec.json.encode(record(**but)))
    file.chmod(0o600)
    found = Folder(directory).load()
    assert found.kept == []
    (useless,) = found.useless
    assert says in useless.fault
    assert names(directory) == [f"aside-{REQUEST}.kept"]
    assert Folder(directory).load().useless == []


@settings(max_examples=200)
@given(untrusted=st.binary(max_size=300))
def test_any_bytes_are_no_record_and_stop_nothing(tmp_path_factory: pytest.TempPathFactory, untrusted: bytes) -> None:
    directory = tmp_path_factory.mktemp("staging")
    for kind in ("kept", "begun", "named"):
        (directory / f"{REQUEST}.{kind}").write_bytes(untrusted)
        (directory / f"{REQUEST}.{kind}").chmod(0o600)
    found = Folder(directory).load()
    assert (found.kept, found.begun, found.named) == ([], [], [])


def test_what_cannot_be_set_aside_stops_nothing_either(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (directory / f"{REQUEST}.kept").write_bytes(b"{}")

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(kept.os, "rename", refuse)
    assert len(Folder(directory).load().useless) == 1
    assert names(directory) == [f"{REQUEST}.kept"]


Damage = Callable[[Path], object]


@pytest.mark.parametrize("damage", [
    lambda copy: copy.unlink(), lambda copy: os.truncate(copy, 1), lambda copy: copy.chmod(0o640),
    lambda copy: os.link(copy, copy.with_name("more")), lambda copy: (copy.unlink(), copy.symlink_to("more")),
    lambda copy: (copy.unlink(), os.mkfifo(copy)),
])
def test_a_copy_that_is_not_the_one_that_was_kept_is_not_opened(
    directory: Path, staged: Staged, damage: Damage
) -> None:
    keep(directory, staged)
    damage(directory / f"{REQUEST}.copy")
    again = record().staged()
    with pytest.raises(TransferFailed, match="its copy"):
        Folder(directory).open(REQUEST, again)
    assert (again.writable, again.descriptor) == (-1, -1)
