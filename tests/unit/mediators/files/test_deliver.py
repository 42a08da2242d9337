# SPDX-License-Identifier: LGPL-2.1-or-later
"""The delivery half in a home of its own: whole, checked, or invisible (M21, M22, M23, M25, M28)."""

from __future__ import annotations

import hashlib
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from mediators import digest
from mediators.files import deliver as half
from mediators.files import protocol
from mediators.files.deliver import Undelivered
from mediators.files.protocol import CROWDED, DAMAGED, FULL, INBOX, WITHDRAWN, Delivery

TOP = Path(__file__).parents[4]
CONTENT = b"quarterly figures\n"
SECONDS = 10.0


@pytest.fixture
def home(tmp_path: Path) -> Path:
    home = tmp_path / "home"
    home.mkdir()
    return home


@pytest.fixture
def staged(tmp_path: Path) -> Callable[[bytes], int]:
    def stage(content: bytes) -> int:
        file = tmp_path / "staged"
        file.write_bytes(content)
        return os.open(file, os.O_RDONLY)

    return stage


Staged = Callable[[bytes], int]


def announced(name: str = "figures.txt", content: bytes = CONTENT, size: int | None = None) -> Delivery:
    digest = hashlib.sha256(content).hexdigest()
    return Delivery(source="work", name=name, size=len(content) if size is None else size, sha256=digest)


def deliver(staged: int, home: str, delivery: Delivery) -> int:
    """With a core half that has no objection."""
    return half.deliver(staged, home, delivery, lambda: None)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, "it has not come about"


def everything(home: Path) -> list[str]:
    return sorted(str(path.relative_to(home)) for path in home.rglob("*"))


def test_a_file_arrives_with_plain_modes(home: Path, staged: Staged) -> None:
    assert deliver(staged(CONTENT), str(home), announced()) == 1
    arrived = home / "Inbox/work/figures.txt"
    assert arrived.read_bytes() == CONTENT
    assert stat.S_IMODE(arrived.stat().st_mode) == 0o644
    assert everything(home) == ["Inbox", "Inbox/work", "Inbox/work/figures.txt"]


def test_the_shared_position_of_the_descriptor_does_not_matter(home: Path, staged: Staged) -> None:
    descriptor = staged(CONTENT)
    os.lseek(descriptor, 5, os.SEEK_SET)
    deliver(descriptor, str(home), announced())
    assert (home / "Inbox/work/figures.txt").read_bytes() == CONTENT


def test_a_taken_name_is_left_alone(home: Path, staged: Staged) -> None:
    (home / "Inbox/work").mkdir(parents=True)
    (home / "Inbox/work/figures.txt").write_text("mine")
    (home / "Inbox/work/figures (2).txt").symlink_to("/etc/passwd")
    assert deliver(staged(CONTENT), str(home), announced()) == 3
    assert (home / "Inbox/work/figures.txt").read_text() == "mine"
    assert (home / "Inbox/work/figures (2).txt").is_symlink()
    assert (home / "Inbox/work/figures (3).txt").read_bytes() == CONTENT


def test_a_full_series_of_names_ends(home: Path, staged: Staged, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "RENAMES_MAX", 2)
    deliver(staged(CONTENT), str(home), announced())
    deliver(staged(CONTENT), str(home), announced())
    with pytest.raises(Undelivered) as fault:
        deliver(staged(CONTENT), str(home), announced())
    assert fault.value.exit_status == CROWDED
    assert len(list((home / "Inbox/work").iterdir())) == 2


@pytest.mark.parametrize(
    "delivery",
    [
        announced(content=b"other content here"),
        announced(size=len(CONTENT) + 1),
        announced(size=len(CONTENT) - 1),
    ],
    ids=["digest", "short", "long"],
)
def test_what_is_not_what_was_sent_leaves_nothing(home: Path, staged: Staged, delivery: Delivery) -> None:
    with pytest.raises(Undelivered) as fault:
        deliver(staged(CONTENT), str(home), delivery)
    assert fault.value.exit_status == DAMAGED
    assert everything(home) == []


@pytest.mark.parametrize("where", ["Inbox", "Inbox/work"])
@pytest.mark.parametrize("kind", ["link", "dangling", "file", "pipe"])
def test_an_inbox_that_is_no_directory_is_not_followed(home: Path, staged: Staged, where: str, kind: str) -> None:
    elsewhere = home.parent / "elsewhere"
    elsewhere.mkdir()
    (home / where).parent.mkdir(exist_ok=True)
    make: dict[str, Callable[[], object]] = {
        "link": lambda: (home / where).symlink_to(elsewhere),
        "dangling": lambda: (home / where).symlink_to(home.parent / "not-there"),
        "file": lambda: (home / where).write_text("x"),
        "pipe": lambda: os.mkfifo(home / where),
    }
    make[kind]()
    before = everything(home)
    with pytest.raises(Undelivered) as fault:
        deliver(staged(CONTENT), str(home), announced())
    assert fault.value.exit_status == INBOX
    assert everything(home) == before
    assert everything(elsewhere) == []


def test_directories_renamed_under_the_delivery_take_it_along(
    home: Path, staged: Staged, monkeypatch: pytest.MonkeyPatch
) -> None:
    """M22: the receiver puts a link where the directory was; what is delivered stays in the directory held."""
    elsewhere = home.parent / "elsewhere"
    elsewhere.mkdir()
    copy = half._copy

    def swap_then_copy(source: int, target: int, delivery: Delivery) -> None:
        (home / "Inbox").rename(home / "moved")
        (home / "Inbox").symlink_to(elsewhere)
        copy(source, target, delivery)

    monkeypatch.setattr(half, "_copy", swap_then_copy)
    deliver(staged(CONTENT), str(home), announced())
    assert (home / "moved/work/figures.txt").read_bytes() == CONTENT
    assert everything(elsewhere) == []


