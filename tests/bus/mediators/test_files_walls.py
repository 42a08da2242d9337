# SPDX-License-Identifier: LGPL-2.1-or-later
"""The core half against whoever takes its time, leaves, or would like to say something down the wall."""

from __future__ import annotations

import asyncio
import ctypes
import errno
import os
import signal
from typing import Any

import pytest

from cage_runtime.errors import PolicyRefused, RuntimeFailure, TransferFailed
from cage_runtime.model import TRANSFERS_PER_CAGE, TRANSFERS_PER_PAIR, Flow
from mediators.files import transfer
from mediators.files.protocol import DAMAGED, WITHDRAWN
from mediators.stage import Stager
from tests.bus.mediators.conftest import VAULT, WORK, Play, World, client

pytestmark = pytest.mark.usefixtures("system_bus")
OTHER = "33333333-other"


def hang(_source: int, _target: int, _size: int) -> tuple[int, str]:
    ctypes.CDLL(None).pause()
    return 1, ""

# --- what the source hears of the target -------------------------------------------------------------------------
UNLEVEL = [Flow.UP, Flow.DOWN, Flow.INCOMPARABLE]
HEARD = '"figures.txt" did not arrive in vault, which may be stopped or full; the core\'s audit log says why'


@pytest.mark.parametrize("flow", UNLEVEL)
def test_the_name_that_the_target_chose_stays_there(play: Play, flow: Flow) -> None:
    async def test(world: World) -> None:
        world.caged.flow = flow
        for _ in range(2):
            assert await world.send("work", "vault") == "Inbox/work/"
        assert world.arrived() == ["vault/Inbox/work/figures (2).txt", "vault/Inbox/work/figures.txt"]
        outcomes = [(await world.recorded())["outcome"] for _ in range(4)]
        assert outcomes[1::2] == [f"arrived as Inbox/work/{name}" for name in ("figures.txt", "figures (2).txt")]

    play(test)


def full_inbox(world: World) -> None:
    (world.homes / "vault/Inbox").symlink_to("/")


def full_chain(world: World) -> None:
    world.caged.full = True


def gone(world: World) -> None:
    world.caged.before_confirmed = lambda: world.caged.names.pop(VAULT) and None


