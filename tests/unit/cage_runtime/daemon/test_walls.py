# SPDX-License-Identifier: LGPL-2.1-or-later
"""What becomes of a cage that requires a wall, and how walls are told."""

from __future__ import annotations

import msgspec
import pytest

from cage_runtime.config import Definition
from cage_runtime.daemon.walls import around, check_required, missing
from cage_runtime.errors import HostUnsupported
from cage_runtime.model import Wall
from cage_runtime.spawner.spec import Enforcement
from tests.unit.cage_runtime.daemon.test_doctor import GOOD

WHY = "libbpf.so.1 is not on this host; install libbpf1"
OLD = msgspec.structs.replace(GOOD, landlock_abi=2, lsm=WHY)


def test_a_host_that_has_all_lacks_nothing() -> None:
    assert missing(GOOD) == {}
    check_required(Definition(require=["lsm", "landlock"]), missing(GOOD))


@pytest.mark.parametrize(("require", "word"), [(["lsm"], WHY), (["landlock", "lsm"], "Landlock, ABI 2, has no rules")])
def test_what_is_required_and_not_there_is_refused_in_the_doctors_words(require: list[str], word: str) -> None:
    definition = msgspec.convert({"require": require}, Definition)
    with pytest.raises(HostUnsupported, match=word) as refused:
        check_required(definition, missing(OLD))
    assert f'requires "{require[0]}"' in refused.value.sentence
    check_required(Definition(), missing(OLD))


def test_the_walls_around_a_cage() -> None:
    found = around(Enforcement(xid=17, lsm="", denials={}), GOOD)
    assert {standing.wall for standing in found} == set(Wall)
    assert all(standing.enforced for standing in found)
    assert found[-1].detail == "context 17"
    weak = {standing.wall: standing for standing in around(Enforcement(xid=0, lsm=WHY, denials={}), OLD)}
    assert (weak[Wall.LSM].enforced, weak[Wall.LSM].detail) == (False, WHY)
    assert (weak[Wall.LANDLOCK].enforced, "abstract sockets" in weak[Wall.LANDLOCK].detail) == (False, True)
    assert weak[Wall.NAMESPACES].enforced
    assert weak[Wall.SECCOMP].enforced
