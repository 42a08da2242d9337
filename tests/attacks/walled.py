# SPDX-License-Identifier: LGPL-2.1-or-later
"""A core whose cages lack some of their walls.

It runs in a network, an ipc and a uts namespace of its own: what a cage without these shares is no machine's.
"""

from __future__ import annotations

from cage_runtime.spawner.walls import Walls
from tests.privileged.own_spawner import OwnSpawner

SPAWNER = """from cage_runtime.spawner.walls import Namespace, Walls

sys.exit(main(Walls(namespaces=frozenset(map(Namespace, {namespaces})), seccomp={seccomp}, landlock={landlock},
                    capabilities={capabilities}, lsm={lsm})))
"""


class Walled(OwnSpawner):
    """A runtime of the tests' own whose cages have `walls` and no others."""

    def __init__(self, walls: Walls) -> None:
        up = 'ip link set lo up && exec "$@"'
        program = SPAWNER.format(
            namespaces=sorted(map(str, walls.namespaces)), seccomp=walls.seccomp, landlock=walls.landlock,
            capabilities=walls.capabilities, lsm=walls.lsm)
        super().__init__(program, "unshare", "--net", "--ipc", "--uts", "--", "/bin/sh", "-ec", up, "sh")
