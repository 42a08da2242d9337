# SPDX-License-Identifier: LGPL-2.1-or-later
"""A core whose cages lack some of their walls: the programs under test, but for a spawner of our own.

It runs in a network, an ipc and a uts namespace of its own: what a cage without these shares is no machine's.
"""

from __future__ import annotations

import shutil

from cage_runtime.spawner.walls import Walls
from tests.privileged.runtime import CAGED_CONFIGURATION, PREFIX, Runtime

SPAWNER = """#!/usr/bin/python3 -IS
import sys

sys.path[:0] = ["{lib}", "/usr/lib/python3/dist-packages"]

from cage_runtime.spawner.main import main
from cage_runtime.spawner.walls import Namespace, Walls

sys.exit(main(Walls(namespaces=frozenset(map(Namespace, {namespaces})), seccomp={seccomp}, landlock={landlock},
                    capabilities={capabilities}, lsm={lsm})))
"""


class Walled(Runtime):
    """A runtime of the tests' own whose cages have `walls` and no others."""

    def __init__(self, walls: Walls) -> None:
        super().__init__("unshare", "--net", "--ipc", "--uts", "--")
        programs = self.top / "runtime"
        shutil.copytree(PREFIX, programs, symlinks=True)
        spawner = programs / "bin/cage-spawner"
        spawner.write_text(SPAWNER.format(
            lib=programs / "lib", namespaces=sorted(map(str, walls.namespaces)), seccomp=walls.seccomp,
            landlock=walls.landlock, capabilities=walls.capabilities, lsm=walls.lsm))
        self.config.write_text(CAGED_CONFIGURATION.format(top=self.top, prefix=programs, cgroup=self.cgroup))
