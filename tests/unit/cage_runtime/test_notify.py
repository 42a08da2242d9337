# SPDX-License-Identifier: LGPL-2.1-or-later
"""sd_notify(3), sd_watchdog_enabled(3) and sd_listen_fds(3), as whoever starts us means them."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from pathlib import Path

import pytest

from cage_runtime.notify import handed_over, notify, watchdog_seconds


def test_what_is_told_arrives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as supervisor:
        supervisor.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        notify("READY=1")
        assert supervisor.recv(64) == b"READY=1"


def test_nobody_to_tell_is_no_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for address in ("", "relative", str(tmp_path / "nowhere"), "@of-nobody"):
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        notify("READY=1")
    assert list(tmp_path.iterdir()) == []


def test_a_supervisor_that_does_not_listen_holds_nobody_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """systemd's socket takes from anybody, and its queue has an end."""
    monkeypatch.setattr(sys.modules[notify.__module__], "SEND_SECONDS", 0.1)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as supervisor, \
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as anybody:
        supervisor.bind(str(tmp_path / "notify"))
        anybody.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                anybody.sendto(b"X=1", str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        notify("WATCHDOG=1")
        supervisor.setblocking(False)
        assert supervisor.recv(64) == b"X=1"


@pytest.mark.parametrize(("microseconds", "pid", "seconds"), [
    ("60000000", None, 60.0), ("500000", os.getpid(), 0.5), (None, None, 0.0),
    ("60000000", os.getppid(), 0.0), ("", None, 0.0), ("-1", None, 0.0), ("1e6", None, 0.0), ("\u0663", None, 0.0),
])
def test_a_watchdog_is_ours_or_it_is_none(
    microseconds: str | None, pid: int | None, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("WATCHDOG_USEC", microseconds), ("WATCHDOG_PID", pid)):
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, str(value))
    assert watchdog_seconds() == seconds


@pytest.fixture
def descriptor(monkeypatch: pytest.MonkeyPatch) -> int:
    """One that is where the first of a supervisor's would be."""
    read, write = os.pipe()
    os.close(write)
    monkeypatch.setattr(sys.modules[handed_over.__module__], "FIRST_DESCRIPTOR", read)
    os.set_inheritable(read, True)
    return read


@pytest.mark.parametrize(("pid", "count"), [("1", "1"), ("", "1"), (str(os.getpid()), ""), (str(os.getpid()), "-1"),
                                            (str(os.getpid()), "1x"), (str(os.getpid()), "0")])
def test_what_is_not_for_us_is_not_taken(monkeypatch: pytest.MonkeyPatch, pid: str, count: str) -> None:
    monkeypatch.setenv("LISTEN_PID", pid)
    monkeypatch.setenv("LISTEN_FDS", count)
    assert handed_over() == []


def test_what_is_for_us_is_for_nobody_whom_we_start(monkeypatch: pytest.MonkeyPatch, descriptor: int) -> None:
    for name, value in (("LISTEN_PID", str(os.getpid())), ("LISTEN_FDS", "1"), ("LISTEN_FDNAMES", "spawner")):
        monkeypatch.setenv(name, value)
    assert handed_over() == [descriptor]
    assert not os.get_inheritable(descriptor)
    assert not [name for name in os.environ if name.startswith("LISTEN_")]
    os.close(descriptor)
