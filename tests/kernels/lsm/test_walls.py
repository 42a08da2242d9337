# SPDX-License-Identifier: LGPL-2.1-or-later
"""The security context where all namespaces but the one of users are the host's, and there is no Landlock.

Without that one too there is no cage: test_cages.py has what is left then (`Escaped`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kernels.lsm import cages
from tests.kernels.lsm.cages import Cage, Spawner

REACH = Path(__file__).parents[2].joinpath("attacks/reach.py").read_text()
PYTHON = ("/usr/bin/python3", "-IS", "-c", REACH)
SPAWNER = """#!/usr/bin/python3 -IS
import sys

sys.path[:0] = ["/usr/lib/cage-runtime/lib", "/usr/lib/python3/dist-packages"]

from cage_runtime.spawner.main import main
from cage_runtime.spawner.walls import Namespace, Walls

sys.exit(main(Walls(namespaces=frozenset({Namespace.USER}), landlock=False)))
"""


@pytest.fixture(scope="module")
def spawner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Spawner]:
    top = tmp_path_factory.mktemp("walls")
    for directory in (top, *top.parents[:2]):
        directory.chmod(0o755)
    program = top / "cage-spawner"
    program.write_text(SPAWNER)
    program.chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cages, "PROGRAM", program)
        spawner = Spawner(top)
    yield spawner
    spawner.stop()


def test_cages_in_the_same_namespaces_do_not_touch_each_other(spawner: Spawner) -> None:
    left, right = Cage(spawner, "left"), Cage(spawner, "right")
    with left.running(*PYTHON, "hold") as (_input, output, _errors, _channel):
        held = os.read(output, 4096)
        pid = json.loads(held)["pid"]
        status, said = right.run(*PYTHON, "meet", str(pid))
        assert status == 0, said
        alone, its_own = json.loads(said), json.loads(left.run(*PYTHON, "meet", str(pid))[1])
    for cage in (left, right):
        cage.destroy()
    held_by_it = {"abstract socket", "shared memory", "signal", "environment", "root", "priority"}
    # So that it says something: within one cage all of it is reached.
    assert {name: its_own[name] for name in held_by_it} == dict.fromkeys(held_by_it, "allowed")
    assert {name for name in held_by_it if alone[name] not in ("EPERM", "EACCES")} == set(), alone
