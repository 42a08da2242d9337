# SPDX-License-Identifier: LGPL-2.1-or-later
"""Secrets of applications: one for each application of each cage, always the same, from a file that is made once."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from mediators.keys import derive
from mediators.keys.protocol import SECRET_BYTES, Unsigned


def test_each_application_of_each_cage_has_its_own(tmp_path: Path) -> None:
    pairs = [("work", "org.example.A"), ("work", "org.example.B"), ("home", "org.example.A"), ("workorg", ".example.A"),
             ("wor", "korg.example.A")]
    found = [derive.derive(str(tmp_path), *pair) for pair in pairs]
    assert len(set(found)) == len(pairs)
    assert {len(secret) for secret in found} == {SECRET_BYTES}
    assert [derive.derive(str(tmp_path), *pair) for pair in pairs] == found


def test_the_secret_that_it_comes_from_is_its_users_alone(tmp_path: Path) -> None:
    derive.derive(str(tmp_path), "work", "a")
    file = tmp_path / derive.FOLDER / derive.NAME
    assert (file.stat().st_mode & 0o777, file.stat().st_size, file.stat().st_nlink) == (0o600, SECRET_BYTES, 1)
    assert (tmp_path / derive.FOLDER).stat().st_mode & 0o777 == 0o700
    assert os.listdir(tmp_path / derive.FOLDER) == [derive.NAME]


def test_two_that_come_first_have_the_same(tmp_path: Path) -> None:
    found: list[bytes] = []

    def ask() -> None:
        found.append(derive.derive(str(tmp_path), "work", "a"))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1
    assert len(found) == 8


def faulty(folder: Path) -> dict[str, Path]:
    """What is in the place of a secret and is none, in homes of their own, by what is wrong."""
    homes = {}

    def home(name: str) -> Path:
        inner = folder / name / derive.FOLDER
        inner.mkdir(parents=True)
        homes[name] = folder / name
        return inner / derive.NAME

    home("not a secret of").write_bytes(b"x" * (SECRET_BYTES - 1))
    (folder / "not a secret of" / derive.FOLDER / derive.NAME).chmod(0o600)
    home("too large").write_bytes(b"x" * (SECRET_BYTES + 1))
    (folder / "too large" / derive.FOLDER / derive.NAME).chmod(0o600)
    home("can be read by others").write_bytes(b"x" * SECRET_BYTES)
    home("levels of symbolic links").symlink_to("/dev/zero")
    os.mkfifo(home("not a regular file"), 0o600)
    (folder / "cannot be made").write_text("no directory")
    homes["cannot be made"] = folder / "cannot be made"
    return homes


def test_what_is_no_secret_is_not_used_and_not_replaced(tmp_path: Path) -> None:
    for fault, home in faulty(tmp_path).items():
        with pytest.raises(Unsigned, match=fault):
            derive.derive(str(home), "work", "a")
