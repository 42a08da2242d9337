# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a stranger hands over is closed at once, whatever the stranger has made of it."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from cage_runtime import handed
from tests.privileged import kinds


def is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def children() -> set[str]:
    """The ids of this process's children; other tests may have left some."""
    return {child for task in Path("/proc/self/task").iterdir() for child in (task / "children").read_text().split()}


@pytest.mark.parametrize("kind", kinds.KINDS)
def test_it_is_closed_and_nobody_waits(kind: str) -> None:
    descriptor, kept = kinds.of(kind)
    before, began = children(), time.monotonic()
    handed.close([descriptor])
    assert time.monotonic() - began < 30, "it says a minute"
    assert not is_open(descriptor)
    assert kept is not None
    assert children() <= before


def test_where_no_process_can_be_made_it_is_closed_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def fork() -> int:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", fork)
    descriptor, kept = kinds.of("a socket that lingers")
    began = time.monotonic()
    handed.close([descriptor])
    assert time.monotonic() - began < 30
    assert not is_open(descriptor)
    assert kept is not None
