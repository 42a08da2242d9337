# SPDX-License-Identifier: LGPL-2.1-or-later
"""A transfer that was begun: one line of progress, what became of it, and Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from cage_runtime.cli import followed
from cage_runtime.cli.followed import Followed, Progress
from cage_runtime.errors import CageError, Cancelled, NothingDone
from mediators.files import protocol

Captured = pytest.CaptureFixture[str]
ERROR = "org.cageruntime.Error."


def test_its_words_are_the_mediators() -> None:
    assert followed.CANCEL == protocol.CANCEL


class Half:
    """The other ends of the pipes."""

    def __init__(self) -> None:
        self.status, self._status = os.pipe()
        self._control, self.control = os.pipe()

    def tell(self, **what: Any) -> None:
        os.write(self._status, json.dumps(what).encode() + b"\n")

    def end(self) -> None:
        os.close(self._status)
        self._status = -1

    def heard(self) -> bytes:
        os.set_blocking(self._control, False)
        try:
            return os.read(self._control, 100)
        except BlockingIOError:
            return b"nothing"

    def hear(self) -> bytes:
        """Waits for it."""
        return os.read(self._control, 1)

    def close(self) -> None:
        for end in (self._status, self._control):
            if end >= 0:
                os.close(end)


@pytest.fixture
def half() -> Iterator[Half]:
    half = Half()
    yield half
    half.close()


def follow(half: Half) -> Followed:
    return Followed("x.txt", half.status, half.control, Progress("x.txt", shown=False))


def test_it_arrives_and_its_pipes_are_closed(half: Half) -> None:
    half.tell(job=1, state="waiting")
    half.tell(arrived="Inbox/work/x.txt", receipt="signed")
    with follow(half) as transfer:
        assert transfer.arrived() == "Inbox/work/x.txt"
    assert (transfer.receipt, transfer.interrupted) == ("signed", False)
    assert half.heard() == b""
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.close(half.status)


@pytest.mark.parametrize(("told", "kind", "says"), [
    ({"error": ERROR + "Cancelled", "sentence": "was cancelled"}, Cancelled, "was cancelled"),
    ({"error": ERROR + "NothingDone", "sentence": "send it again"}, NothingDone, "send it again"),
    ({"error": ERROR + "CutOff", "sentence": "it ended"}, CageError, "not known whether it arrived"),
    ({"state": "committed"}, CageError, "not known whether it arrived"),
])
def test_what_it_is_told_is_said(half: Half, told: dict[str, str], kind: type[CageError], says: str) -> None:
    half.tell(**told)
    half.end()
    with follow(half) as transfer, pytest.raises(kind, match=says):
        transfer.arrived()


def test_half_a_line_is_no_word(half: Half) -> None:
    os.write(half._status, b'{"arrived": "Inbox/work/x.txt"}')
    half.end()
    with follow(half) as transfer, pytest.raises(CageError, match="not known whether it arrived"):
        transfer.arrived()


def test_ctrl_c_says_the_word_and_what_became_of_it_is_still_heard(half: Half) -> None:
    """While it waits in read(2), as a person's comes."""
    def answer() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        assert half.hear() == followed.CANCEL
        half.tell(error=ERROR + "Cancelled", sentence='"x.txt" was cancelled; nothing arrived')

    before = signal.getsignal(signal.SIGINT)
    other = threading.Thread(target=answer)
    with follow(half) as transfer:
        other.start()
        with pytest.raises(Cancelled):
            transfer.arrived()
    other.join()
    assert transfer.interrupted
    assert signal.getsignal(signal.SIGINT) is before


def test_twice_it_is_not_waited_for(half: Half) -> None:
    with follow(half):
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert half.heard() == followed.CANCEL


def test_where_ctrl_c_is_ignored_it_stays_so(half: Half) -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with follow(half):
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_ctrl_c_after_the_half_has_gone_is_no_error(half: Half) -> None:
    os.close(half._control)
    half._control = -1
    half.tell(arrived="Inbox/work/x.txt")
    with follow(half) as transfer:
        os.kill(os.getpid(), signal.SIGINT)
        assert transfer.arrived() == "Inbox/work/x.txt"
    assert transfer.interrupted


# --- the line ----------------------------------------------------------------------------------------------------
def test_progress_is_a_line_that_goes_away(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(followed, "PROGRESS_SECONDS", 0.0)
    progress = Progress("papers -> vault", shown=True)
    progress.show(0, 0)
    progress.show(100, 200)
    progress.show(300, 200)
    progress.clear()
    line = "\r\x1b[Kpapers -> vault: "
    assert capsys.readouterr().err == f"{line}50 %{line}100 %\r\x1b[K"
    silent = Progress("papers -> vault", shown=False)
    silent.show(100, 200)
    silent.waits()
    silent.clear()
    assert capsys.readouterr().err == ""


def test_it_is_no_longer_than_the_terminal(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(followed, "PROGRESS_SECONDS", 0.0)
    progress = Progress("x" * 1000, shown=True)
    progress.show(1, 2)
    progress.clear()
    progress.clear()
    assert capsys.readouterr().err == "\r\x1b[K" + "x" * 79 + "\r\x1b[K"


def test_a_little_thing_shows_nothing(capsys: Captured) -> None:
    progress = Progress("x", shown=True)
    progress.show(1, 2)
    progress.waits()
    progress.clear()
    assert capsys.readouterr().err == ""
