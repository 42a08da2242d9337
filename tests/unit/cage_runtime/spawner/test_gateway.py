# SPDX-License-Identifier: LGPL-2.1-or-later
"""A gateway's bus on a host that is short of something: none runs that nobody would end."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from cage_runtime.spawner import gateway as module
from cage_runtime.spawner import syscall
from cage_runtime.spawner.cgroup import Cgroup
from cage_runtime.spawner.filters import Filter
from cage_runtime.spawner.gateway import Gateway, Recipe
from cage_runtime.spawner.loop import Loop

RECIPE = Recipe(configuration=Path("/nowhere"), uid=65534, gid=65534, filter=Filter(programs=(), unknown=()))


def refused(*_: object, **__: object) -> int:
    raise OSError(errno.EMFILE, "Too many open files")


@pytest.mark.parametrize("step", ["open_events", "watch", "clone3"])
def test_one_that_cannot_be_watched_is_not_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    loop, started, ended = Loop(), list[int](), list[None]()
    (tmp_path / "gateway").mkdir()
    (tmp_path / "gateway/cgroup.events").write_text("populated 0")
    monkeypatch.setattr(loop, "watch", lambda *_: None)
    monkeypatch.setattr(loop, "forget", lambda *_: None)
    monkeypatch.setattr(syscall, "clone3", lambda *_, **__: started.append(1))
    monkeypatch.setattr({"open_events": Cgroup, "watch": loop, "clone3": module.syscall}[step], step, refused)
    gateway = Gateway(loop, Cgroup(tmp_path / "gateway"), lambda: ended.append(None))
    with pytest.raises(OSError, match="Too many open files"):
        gateway.start(0, RECIPE)
    assert (started, gateway.runs, ended) == ([], False, [])
