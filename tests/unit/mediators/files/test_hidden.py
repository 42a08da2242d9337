# SPDX-License-Identifier: LGPL-2.1-or-later
"""What deliveries that were cut off leave, and those of one transfer of which one counts."""

from __future__ import annotations

import fcntl
import hashlib
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mediators.files import deliver as half
from mediators.files import hidden, protocol, unpack
from mediators.files.deliver import Undelivered
from mediators.files.protocol import Delivery
from tests.unit.mediators.files.trees import DIGEST, TREE, stream

CONTENT = b"quarterly figures\n"
ONCE = "0123456789abcdef" * 2
SECONDS = 20.0
KINDS = ("file", "tree")


def delivery(kind: str, *, once: str = ONCE, conflict: str = "rename", since: int = 0) -> tuple[bytes, Delivery]:
    if kind == "tree":
        raw, digest = stream(TREE), DIGEST
    else:
        raw, digest = CONTENT, hashlib.sha256(CONTENT).hexdigest()
    return raw, Delivery(source="work", name="papers", size=len(raw), sha256=digest, tree=kind == "tree",
                         conflict=conflict, once=once, since=since)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    home = tmp_path / "home"
    home.mkdir()
    return home


Send = Callable[..., int]


@pytest.fixture
def send(home: Path, tmp_path: Path) -> Send:
    def send(kind: str, *, wait: Callable[[], None] = lambda: None, **how: object) -> int:
        raw, announced = delivery(kind, **how)  # type: ignore[arg-type]
        staged = tmp_path / f"staged-{threading.get_ident()}"
        staged.write_bytes(raw)
        with staged.open("rb") as file:
            return half.deliver(file.fileno(), str(home), announced, wait)

    return send


def inbox(home: Path) -> list[str]:
    return sorted(os.listdir(home / "Inbox/work"))


MARK = f".incoming-{ONCE}.given"


def is_given(send: Send, kind: str, **how: object) -> bool:
    """Whether another delivery of the same finds that it has its name; that name, where it gives it."""
    try:
        send(kind, **how)
    except Undelivered as fault:
        return fault.exit_status == protocol.GIVEN
    return False


# --- what is delivered once ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_delivered_twice_arrives_once(home: Path, send: Send, kind: str) -> None:
    assert send(kind) == 1
    assert is_given(send, kind)
    assert inbox(home) == [MARK, "papers"]


@pytest.mark.parametrize("kind", KINDS)
def test_also_where_whoever_received_it_has_moved_it_away(home: Path, send: Send, kind: str) -> None:
    send(kind)
    (home / "Inbox/work/papers").rename(home / "papers")
    assert is_given(send, kind)
    assert inbox(home) == [MARK]


@pytest.mark.parametrize("kind", KINDS)
def test_another_one_of_the_same_name_is_another_one(home: Path, send: Send, kind: str) -> None:
    send(kind)
    assert send(kind, once="f" * 32) == 2
    assert send(kind, once="") == 3
    assert "papers (2)" in inbox(home)


def die(*_: object) -> None:
    os._exit(9)


def cut_off(send: Send, where: Callable[[], None], kind: str, **how: object) -> None:
    """A delivery that is killed; `where` says at which step, in the process that is."""
    child = os.fork()
    if not child:
        where()
        send(kind, **how)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


def before_it_is_there() -> None:
    half._copy = unpack._unpack = die  # type: ignore[assignment]


def after_the_word() -> None:
    hidden.mark = die  # type: ignore[assignment]


def after_the_mark() -> None:
    half.first_free = unpack.first_free = half._replace = unpack._rename = die  # type: ignore[assignment]


def after_the_name() -> None:
    hidden.drop = os.fsync = die  # type: ignore[assignment]
    hidden.mark = lambda directory, name: os.close(os.open(name + ".given", os.O_CREAT, 0o600, dir_fd=directory))
    os.fsync = lambda descriptor: None if os.readlink(f"/proc/self/fd/{descriptor}").endswith(")") else die()


