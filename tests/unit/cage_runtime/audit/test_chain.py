# SPDX-License-Identifier: LGPL-2.1-or-later
"""The chain: what is written stays, what was torn is cut and said, and every change inside it is found."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from cage_runtime.audit.chain import Chain
from cage_runtime.audit.event import Kind
from cage_runtime.errors import RuntimeFailure

FIRST = "000001.jsonl"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "audit"


def fill(directory: Path, count: int, file_bytes: int = 1 << 20) -> None:
    with Chain.open(directory, file_bytes=file_bytes) as chain:
        for number in range(count):
            chain.append(Kind.CAGE_STARTED, {"number": str(number)}, durable=False)


def numbers(chain: Chain, count: int = 1000) -> list[str]:
    return [json.loads(line)["fields"].get("number", json.loads(line)["kind"]) for line in chain.tail(count)]


def test_a_new_chain(directory: Path) -> None:
    with Chain.open(directory) as chain:
        assert (chain.tail(5), chain.verify()) == ([], None)
        chain.append(Kind.CORE_STARTED, {"version": "1"})
        assert chain.verify() is None
        found = json.loads(chain.tail(5)[0])
    assert (found["sequence"], found["kind"], found["fields"]) == (1, "core-started", {"version": "1"})
    assert directory.stat().st_mode & 0o7777 == 0o700
    assert (directory / FIRST).stat().st_mode & 0o7777 == 0o600


def test_it_goes_on_after_it_was_closed(directory: Path) -> None:
    for _ in range(3):
        fill(directory, 2)
    with Chain.open(directory) as chain:
        assert numbers(chain) == ["0", "1"] * 3
        assert chain.verify() is None


def test_a_clock_that_goes_back_changes_no_order_and_is_told(directory: Path) -> None:
    """Records follow one another by their numbers; the time is what the host's clock said, and no more."""
    noon = datetime(2026, 1, 1, 12, tzinfo=UTC)
    moments = [noon, noon - timedelta(days=400), noon + timedelta(seconds=1), noon - timedelta(seconds=1)]
    clock = iter(moments)
    for number in range(4):  # as of one core after another
        with Chain.open(directory, file_bytes=300, clock=lambda: next(clock)) as chain:
            chain.append(Kind.CAGE_STARTED, {"number": str(number)})
            assert chain.verify() is None
    with Chain.open(directory) as chain:
        back = "clock-set-back"
        assert numbers(chain) == ["0", back, "1", "2", back, "3"]
        records = [json.loads(line) for line in chain.tail(9)]
        assert [record["sequence"] for record in records] == [1, 2, 3, 4, 5, 6]
        said = [datetime.fromisoformat(record["time"]) for record in records if record["kind"] != back]
        assert said == moments
        assert [record["fields"] for record in records if record["kind"] == back] == [
            {"to": "2024-11-27T12:00:00.000000Z", "why": "record 1 is of 2026-01-01T12:00:00.000000Z"},
            {"to": "2026-01-01T11:59:59.000000Z", "why": "record 4 is of 2026-01-01T12:00:01.000000Z"}]
        assert chain.verify() is None


def test_a_clock_that_is_kept_right_is_not_told_of(directory: Path) -> None:
    noon = datetime(2026, 1, 1, 12, tzinfo=UTC)
    clock = iter([noon, noon - timedelta(seconds=1), noon])
    with Chain.open(directory, clock=lambda: next(clock)) as chain:
        for number in range(3):
            chain.append(Kind.CAGE_STARTED, {"number": str(number)})
        assert numbers(chain) == ["0", "1", "2"]


def test_it_goes_on_over_files(directory: Path) -> None:
    for _ in range(3):
        fill(directory, 10, file_bytes=1000)
    assert len(list(directory.iterdir())) > 5
    with Chain.open(directory) as chain:
        assert chain.verify() is None
        assert numbers(chain) == [str(number) for number in range(10)] * 3
        assert numbers(chain, 15) == [*map(str, range(5, 10)), *map(str, range(10))]


@pytest.mark.parametrize("count", [-1, 0])
def test_a_tail_of_nothing(directory: Path, count: int) -> None:
    fill(directory, 2)
    with Chain.open(directory) as chain:
        assert chain.tail(count) == []


def test_a_last_record_cut_at_any_byte_is_recovered(directory: Path, tmp_path: Path) -> None:
    fill(directory, 3)
    whole = (directory / FIRST).read_bytes()
    begin = whole.rstrip(b"\n").rfind(b"\n") + 1
    for end in range(begin, len(whole) + 1):
        torn = tmp_path / str(end)
        torn.mkdir(mode=0o700)
        (torn / FIRST).write_bytes(whole[:end])
        with Chain.open(torn) as chain:
            assert chain.verify() is None
            if end in (begin, len(whole)):
                assert numbers(chain) == ["0", "1", "2"][: 2 if end == begin else 3]
                continue
            assert numbers(chain) == ["0", "1", "recovered"]
            assert json.loads(chain.tail(1)[0])["fields"] == {"bytes-cut": str(end - begin)}


