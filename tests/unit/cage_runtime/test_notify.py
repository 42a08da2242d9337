# SPDX-License-Identifier: LGPL-2.1-or-later
"""Descriptors from the supervisor: those that are meant for this process, and no others."""

from __future__ import annotations

import os

import pytest

from cage_runtime import notify


@pytest.fixture
def descriptor(monkeypatch: pytest.MonkeyPatch) -> int:
    """One that is where the first of a supervisor's would be."""
    read, write = os.pipe()
    os.close(write)
    monkeypatch.setattr(notify, "FIRST_DESCRIPTOR", read)
    os.set_inheritable(read, True)
    return read


@pytest.mark.parametrize(("pid", "count"), [("1", "1"), ("", "1"), (str(os.getpid()), ""), (str(os.getpid()), "-1"),
                                            (str(os.getpid()), "1x"), (str(os.getpid()), "0")])
def test_what_is_not_for_us_is_not_taken(monkeypatch: pytest.MonkeyPatch, pid: str, count: str) -> None:
    monkeypatch.setenv("LISTEN_PID", pid)
    monkeypatch.setenv("LISTEN_FDS", count)
    assert notify.handed_over() == []


def test_what_is_for_us_is_for_nobody_whom_we_start(monkeypatch: pytest.MonkeyPatch, descriptor: int) -> None:
    for name, value in (("LISTEN_PID", str(os.getpid())), ("LISTEN_FDS", "1"), ("LISTEN_FDNAMES", "spawner")):
        monkeypatch.setenv(name, value)
    assert notify.handed_over() == [descriptor]
    assert not os.get_inheritable(descriptor)
    assert not [name for name in os.environ if name.startswith("LISTEN_")]
    os.close(descriptor)