FAULTS = {
    "no inbox": (full_inbox, "its Inbox is not a directory that can be written"),
    "a full chain": (full_chain, "the chain takes nothing"),
    "no target": (gone, "Deliver failed inside the runtime; see its journal"),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("flow", UNLEVEL)
def test_why_it_did_not_arrive_stays_there(play: Play, flow: Flow, fault: str) -> None:
    make, why = FAULTS[fault]

    async def test(world: World) -> None:
        world.caged.flow = flow
        make(world)
        with pytest.raises(TransferFailed) as failed:
            await world.send("work", "vault")
        assert failed.value.sentence == HEARD
        if not world.caged.full:
            assert why in (await world.recorded())["outcome"]

    play(test)


def test_where_policy_has_led_it_the_source_does_not_hear(play: Play) -> None:
    async def test(world: World) -> None:
        world.caged.flow, world.caged.led_to = Flow.UP, "hidden"
        full_inbox(world)
        with pytest.raises(TransferFailed) as failed:
            await world.send("work", "vault")
        assert failed.value.sentence == HEARD

    play(test)


def test_what_the_source_has_done_itself_it_hears(play: Play) -> None:
    async def test(world: World) -> None:
        world.caged.flow = Flow.UP
        with pytest.raises(TransferFailed, match="is a directory, not a regular file"):
            await world.send("work", "vault", descriptor=os.open("/", os.O_RDONLY))
        world.caged.asked.clear()
        world.caged.before_confirmed = world.caged.allowed.clear
        with pytest.raises(PolicyRefused, match="no rule allows"):
            await world.send("work", "vault")

    play(test)


# --- how many at once --------------------------------------------------------------------------------------------
def test_a_ninth_transfer_at_once_is_refused_and_others_are_not(play: Play) -> None:
    """M13: one cage's transfers do not keep another cage from asking."""

    async def test(world: World) -> None:
        targets = [f"vault-{number}" for number in range(TRANSFERS_PER_CAGE)]
        for target in targets:
            world.caged.allowed[WORK, target] = target
        sends = [asyncio.ensure_future(world.send("work", target)) for target in targets]
        await world.until(lambda: len(world.caged.asked) == TRANSFERS_PER_CAGE)
        with pytest.raises(TransferFailed, match="8 transfers of this cage are under way"):
            await world.send("work", "vault")
        with pytest.raises(PolicyRefused):
            await world.send("vault", "work")
        for send in sends:
            send.cancel()

    play(test, copier=hang)


def test_one_more_transfer_of_a_pair_is_refused_and_those_to_others_are_not(play: Play) -> None:
    """A target that takes its time does not keep the source from sending to others."""

    async def test(world: World) -> None:
        world.caged.starting = asyncio.Event()
        world.caged.allowed[WORK, "other"] = OTHER
        sends = [asyncio.ensure_future(world.send("work", "vault")) for _ in range(TRANSFERS_PER_PAIR)]
        await world.until(lambda: world.caged.delivering == TRANSFERS_PER_PAIR)
        with pytest.raises(TransferFailed) as refused:
            await world.send("work", "vault")
        assert refused.value.sentence == (
            f"{TRANSFERS_PER_PAIR} transfers of this cage to that one are under way; wait until one has ended")
        with pytest.raises(PolicyRefused):  # of a target that is refused, nobody hears that
            await world.send("work", "personal")
        world.caged.add("other", OTHER, "unix:path=/nowhere")
        more = asyncio.ensure_future(world.send("work", "other"))
        await world.until(lambda: world.caged.delivering == TRANSFERS_PER_PAIR + 1)
        world.caged.starting.set()
        assert len(set(await asyncio.gather(*sends))) == TRANSFERS_PER_PAIR
        assert await more == "Inbox/work/figures.txt"

    play(test)


# --- a target, or a source, that takes its time ------------------------------------------------------------------
LET_GO = ([WITHDRAWN], [DAMAGED], [-signal.SIGHUP], [120])
"""The status of a delivery half that nobody waits for: it was at its gate, had found what was staged given back, had
hardly begun, or could not say so to anybody (Python's status where the last output is lost)."""


def test_a_delivery_has_time_by_its_size() -> None:
    assert [transfer.delivery_seconds(size) for size in (1, 200 << 20, 64 << 30)] == [pytest.approx(30.0), 130.0, 900.0]


def test_a_delivery_that_starts_too_late_does_not_arrive(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its half is started when nobody waits for it any more, and is told so."""
    monkeypatch.setattr(transfer, "DELIVERY_SECONDS", 0.2)

    async def test(world: World) -> None:
        world.caged.starting = asyncio.Event()
        with pytest.raises(RuntimeFailure, match="did not answer Deliver within 0 s"):
            await world.send("work", "vault")
        assert "did not answer" in (await world.recorded())["outcome"]
        world.caged.starting.set()
        await world.until(lambda: world.caged.ended)
        assert world.caged.ended in LET_GO
        assert world.arrived() == []

    play(test)


@pytest.mark.parametrize("flow", [Flow.LEVEL, Flow.UP])
def test_a_target_that_stops_has_its_time_and_no_more(
    play: Play, monkeypatch: pytest.MonkeyPatch, flow: Flow
) -> None:
    monkeypatch.setattr(transfer, "delivery_seconds", lambda _size, _files: 0.2)

    async def test(world: World) -> None:
        world.caged.flow, world.caged.stops, world.caged.keeps = flow, True, []
        with pytest.raises(TransferFailed, match=r"had not received it|which may be stopped"):
            await world.send("work", "vault")
        assert "had not received it" in (await world.recorded())["outcome"]
        (kept,) = world.caged.keeps
        assert os.fstat(kept).st_blocks == 0, "the core has its space back"
        os.close(kept)
        await world.until(lambda: world.caged.ended == [-9])

    play(test)


def test_what_is_sent_is_given_up_when_whoever_sends_it_leaves(play: Play) -> None:
    async def test(world: World) -> None:
        world.caged.starting = asyncio.Event()
        sending = asyncio.ensure_future(world.send("work", "vault"))
        await world.until(lambda: world.caged.delivering == 1)
        world.clients["work"].disconnect()
        assert (await world.recorded())["outcome"] == \
            "given up, because whoever sent it has gone; nothing arrived"
        with pytest.raises(RuntimeFailure):
            await sending
        world.caged.starting.set()
        await world.until(lambda: world.caged.ended)
        assert world.caged.ended in LET_GO
        assert world.arrived() == []

    play(test)


def test_what_is_given_up_takes_no_place_while_it_is_recorded(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In its cage, somebody may have waited for one."""
    recorded = transfer.Transfers._record_outcome

    async def test(world: World) -> None:
        again = await client(world.gateways["work"].address)
        world.caged.starting, may_record = asyncio.Event(), asyncio.Event()

        async def wait(*what: Any) -> None:
            await may_record.wait()
            await recorded(*what)

        monkeypatch.setattr(transfer.Transfers, "_record_outcome", wait)
        sends = [asyncio.ensure_future(world.send("work", "vault")) for _ in range(TRANSFERS_PER_PAIR)]
        await world.until(lambda: world.caged.delivering == TRANSFERS_PER_PAIR)
        world.clients["work"].disconnect()
        await asyncio.gather(*sends, return_exceptions=True)
        while await again.has_owner(str(world.clients["work"]._connection.unique_name)):
            await asyncio.sleep(0)
        world.clients["work"] = again
        more = [asyncio.ensure_future(world.send("work", "vault")) for _ in range(TRANSFERS_PER_PAIR)]
        await world.until(lambda: world.caged.delivering == 2 * TRANSFERS_PER_PAIR)
        may_record.set()
        world.caged.starting.set()
        assert len(set(await asyncio.gather(*more))) == TRANSFERS_PER_PAIR

    play(test)


def test_whoever_goes_while_its_outcome_is_recorded_takes_nothing_of_that_along(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    noted = transfer.Transfers._note_outcome

    async def test(world: World) -> None:
        begun, may_record = asyncio.Event(), asyncio.Event()

        async def wait(*what: Any) -> None:
            begun.set()
            await may_record.wait()
            await noted(*what)

        monkeypatch.setattr(transfer.Transfers, "_note_outcome", wait)
        sending = asyncio.ensure_future(world.send("work", "vault", descriptor=os.open("/", os.O_RDONLY)))
        async with asyncio.timeout(20):
            await begun.wait()
        gone = str(world.clients["work"]._connection.unique_name)
        world.clients["work"].disconnect()
        await asyncio.gather(sending, return_exceptions=True)
        again = world.clients["work"] = await client(world.gateways["work"].address)
        while await again.has_owner(gone):
            await asyncio.sleep(0)
        with pytest.raises(PolicyRefused):  # by then the core half has seen that the other one has gone
            await world.send("work", "nowhere")
        may_record.set()
        assert "is a directory" in (await world.recorded())["outcome"]
        await world.until(lambda: list(world.staging.iterdir()) == [])

    play(test)


def test_what_is_sent_is_given_up_when_its_gateway_ends(play: Play) -> None:
    async def test(world: World) -> None:
        world.caged.starting = asyncio.Event()
        sending = asyncio.ensure_future(world.send("work", "vault"))
        await world.until(lambda: world.caged.delivering == 1)
        world.gateways["work"].process.kill()
        assert (await world.recorded())["outcome"] == \
            "given up, because whoever sent it has gone; nothing arrived"
        with pytest.raises(RuntimeFailure):
            await sending
        world.caged.starting.set()
        await world.until(lambda: world.caged.ended)
        assert world.caged.ended in LET_GO

    play(test)


def test_a_failure_of_the_core_is_recorded(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(world: World) -> None:
        def broken(*_: object) -> None:
            raise OSError(errno.EMFILE, "Too many open files")

        monkeypatch.setattr(Stager, "_unnamed", broken)
        with pytest.raises(RuntimeFailure, match="Send failed inside the runtime"):
            await world.send("work", "vault")
        assert (await world.recorded())["outcome"] == "[Errno 24] Too many open files"

    play(test)