def test_one_that_fails_takes_no_directory_away_from_another(home: Path, staged: Staged) -> None:
    """It made them, and the other has found them there: they are the other's too."""
    descriptor, both_there, failed = staged(CONTENT), threading.Barrier(2), threading.Event()

    def fail() -> None:
        both_there.wait(SECONDS)
        raise Undelivered(WITHDRAWN)

    def wait() -> None:
        both_there.wait(SECONDS)
        assert failed.wait(SECONDS)

    def first() -> None:
        with pytest.raises(Undelivered):
            half.deliver(descriptor, str(home), announced(), fail)
        failed.set()

    for names in (["Inbox", "Inbox/work"], ["Inbox/work"]):
        failing = threading.Thread(target=first)
        failing.start()
        until(lambda: (home / "Inbox/work").is_dir())
        assert half.deliver(descriptor, str(home), announced(), wait) == 1
        failing.join()
        (home / "Inbox/work/figures.txt").unlink()
        for name in reversed(names):
            (home / name).rmdir()
        failed.clear()
        (home / "Inbox").mkdir(exist_ok=True)


def test_nothing_is_visible_before_it_is_complete(home: Path, staged: Staged, monkeypatch: pytest.MonkeyPatch) -> None:
    """M23: while it is copied, the inbox is empty."""
    seen: list[list[str]] = []
    write = digest.write_all

    def look_then_write(descriptor: int, chunk: memoryview) -> None:
        seen.append(os.listdir(home / "Inbox/work"))
        write(descriptor, chunk)

    monkeypatch.setattr(digest, "write_all", look_then_write)
    deliver(staged(CONTENT), str(home), announced())
    assert seen == [[]]


def test_a_home_that_is_full_says_so_and_keeps_nothing(
    home: Path, staged: Staged, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_descriptor: int, _offset: int, _size: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(Undelivered) as fault:
        deliver(staged(CONTENT), str(home), announced())
    assert fault.value.exit_status == FULL
    assert everything(home) == []


NOBODY = 65534
STARTED = """
import sys
from mediators import main
from mediators.files import deliver
deliver.INIT_UID = int(sys.argv.pop(1))
sys.exit(main.main())
"""


def command(init_uid: int) -> list[str]:
    """The delivery half, where cage-init has the uid `init_uid`."""
    return [sys.executable, "-c", STARTED, str(init_uid), "files", "--deliver", *announced().arguments()]


@contextmanager
def waiting_program(
    staged: int, home: Path, init_uid: int | None = None, **options: Any
) -> Iterator[subprocess.Popen[bytes]]:
    """The delivery half at its gate: the file is whole, and has no name yet.  Without `init_uid`, we are cage-init."""
    started = command(os.getuid() if init_uid is None else init_uid)
    with subprocess.Popen(started, stdin=staged, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          env={"HOME": str(home)}, cwd=TOP, **options) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == protocol.READY.encode()
        assert everything(home) == ["Inbox", "Inbox/work"]
        yield program


def test_the_program_waits_for_the_word_and_prints_which_name_it_took(home: Path, staged: Staged) -> None:
    with waiting_program(staged(CONTENT), home) as program:
        program.send_signal(signal.Signals[protocol.GO])
        assert program.communicate() == (b"1\n", b"")
    assert program.returncode == 0
    assert (home / "Inbox/work/figures.txt").read_bytes() == CONTENT


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM])
def test_without_the_word_nothing_arrives(home: Path, staged: Staged, number: signal.Signals) -> None:
    """The core half was killed, or the cage stops."""
    with waiting_program(staged(CONTENT), home) as program:
        program.send_signal(number)
        output, errors = program.communicate()
    assert (program.returncode, output) == (WITHDRAWN, b"")
    assert errors == b"cage-mediator: it was withdrawn before it was there\n"
    assert everything(home) == []


@contextmanager
def home_of_nobody() -> Iterator[Path]:
    """Where another user can reach it, and its own if we are root."""
    with TemporaryDirectory() as name:
        if os.getuid() == 0:
            os.chown(name, NOBODY, NOBODY)
        yield Path(name)


def test_the_word_of_another_uid_is_not_taken(staged: Staged) -> None:
    """The cage's user can send signals to the delivery half, which is its own: only cage-init passes on the word."""
    root = os.getuid() == 0
    user: dict[str, Any] = {"user": NOBODY, "group": NOBODY, "extra_groups": []} if root else {}
    with (
        home_of_nobody() as home,
        waiting_program(staged(CONTENT), home, 0 if root else os.getuid() + 1, **user) as program,
    ):
        say = ["/bin/sh", "-c", f"kill -s {protocol.GO.removeprefix('SIG')} {program.pid}"]
        subprocess.run(say, **user, check=True)
        program.send_signal(signal.SIGTERM)  # of two that wait, it is given the word first: its number is lower
        output, errors = program.communicate()
        assert (program.returncode, output) == (WITHDRAWN, b""), errors
        assert everything(home) == []


def test_the_program_says_in_one_line_and_by_its_status_why_not(home: Path, staged: Staged) -> None:
    (home / "Inbox").symlink_to("/")
    ended = subprocess.run(
        command(os.getuid()), stdin=staged(CONTENT), env={"HOME": str(home)}, cwd=TOP,
        capture_output=True, text=True, check=False,
    )
    assert (ended.returncode, ended.stdout) == (INBOX, "")
    assert ended.stderr == (
        "cage-mediator: its Inbox is not a directory that can be written (Not a directory)\n"
    )