@pytest.mark.parametrize("conflict", protocol.CONFLICTS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("where", [before_it_is_there, after_the_word, after_the_mark])
def test_what_was_cut_off_before_it_had_its_name_gets_it_the_next_time(
    home: Path, send: Send, where: Callable[[], None], kind: str, conflict: str
) -> None:
    cut_off(send, where, kind, conflict=conflict)
    assert not (home / "Inbox/work/papers").exists()
    assert send(kind, conflict=conflict) == 1
    assert inbox(home) == [MARK, "papers"]


@pytest.mark.parametrize("conflict", protocol.CONFLICTS)
@pytest.mark.parametrize("kind", KINDS)
def test_what_was_cut_off_when_it_had_its_name_is_not_given_another(
    home: Path, send: Send, kind: str, conflict: str
) -> None:
    cut_off(send, after_the_name, kind, conflict=conflict)
    assert (home / "Inbox/work/papers").exists()
    assert is_given(send, kind, conflict=conflict)
    assert inbox(home) == [MARK, "papers"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_mark_is_on_disk_before_the_name_is_given(
    home: Path, send: Send, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """And the name before anybody is told so."""
    steps: list[list[str]] = []
    synchronise = os.fsync

    def seen(descriptor: int) -> None:
        synchronise(descriptor)
        if os.readlink(f"/proc/self/fd/{descriptor}").endswith("/Inbox/work"):
            steps.append([name for name in inbox(home) if name != f".incoming-{ONCE}"])

    monkeypatch.setattr(os, "fsync", seen)
    send(kind)
    assert steps[0] == [MARK]
    assert steps[-1] == [MARK, "papers"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_delivery_that_is_withdrawn_leaves_no_mark(home: Path, send: Send, kind: str) -> None:
    def withdraw() -> None:
        raise Undelivered(protocol.WITHDRAWN)

    with pytest.raises(Undelivered):
        send(kind, wait=withdraw)
    assert list(home.iterdir()) == []
    assert send(kind) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_second_one_waits_for_the_first_that_may_still_give_it_its_name(home: Path, send: Send, kind: str) -> None:
    said, go, found = threading.Event(), threading.Event(), list[bool]()

    def wait() -> None:
        said.set()
        assert go.wait(SECONDS)

    first = threading.Thread(target=send, args=(kind,), kwargs={"wait": wait})
    first.start()
    assert said.wait(SECONDS)
    second = threading.Thread(target=lambda: found.append(is_given(send, kind)))
    second.start()
    while not waits_for_a_lock(second):
        assert second.is_alive()
    go.set()
    for each in (first, second):
        each.join(SECONDS)
    assert found == [True]
    assert inbox(home) == [MARK, "papers"]


def waits_for_a_lock(thread: threading.Thread) -> bool:
    wchan = Path(f"/proc/self/task/{thread.native_id}/syscall").read_text().split()
    return wchan[0] == "73"  # flock(2) of x86_64


# --- what is cleared away ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("left", KINDS)
def test_a_delivery_of_any_kind_clears_away_what_any_other_has_left(
    home: Path, send: Send, left: str, kind: str
) -> None:
    cut_off(send, after_the_word, left)
    assert inbox(home) == [f".incoming-{ONCE}"]
    send(kind, once="")
    assert inbox(home) == ["papers"]
    assert send(left) == 2


@pytest.mark.parametrize("left", KINDS)
def test_with_its_mark_so_that_it_may_still_come(home: Path, send: Send, left: str) -> None:
    cut_off(send, after_the_mark, left)
    send("file", once="", conflict="rename")
    assert inbox(home) == ["papers"]
    assert not is_given(send, left)
    assert inbox(home) == [MARK, "papers", "papers (2)"]


def test_but_the_mark_stays_of_what_has_its_name(home: Path, send: Send) -> None:
    cut_off(send, after_the_name, "file")
    assert inbox(home) == [f".incoming-{ONCE}", MARK, "papers"]
    send("file", once="")
    assert inbox(home) == [MARK, "papers", "papers (2)"]
    assert is_given(send, "file")


def test_marks_from_before_what_may_still_come_are_cleared_away(home: Path, send: Send) -> None:
    send("file")
    send("file", once="f" * 32, since=int(time.time()) - 60)
    assert MARK in inbox(home)
    os.utime(home / "Inbox/work" / MARK, (1, 1))
    send("file", once="", since=int(time.time()) - 60)
    assert inbox(home) == [f".incoming-{'f' * 32}.given", "papers", "papers (2)", "papers (3)"]


@pytest.mark.parametrize("what", ["fifo", "link", "directory", "link for a mark", "directory for a mark"])
def test_whatever_else_has_such_a_name_stops_nothing(home: Path, send: Send, tmp_path: Path, what: str) -> None:
    canary = tmp_path / "canary"
    canary.mkdir()
    (home / "Inbox/work").mkdir(parents=True)
    odd = home / "Inbox/work" / (".incoming-odd" + (".given" if what.endswith("mark") else ""))
    if what == "fifo":
        os.mkfifo(odd)
    elif what.startswith("link"):
        odd.symlink_to(canary)
    else:
        odd.mkdir()
    assert send("file", since=int(time.time()) + 60) == 1
    assert canary.exists()
    assert "papers" in inbox(home)


def test_whoever_holds_the_directory_stops_no_clearing_for_ever(home: Path, send: Send) -> None:
    """It is put off, and the delivery goes on."""
    cut_off(send, after_the_word, "file")
    held = os.open(home / "Inbox/work", os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_SH)
    assert send("file", once="") == 1
    assert inbox(home) == [f".incoming-{ONCE}", "papers"]
    os.close(held)
    send("file", once="")
    assert inbox(home) == ["papers", "papers (2)"]


def test_a_delivery_half_says_so_by_its_status(send: Send) -> None:
    send("file")
    with pytest.raises(Undelivered, match="an earlier delivery of it has given it its name") as fault:
        send("file")
    assert fault.value.exit_status == protocol.GIVEN == 26
