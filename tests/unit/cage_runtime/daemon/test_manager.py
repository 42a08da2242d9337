# SPDX-License-Identifier: LGPL-2.1-or-later
"""What waits for a cage gets that cage or none: its name may have come again meanwhile (M17)."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any, cast

import pytest

from cage_runtime.config import Definition, Paths
from cage_runtime.daemon.manager import Manager
from cage_runtime.daemon.state import Record, now
from cage_runtime.errors import NoSuchCage
from cage_runtime.model import Levels

WORK = Record(name="work", uuid="a" * 32, created=now(), owner=0, definition=Definition(level="public"))


def test_a_cage_of_the_same_name_is_another_cage() -> None:
    manager = Manager(
        paths=Paths(), levels=Levels(names=("public",)), registry=cast(Any, None), spawner=cast(Any, None),
        chain=cast(Any, None), gateways=cast(Any, None), lives=cast(Any, None), changed=lambda _cage, _present: None,
    )
    before = manager.admit(WORK)

    async def held_meanwhile() -> None:
        async with manager.held(before):
            waiting = asyncio.ensure_future(manager.stop(before))
            await asyncio.sleep(0)
            after = manager.admit(replace(WORK, uuid="b" * 32))
        with pytest.raises(NoSuchCage, match='there is no cage "work" any more'):
            await waiting
        async with manager.held(after):
            assert manager.find("work") is after

    asyncio.run(held_meanwhile())
