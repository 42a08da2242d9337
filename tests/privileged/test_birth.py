# SPDX-License-Identifier: LGPL-2.1-or-later
"""A birth that fails at any kernel call leaves nothing behind, says so, and the next one lives."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.privileged.runtime import CAGED_CONFIGURATION, PREFIX

BIRTHS = Path(__file__).with_name("births.py")


@pytest.fixture(scope="module")
def births() -> list[dict[str, Any]]:
    """What came of one birth for each kernel call that there is in one."""
    top = Path(tempfile.mkdtemp(prefix="births-"))
    try:
        config = top / "caged.conf"
        config.write_text(CAGED_CONFIGURATION.format(top=top, prefix=PREFIX, cgroup=f"cage-runtime-{top.name}"))
        ended = subprocess.run(["/usr/bin/python3", "-IS", BIRTHS, PREFIX, config], capture_output=True, text=True,
                               check=False, timeout=110)
        assert ended.returncode == 0, ended.stderr
        assert os.listdir(top / "state/storage") == []
    finally:
        shutil.rmtree(top)
    return [json.loads(line) for line in ended.stdout.splitlines()]


def test_every_kernel_call_of_a_birth_failed_once(births: list[dict[str, Any]]) -> None:
    sides = Counter(birth["side"] for birth in births)
    assert {(birth["side"], birth["of"]) for birth in births} == set(sides.items())
    assert sides["outside"] > 100
    assert sides["inside"] > 50
    failed = {birth["call"] for birth in births}
    assert {"clone3", "mount", "pivot_root", "move_mount", "seccomp_filter", "setresuid", "mknod", "bind"} <= failed
    assert {"new", "enter", "tag_socket"} <= failed  # of its security context


def test_a_birth_that_fails_leaves_nothing(births: list[dict[str, Any]]) -> None:
    """No directory, mount, cgroup, process, descriptor or context; births.py itself sees to the next one living."""
    assert [birth for birth in births if birth["left"]] == []


def test_a_birth_that_fails_says_where(births: list[dict[str, Any]]) -> None:
    assert [birth for birth in births if "no memory, says the test" not in birth["said"]] == []
