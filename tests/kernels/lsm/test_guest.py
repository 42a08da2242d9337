# SPDX-License-Identifier: LGPL-2.1-or-later
"""The guest is what the tests of this folder take it for."""

from __future__ import annotations

import os
from pathlib import Path


def test_the_kernel_runs_bpf_programs_as_a_security_module() -> None:
    assert "bpf" in Path("/sys/kernel/security/lsm").read_text(encoding="ascii").split(",")


def test_the_runtime_is_where_its_package_puts_it() -> None:
    assert os.access("/usr/lib/cage-runtime/bin/cage-spawner", os.X_OK)
