# SPDX-License-Identifier: LGPL-2.1-or-later
"""Remotes that are asked in turn: one that does not answer is told of, and hides nothing of the others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cage_runtime.errors import NoSuchApplication, RemoteUnavailable
from cage_runtime.flatpak.command import ProgramFailed, Runner, Surroundings, TooSlow
from cage_runtime.flatpak.installation import Source, Sources
from cage_runtime.flatpak.metadata import Kind, Ref
from cage_runtime.flatpak.remotes import Mirror, Remote

THERE = Ref(kind=Kind.RUNTIME, name="org.example.Platform", arch="x86_64", branch="1")
ABSENT = Ref(kind=Kind.RUNTIME, name="org.example.Platform", arch="x86_64", branch="2")


class FailingRunner(Runner):
    """Every `remote refs` fails, each with the next of `failures`."""

    def __init__(self, directory: Path, *failures: Exception) -> None:
        super().__init__(Surroundings(installation=directory, private=directory))
        self.failures = list(failures)

    def run(self, *argv: str, **_: Any) -> bytes:
        if argv[2:4] == ("remote", "refs"):
            raise self.failures.pop(0)
        return b""


def remote(name: str) -> Remote:
    return Remote(name=name, url=f"https://{name}.example", fingerprint="0" * 40)


def source(directory: Path, name: str, *refs: Ref) -> Source:
    mirror = Mirror(path=directory, remote=remote(name), runner=FailingRunner(directory))
    return Source(mirror=mirror, refs=frozenset(refs))


def test_a_silent_remote_does_not_hide_what_the_others_have_or_lack(tmp_path: Path) -> None:
    def ask(asked: Remote) -> Source:
        if asked.name == "silent":
            raise RemoteUnavailable("silent does not answer")
        return source(tmp_path, asked.name, THERE)

    sources = Sources([remote("silent"), remote("good")], ask)
    assert sources.offering(THERE).mirror.remote.name == "good"
    with pytest.raises(NoSuchApplication, match=rf"no remote that answers offers {ABSENT}, .*; silent does not answer"):
        sources.offering(ABSENT)


def test_where_all_answer_the_advice_is_to_add_one(tmp_path: Path) -> None:
    sources = Sources([remote("good")], lambda asked: source(tmp_path, asked.name, THERE))
    with pytest.raises(NoSuchApplication, match=r"; add one that does$"):
        sources.offering(ABSENT)


@pytest.mark.parametrize("before", [(), (ProgramFailed("ostree", 1, b"no summary"),)], ids=["first", "then"])
def test_a_remote_that_takes_too_long_is_unavailable(tmp_path: Path, before: tuple[Exception, ...]) -> None:
    runner = FailingRunner(tmp_path, *before, TooSlow("slow"))
    mirror = Mirror(path=tmp_path / "mirror", remote=remote("slow"), runner=runner)
    with pytest.raises(RemoteUnavailable, match=r'^the remote "slow" did not answer at https://slow.example within 60'):
        mirror.refs()
