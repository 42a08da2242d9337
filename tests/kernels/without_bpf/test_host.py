# SPDX-License-Identifier: LGPL-2.1-or-later
"""A kernel without BPF in its list of security modules: it takes the programs, says nothing, and does not run them."""

from __future__ import annotations

from pathlib import Path

import pytest

from cage_runtime.errors import HostUnsupported
from cage_runtime.spawner.lsm import programs
from cage_runtime.spawner.lsm.contexts import PINS, Contexts


def test_the_list_says_so_and_the_sentence_how_to_change_it() -> None:
    with pytest.raises(HostUnsupported, match=r"lsm=\S*,bpf$"):
        Contexts.open()
    assert not PINS.exists()


def test_what_is_attached_and_not_run_is_not_taken_for_a_wall(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "check_host", lambda: None)
    with pytest.raises(HostUnsupported, match="does not enforce"):
        Contexts.open()
    assert list(PINS.glob("programs-*/task_kill"))  # the kernel took them
    programs.remove(PINS)
    assert not PINS.exists()


def test_a_list_that_is_not_there_is_no_list(tmp_path: Path) -> None:
    with pytest.raises(HostUnsupported, match="securityfs"):
        programs.check_host(tmp_path / "lsm")