def test_only_a_torn_first_record(directory: Path) -> None:
    directory.mkdir(mode=0o700)
    (directory / FIRST).write_bytes(b"\0" * 4096)
    with Chain.open(directory) as chain:
        assert numbers(chain) == ["recovered"]
        assert chain.verify() is None


def test_a_kill_between_two_files_leaves_an_empty_one(directory: Path) -> None:
    fill(directory, 3)
    (directory / "000002.jsonl").touch(mode=0o600)
    fill(directory, 1)
    with Chain.open(directory) as chain:
        assert numbers(chain) == ["0", "1", "2", "0"]
        assert chain.verify() is None


def test_a_torn_record_at_the_beginning_of_a_file(directory: Path) -> None:
    fill(directory, 3)
    (directory / "000002.jsonl").write_bytes(b'{"fields"')
    with Chain.open(directory) as chain:
        assert numbers(chain) == ["0", "1", "2", "recovered"]
        assert chain.verify() is None


def flip(lines: list[bytes]) -> list[bytes]:
    return [lines[0], lines[1].replace(b'"number":"1"', b'"number":"7"'), *lines[2:]]


CHANGES: list[tuple[Callable[[list[bytes]], list[bytes]], str]] = [
    (flip, ":2: the record was changed after it was written"),
    (lambda lines: lines[:1] + lines[2:], ":2: record 3 stands where record 2 should"),
    (lambda lines: lines[1:], ":1: record 2 stands where record 1 should"),
    (lambda lines: [lines[0], lines[2], lines[1], *lines[3:]], ":2: record 3 stands where record 2 should"),
    (lambda lines: [*lines[:2], lines[1], *lines[2:]], ":3: record 2 stands where record 3 should"),
    (lambda lines: [*lines[:2], b"\n", *lines[2:]], ":3: the record is not a record"),
    (lambda lines: [*lines[:2], b"x" * 300_000 + b"\n", *lines[2:]], ":3: the record is not a record"),
]


@pytest.mark.parametrize(("change", "fault"), CHANGES)
def test_a_change_is_found(directory: Path, change: Callable[[list[bytes]], list[bytes]], fault: str) -> None:
    fill(directory, 5)
    file = directory / FIRST
    file.write_bytes(b"".join(change(file.read_bytes().splitlines(keepends=True))))
    with Chain.open(directory) as chain:
        assert chain.verify() == f"{file}{fault}"


def test_a_record_of_another_chain_is_found(directory: Path, tmp_path: Path) -> None:
    fill(directory, 3)
    fill(tmp_path / "other", 3)
    lines = (directory / FIRST).read_bytes().splitlines(keepends=True)
    foreign = (tmp_path / "other" / FIRST).read_bytes().splitlines(keepends=True)
    (directory / FIRST).write_bytes(b"".join([*lines[:2], foreign[2]]))
    with Chain.open(directory) as chain:
        assert chain.verify() == f"{directory / FIRST}:3: record 3 does not follow from the record before it"


def test_a_missing_file_is_found(directory: Path) -> None:
    fill(directory, 10, file_bytes=500)
    (directory / "000002.jsonl").unlink()
    with Chain.open(directory) as chain:
        assert chain.verify() == f"{directory / '000002.jsonl'}: cannot be read: No such file or directory"


def test_records_cut_off_while_it_is_open_are_missed(directory: Path) -> None:
    fill(directory, 3)
    with Chain.open(directory) as chain:
        lines = (directory / FIRST).read_bytes().splitlines(keepends=True)
        os.truncate(directory / FIRST, len(lines[0]))
        assert chain.verify() == f"{directory}: ends with record 1, but record 3 was written"


def test_a_damaged_end_is_kept_as_evidence_and_the_chain_goes_on(directory: Path) -> None:
    fill(directory, 3)
    file = directory / FIRST
    damaged = file.read_bytes().replace(b'"number":"2"', b'"number":"9"')
    file.write_bytes(damaged)
    with Chain.open(directory) as chain:
        assert json.loads(chain.tail(1)[0])["fields"] == {"bytes-cut": "0", "damaged-file": FIRST}
        assert chain.verify() == f"{file}:3: the record was changed after it was written"
    assert file.read_bytes() == damaged
    fill(directory, 1)
    with Chain.open(directory) as chain:
        assert numbers(chain, 1) == ["0"]


def test_two_cores_cannot_write(directory: Path) -> None:
    with Chain.open(directory), pytest.raises(RuntimeFailure, match="is in use by another core"):
        Chain.open(directory)
    Chain.open(directory).close()


def test_a_directory_that_others_may_enter_is_refused(directory: Path) -> None:
    directory.mkdir()
    directory.chmod(0o750)
    with pytest.raises(RuntimeFailure, match="must belong to the core's user alone"):
        Chain.open(directory)


def test_a_link_in_place_of_the_directory_is_refused(directory: Path, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir(mode=0o700)
    directory.symlink_to(tmp_path / "real")
    with pytest.raises(RuntimeFailure, match="cannot be opened"):
        Chain.open(directory)


def test_a_link_in_place_of_a_file_is_refused(directory: Path, tmp_path: Path) -> None:
    directory.mkdir(mode=0o700)
    (directory / FIRST).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RuntimeFailure, match="cannot be opened"):
        Chain.open(directory)
    assert not (tmp_path / "elsewhere").exists()


