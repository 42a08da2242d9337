# SPDX-License-Identifier: LGPL-2.1-or-later
"""Trees in a home of their own: whole, checked, under one name, or hidden and cleared away (M20 to M25, M28)."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from mediators.files import deliver as half
from mediators.files import unpack
from mediators.files.deliver import Undelivered
from mediators.files.protocol import CROWDED, DAMAGED, FULL, INBOX, TAKEN, WITHDRAWN, Delivery
from tests.unit.mediators.files.trees import DIGEST, TREE, stream

WHOLE = ["a.txt", "sub", "sub/deep", "sub/none", "sub/run", "z"]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    home = tmp_path / "home"
    home.mkdir()
    return home


class Sender:
    """Delivers a stream into the home, as the core half has it done."""

    def __init__(self, home: Path, staged: Path) -> None:
        self._home, self._staged = home, staged

    def __call__(self, raw: bytes = stream(TREE), *, digest: str = DIGEST, conflict: str = "rename",
                 wait: Callable[[], None] = lambda: None, size: int = 0) -> int:
        self._staged.write_bytes(raw)
        descriptor = os.open(self._staged, os.O_RDONLY)
        delivery = Delivery(source="work", name="papers", size=size or len(raw), sha256=digest, tree=True,
                            conflict=conflict)
        try:
            return half.deliver(descriptor, str(self._home), delivery, wait)
        finally:
            os.close(descriptor)


@pytest.fixture
def send(home: Path, tmp_path: Path) -> Sender:
    return Sender(home, tmp_path / "staged")


def below(top: Path) -> list[str]:
    return sorted(str(path.relative_to(top)) for path in top.rglob("*"))


def test_a_tree_arrives_with_plain_modes(home: Path, send: Sender) -> None:
    """M24: what can be executed stays so, and nothing else of a mode comes along."""
    assert send() == 1
    papers = home / "Inbox/work/papers"
    assert below(home / "Inbox/work") == ["papers", *(f"papers/{path}" for path in WHOLE)]
    modes = {path: stat.S_IMODE((papers / path).stat().st_mode) for path in WHOLE}
    assert modes == {"a.txt": 0o644, "sub": 0o755, "sub/deep": 0o755, "sub/none": 0o644, "sub/run": 0o755, "z": 0o644}
    assert stat.S_IMODE(papers.stat().st_mode) == 0o755
    assert (papers / "sub/run").read_bytes() == b"#!/bin/sh\n"
    assert [os.listxattr(papers / path) for path in WHOLE] == [[]] * len(WHOLE)


def test_it_has_its_name_when_all_of_it_is_there_and_not_before(home: Path, send: Sender) -> None:
    """M23."""
    seen = []

    def look() -> None:
        (hidden,) = os.listdir(home / "Inbox/work")
        seen.append((hidden.startswith(".incoming-"), below(home / "Inbox/work" / hidden)))

    send(wait=look)
    assert seen == [(True, WHOLE)]


@pytest.mark.parametrize(
    ("raw", "digest", "size"),
    [(stream(TREE), "0" * 64, 0), (stream(TREE)[:-1], DIGEST, len(stream(TREE))), (b"x" * 100, DIGEST, 0),
     (stream(TREE), DIGEST, 99), (stream([(2, b"../x", b"")]), DIGEST, 0)],
    ids=["digest", "cut off", "no tree", "size", "name"],
)
def test_what_is_not_what_was_announced_does_not_arrive(
    home: Path, send: Sender, raw: bytes, digest: str, size: int
) -> None:
    """M25, M20."""
    with pytest.raises(Undelivered) as fault:
        send(raw, digest=digest, size=size)
    assert fault.value.exit_status == DAMAGED
    assert below(home) == []


def test_what_is_not_wanted_any_more_does_not_arrive(home: Path, send: Sender) -> None:
    def withdraw() -> None:
        raise Undelivered(WITHDRAWN)

    with pytest.raises(Undelivered):
        send(wait=withdraw)
    assert below(home) == []


def test_a_full_home_says_so_and_keeps_nothing(
    home: Path, send: Sender, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_descriptor: int, _piece: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(unpack, "write_all", full)
    with pytest.raises(Undelivered) as fault:
        send()
    assert fault.value.exit_status == FULL
    assert below(home) == []


def test_a_link_in_its_place_is_not_followed(home: Path, send: Sender, tmp_path: Path) -> None:
    """M22: whoever owns the home puts a link where a directory was just made."""
    outside = tmp_path / "outside"
    outside.mkdir()
    mkdir = os.mkdir

    def swapped(path: str, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        mkdir(path, mode, dir_fd=dir_fd)
        if path == "sub":
            os.rmdir(path, dir_fd=dir_fd)
            os.symlink(outside, path, dir_fd=dir_fd)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "mkdir", swapped)
        with pytest.raises(Undelivered) as fault:
            send()
    assert fault.value.exit_status == INBOX
    assert below(outside) == []
    assert below(home) == []


def test_a_directory_that_is_moved_away_takes_its_files_along(home: Path, send: Sender) -> None:
    """M22: all goes where the directory is, which is its owner's."""
    def move() -> None:
        (home / "Inbox/work").rename(home / "elsewhere")

    send(wait=move)
    assert below(home / "elsewhere/papers") == WHOLE


