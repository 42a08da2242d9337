# SPDX-License-Identifier: LGPL-2.1-or-later
"""A core with a spawner of the tests' own: the programs under test, but for the few lines that start that one."""

from __future__ import annotations

import shutil

from tests.privileged.runtime import CAGED_CONFIGURATION, PREFIX, Runtime

HEAD = """#!/usr/bin/python3 -IS
import sys

sys.path[:0] = ["{lib}", "/usr/lib/python3/dist-packages"]

from cage_runtime.spawner.main import main

"""


class OwnSpawner(Runtime):
    """A runtime whose spawner is `program`, which has to end with what `main` of the shipped one answers."""

    def __init__(self, program: str, *through: str) -> None:
        super().__init__(*through)
        programs = self.top / "runtime"
        shutil.copytree(PREFIX, programs, symlinks=True)
        (programs / "bin/cage-spawner").write_text(HEAD.format(lib=programs / "lib") + program)
        self.config.write_text(CAGED_CONFIGURATION.format(top=self.top, prefix=programs, cgroup=self.cgroup))