def test_a_missing_parent_is_a_sentence(directory: Path) -> None:
    with pytest.raises(RuntimeFailure, match="cannot be opened: No such file or directory"):
        Chain.open(directory / "deeper")


def test_nothing_is_left_open(directory: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    fill(directory, 10, file_bytes=500)
    directory.chmod(0o755)
    with pytest.raises(RuntimeFailure):
        Chain.open(directory)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_full_disk_refuses_and_leaves_nothing_of_the_record(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write

    def half(descriptor: int, line: bytes) -> int:
        return real(descriptor, line[: len(line) // 2])

    with Chain.open(directory) as chain:
        chain.append(Kind.DECISION, {"number": "0"})
        with monkeypatch.context() as full:
            full.setattr(os, "write", half)
            with pytest.raises(RuntimeFailure, match="no audit record can be written"):
                chain.append(Kind.DECISION, {"number": "lost"})
        chain.append(Kind.DECISION, {"number": "1"})
        assert numbers(chain) == ["0", "1"]
        assert chain.verify() is None


def test_a_disk_that_cannot_even_be_cut_ends_the_chain(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with Chain.open(directory) as chain:
        with monkeypatch.context() as broken:
            broken.setattr(os, "fdatasync", fail)
            broken.setattr(os, "ftruncate", fail)
            with pytest.raises(RuntimeFailure, match="Input/output error"):
                chain.append(Kind.DECISION, {})
        with pytest.raises(RuntimeFailure, match="takes no more records"):
            chain.append(Kind.DECISION, {})


def test_a_record_is_found_by_its_hash_in_whichever_file_it_is(directory: Path) -> None:
    fill(directory, 40, file_bytes=2000)
    with Chain.open(directory) as chain:
        lines = chain.tail(1000)
        assert len(list(directory.glob("*.jsonl"))) > 3
        for line in lines:
            assert chain.find(json.loads(line)["hash"]) == [line]
        assert chain.find(json.loads(lines[3])["previous"]) == [lines[2]]
        assert chain.find("0" * 64) == []
        added = chain.append(Kind.DECISION, {"why": "x"})
        assert chain.find(added.hash) == chain.tail(1)


def test_a_record_that_quotes_a_hash_or_was_changed_is_not_found_by_it(directory: Path) -> None:
    wanted = "a" * 64
    with Chain.open(directory) as chain:
        chain.append(Kind.DECISION, {"why": f'"hash":"{wanted}"', f'"hash":"{wanted}"': "x"})
        assert chain.find(wanted) == []
        real = chain.append(Kind.DECISION, {"number": "1"}).hash
    file = directory / FIRST
    file.write_bytes(file.read_bytes().replace(b'"number":"1"', b'"number":"2"'))
    with Chain.open(directory) as chain:
        assert chain.find(real) == []


def test_a_closed_chain_takes_nothing(directory: Path) -> None:
    chain = Chain.open(directory)
    chain.close()
    chain.close()
    with pytest.raises(RuntimeFailure, match="takes no more records"):
        chain.append(Kind.DECISION, {})


COMINGS = {"cage-created", "cage-started", "cage-adopted", "cage-paused", "cage-resumed", "cage-stopped", "cage-failed",
           "cage-destroyed"}


@pytest.mark.parametrize("kind", Kind)
def test_a_record_is_synchronised_before_append_returns(
    directory: Path, monkeypatch: pytest.MonkeyPatch, kind: Kind
) -> None:
    """All are, but for a cage's comings and goings where whoever records says so: what it did is not one."""
    calls: list[str] = []
    real_write, real_sync = os.write, os.fdatasync

    def write(descriptor: int, line: bytes) -> int:
        calls.append("write")
        return real_write(descriptor, line)

    def sync(descriptor: int) -> None:
        calls.append("sync")
        real_sync(descriptor)

    monkeypatch.setattr(os, "write", write)
    monkeypatch.setattr(os, "fdatasync", sync)
    with Chain.open(directory) as chain:
        chain.append(kind, {})
        chain.append(kind, {}, durable=False)
    assert calls == ["write", "sync", "write"] + (["sync"] if kind.value not in COMINGS else [])


WRITER = """
import sys
from pathlib import Path
from cage_runtime.audit.chain import Chain
from cage_runtime.audit.event import Kind
with Chain.open(Path(sys.argv[1]), file_bytes=5000) as chain:
    print("writing", flush=True)
    while True:
        chain.append(Kind.CAGE_STARTED, {"number": "x" * 300}, durable=False)
"""


def test_a_killed_core_leaves_a_sound_chain(directory: Path) -> None:
    for _ in range(5):
        command = [sys.executable, "-c", WRITER, str(directory)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[4]) as writer:
            assert writer.stdout
            assert writer.stdout.readline() == b"writing\n"
            writer.send_signal(signal.SIGKILL)
        with Chain.open(directory) as chain:
            assert chain.verify() is None
    shutil.rmtree(directory)
