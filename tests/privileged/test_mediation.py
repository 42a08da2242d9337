# SPDX-License-Identifier: LGPL-2.1-or-later
"""Calls that are answered in the kernel's stead: what a cage is told, who may be hurt by it, and what a death leaves."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.privileged.conftest import MakeCage
from tests.privileged.runtime import Cage, Runtime, processes, arguments_of, wait_gone, wait_readable

LOOK = Path(__file__).with_name("look_at_sysinfo.py").read_bytes()


def told(cage: Cage, what: str, root: bool = False) -> Any:
    ended = cage.enter("/usr/bin/python3", "-IS", "-", what, input=LOOK, root=root)
    assert ended.returncode == 0, ended.stderr.decode()
    return json.loads(ended.stdout)


def service(runtime: Runtime) -> list[int]:
    return [pid for pid in processes() if any("cage-syscalls" in word for word in arguments_of(pid))
            and str(runtime.top) in " ".join(arguments_of(pid))]


def test_what_a_cage_is_told(runtime, cage):
    work = cage("work")
    found = told(work, "sysinfo")
    print(found, service(runtime), Path("/proc/uptime").read_text())
    assert 0 <= found["uptime"] < 60