# --- a name that is taken ----------------------------------------------------------------------------------------
def test_renamed_it_gets_a_number(home: Path, send: Sender) -> None:
    assert [send(), send(), send()] == [1, 2, 3]
    assert sorted(os.listdir(home / "Inbox/work")) == ["papers", "papers (2)", "papers (3)"]


def test_skipped_nothing_arrives(home: Path, send: Sender) -> None:
    assert [send(conflict="skip"), send(conflict="skip")] == [1, 0]
    assert os.listdir(home / "Inbox/work") == ["papers"]


def test_skipped_where_it_was_taken_meanwhile(home: Path, send: Sender) -> None:
    assert send(conflict="skip", wait=lambda: (home / "Inbox/work/papers").touch()) == 0
    assert os.listdir(home / "Inbox/work") == ["papers"]


@pytest.mark.parametrize("meanwhile", [False, True])
def test_failing_nothing_arrives(home: Path, send: Sender, meanwhile: bool) -> None:
    place = home / "Inbox/work/papers"
    if not meanwhile:
        place.parent.mkdir(parents=True)
        place.touch()
    with pytest.raises(Undelivered) as fault:
        send(conflict="fail", wait=place.touch)
    assert fault.value.exit_status == TAKEN
    assert os.listdir(home / "Inbox/work") == ["papers"]


@pytest.mark.parametrize("before", ["nothing", "file", "tree"])
def test_replaced_it_is_the_new_one(home: Path, send: Sender, before: str) -> None:
    place = home / "Inbox/work/papers"
    place.parent.mkdir(parents=True)
    if before == "file":
        place.touch()
    if before == "tree":
        (place / "old/deep").mkdir(parents=True)
        (place / "old/link").symlink_to("/")
    assert send(conflict="replace") == 1
    assert below(place) == WHOLE
    assert os.listdir(place.parent) == ["papers"]


def test_an_inbox_that_has_too_many_of_its_name(send: Sender, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mediators.files.protocol.RENAMES_MAX", 2)
    send()
    send()
    with pytest.raises(Undelivered) as fault:
        send()
    assert fault.value.exit_status == CROWDED


# --- what was cut off --------------------------------------------------------------------------------------------
def test_the_next_one_clears_away_what_was_cut_off(home: Path, send: Sender, tmp_path: Path) -> None:
    left = home / "Inbox/work/.incoming-0123"
    (left / "sub").mkdir(parents=True)
    (left / "sub/half").write_text("half")
    (left / "link").symlink_to(tmp_path)
    canary = tmp_path / "canary"
    canary.touch()
    send()
    assert os.listdir(home / "Inbox/work") == ["papers"]
    assert canary.exists()


def test_what_another_one_is_at_is_left_alone(home: Path, send: Sender) -> None:
    other = home / "Inbox/work/.incoming-0123"
    other.mkdir(parents=True)
    held = os.open(other, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    send()
    os.close(held)
    assert sorted(os.listdir(home / "Inbox/work")) == [".incoming-0123", "papers"]


@pytest.mark.parametrize("what", ["link", "too deep"])
def test_what_cannot_be_cleared_away_stops_nothing(home: Path, send: Sender, what: str) -> None:
    odd = home / "Inbox/work/.incoming-0123"
    odd.parent.mkdir(parents=True)
    if what == "link":
        odd.symlink_to(home)
    else:
        odd.joinpath(*["d"] * 300).mkdir(parents=True)
    assert send() == 1
    assert sorted(os.listdir(home / "Inbox/work")) == [".incoming-0123", "papers"]
