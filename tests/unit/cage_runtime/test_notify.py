# SPDX-License-Identifier: LGPL-2.1-or-later
"""sd_notify(3) and sd_watchdog_enabled(3), as whoever starts us means them."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from cage_runtime.notify import notify, watchdog_seconds


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
