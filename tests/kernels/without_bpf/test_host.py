# SPDX-License-Identifier: LGPL-2.1-or-later
"""A kernel without BPF in its list of security modules: where it takes programs at all, it does not run them."""

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


def test_a_kernel_that_would_not_run_them_does_not_pass_for_one_that_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor if it were not asked: kernels of today refuse one of the maps then, and where they do not, no refusal is seen
    (tests/kernels/lsm/test_life.py)."""
    monkeypatch.setattr(programs, "check_host", lambda: None)
    with pytest.raises(HostUnsupported, match="could not be set up"):
        Contexts.open()
    assert not PINS.exists()


def test_a_list_that_is_not_there_is_no_list(tmp_path: Path) -> None:
    with pytest.raises(HostUnsupported, match="securityfs"):
        programs.check_host(tmp_path / "lsm")
