# SPDX-License-Identifier: LGPL-2.1-or-later
"""require=signed:KEY at the core half: what was not looked at when it was read is not sent on a later word."""

from __future__ import annotations

import os
from typing import Any

import pytest

from cage_runtime.bus import Variant
from cage_runtime.errors import PolicyRefused, UsageError
from cage_runtime.model import SIGNATURE_BYTES_MAX
from mediators.files import protocol
from tests.bus.mediators.conftest import Play, World
from tests.bus.mediators.test_files_trees import Tree

pytestmark = pytest.mark.usefixtures("system_bus")


async def send(world: World, signature: Any) -> None:
    opened = os.open(world.homes / "source", os.O_RDONLY)
    try:
        await world.clients["work"].call(
            protocol.BUS_NAME, protocol.PATH, protocol.INTERFACE, protocol.SEND, protocol.SEND_SIGNATURE,
            ("vault", "figures.txt", 0, {"signature": signature}), (opened,), seconds=20)
    finally:
        os.close(opened)


@pytest.mark.parametrize("one_way", [False, True])
def test_a_rule_that_wants_it_signed_by_now_has_it_refused(play: Play, one_way: bool) -> None:
    """M18: the policy that is in force at delivery counts, and a copy that nobody has looked at is none."""

    async def test(world: World) -> None:
        world.caged.one_way = one_way

        def reload() -> None:
            world.caged.require = "signed:editor"

        world.caged.before_confirmed = reload
        with pytest.raises(PolicyRefused, match="would have to be signed otherwise for that cage"):
            await world.send("work", "vault")
        assert (world.caged.delivering, world.arrived(), list(world.staging.iterdir())) == (0, [], [])
        assert "signed otherwise" in (await world.recorded())["outcome"]

    play(test)


def test_what_the_core_half_cannot_do_is_refused_before_anything_is_read(play: Play) -> None:
    async def test(world: World) -> None:
        world.caged.require = "virus-scan"
        with pytest.raises(PolicyRefused, match='looked at by "virus-scan"'):
            await world.send("work", "vault")
        world.caged.require = "signed:no-such-key"
        with pytest.raises(PolicyRefused, match="signed by no-such-key, whose public key the core does not have"):
            await world.send("work", "vault")
        with pytest.raises(PolicyRefused, match="is a directory, and the policy wants what is sent there signed"):
            await Tree.begin(world)
        assert (world.caged.delivering, world.arrived()) == (0, [])

    play(test)


def test_a_signature_that_nobody_wants_changes_nothing(play: Play) -> None:
    async def test(world: World) -> None:
        await send(world, Variant("ay", b"anything"))
        assert world.arrived() == ["vault/Inbox/work/figures.txt"]

    play(test)


@pytest.mark.parametrize("signature", [Variant("ay", b""), Variant("ay", b"s" * (SIGNATURE_BYTES_MAX + 1)),
                                       Variant("s", "text"), Variant("as", ["text"])], ids=["no", "long", "s", "as"])
def test_what_cannot_be_one_is_not_even_asked_about(play: Play, signature: Any) -> None:
    async def test(world: World) -> None:
        with pytest.raises(UsageError):
            await send(world, signature)
        assert world.caged.asked == []

    play(test)
