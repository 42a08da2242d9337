# SPDX-License-Identifier: LGPL-2.1-or-later
"""Transfers as jobs on a cage's own bus: seen and cancelled by whose they are, bounded, gone when they have ended."""

from __future__ import annotations

import asyncio
import json
import os
from typing import Any

import pytest

from cage_runtime.bus import PROPERTIES, Answer, Bus, Call
from cage_runtime.errors import Cancelled, CutOff, NothingDone, RuntimeFailure, TransferFailed
from cage_runtime.model import (
    PROGRESS_UNREAD_MAX,
    TRANSFER_JOBS_LISTED,
    TRANSFER_JOBS_MAX,
    TRANSFERS_PER_CAGE,
    TRANSFERS_PER_PAIR,
)
from mediators.files import protocol
from mediators.files.protocol import CANCEL, COMMITTED, READING, WAITING
from tests.bus.mediators.test_files_cage import FILES, Cage, Play, play

__all__ = ["play"]  # the fixture
JOB = protocol.JOB_INTERFACE


class Slow:
    """A core half whose transfers go on until each is told what becomes of it."""

    def __init__(self, cage: Cage) -> None:
        self.cage, self.ends = cage, dict[str, asyncio.Future[str]]()
        cage.answer = self._answer

    async def _answer(self, call: Call) -> Answer:
        ended = self.ends[call.arguments[1]] = asyncio.get_running_loop().create_future()
        return Answer(values=(await ended,))

    async def has(self, number: int) -> None:
        async with asyncio.timeout(20):
            while len(self.ends) < number:
                await asyncio.sleep(0)

    async def asked_to_cancel(self, name: str) -> None:
        async with asyncio.timeout(20):
            while name not in self.cage.cancelled:
                await asyncio.sleep(0)

    def cancelled(self, name: str) -> None:
        self.ends[name].set_exception(Cancelled(f'"{name}" was cancelled; nothing arrived'))


async def jobs(cage: Cage, through: Bus | None = None) -> list[list[Any]]:
    (rows,) = (await (through or cage.session).call(*FILES, "ListJobs")).values
    return [list(row) for row in rows]


async def cancel(cage: Cage, path: str) -> None:
    await cage.session.call(FILES[0], path, JOB, "Cancel", seconds=20)


def send(cage: Cage, name: str, to: str = "vault", through: Bus | None = None) -> asyncio.Task[str]:
    return asyncio.ensure_future(cage.send(name, to=to, through=through))


async def start(cage: Cage, name: str = "x", through: Bus | None = None) -> tuple[int, int]:
    """The pipes of a transfer that is followed."""
    descriptor = os.open(__file__, os.O_RDONLY)
    try:
        answer = await (through or cage.session).call(
            *FILES, "StartFile", "ssha{sv}", ("vault", name, 0, {}), (descriptor,), seconds=20)
    finally:
        os.close(descriptor)
    status, control = answer.descriptors
    return status, control


async def told(status: int) -> list[dict[str, Any]]:
    def read() -> bytes:
        with open(status, "rb") as file:
            return file.read()

    async with asyncio.timeout(20):
        return [json.loads(line) for line in (await asyncio.to_thread(read)).splitlines()]


def test_each_transfer_has_a_job_while_it_is_under_way(play: Play) -> None:
    async def test(cage: Cage) -> None:
        slow = Slow(cage)
        sending = [send(cage, "a"), send(cage, "b", to="")]
        await slow.has(2)
        cage.streams[0].figures(state=READING, done=3, total=17)
        async with asyncio.timeout(20):
            while (found := await jobs(cage))[0][5] != 3:
                pass
        first, second = found
        path = f"{protocol.PATH}/jobs/{first[0]}"
        assert first == [first[0], path, READING, "vault", "a", 3, 17]
        assert second[2:] == [READING, "", "b", 0, 0]
        assert first[0] != second[0]
        properties = (await cage.session.call(FILES[0], path, PROPERTIES, "GetAll", "s", (JOB,))).values[0]
        assert {key: variant.value for key, variant in properties.items()} == {
            "State": READING, "Target": "vault", "Name": "a", "Done": 3, "Total": 17}
        got = await cage.session.call(FILES[0], path, PROPERTIES, "Get", "ss", (JOB, "Done"))
        assert got.values[0].value == 3
        for end in slow.ends.values():
            end.set_result("Inbox/work/x")
        await asyncio.gather(*sending)
        assert await jobs(cage) == []

    play(test)


def test_one_that_waits_for_its_place_is_cancelled_before_the_core_hears_of_it(play: Play) -> None:
    async def test(cage: Cage) -> None:
        slow = Slow(cage)
        first = [send(cage, f"first{number}") for number in range(TRANSFERS_PER_PAIR)]
        await slow.has(TRANSFERS_PER_PAIR)
        late = send(cage, "late")
        async with asyncio.timeout(20):
            while len(found := await jobs(cage)) == TRANSFERS_PER_PAIR:
                pass
        await cancel(cage, found[-1][1])
        with pytest.raises(Cancelled, match='"late" was cancelled; nothing arrived'):
            await late
        for end in slow.ends.values():
            end.set_result("Inbox/work/x")
        await asyncio.gather(*first)
        assert "late" not in [arguments[1] for arguments, _size in cage.heard]

    play(test)


def test_who_cancels_hears_when_it_is_done_and_so_does_who_sends(play: Play) -> None:
    """Twice is once."""
    async def test(cage: Cage) -> None:
        slow = Slow(cage)
        sending = send(cage, "x")
        await slow.has(1)
        ((_number, path, *_rest),) = await jobs(cage)
        cancelling = [asyncio.ensure_future(cancel(cage, path)) for _ in range(2)]
        await slow.asked_to_cancel("x")
        assert not any(task.done() for task in cancelling)
        slow.cancelled("x")
        await asyncio.gather(*cancelling)
        with pytest.raises(Cancelled):
            await sending
        assert cage.cancelled == ["x"]

    play(test)


def test_one_that_the_core_is_just_being_asked_for_is_cancelled_there(play: Play) -> None:
    async def test(cage: Cage) -> None:
        slow, asked, go = Slow(cage), asyncio.Event(), asyncio.Event()

        async def begun() -> None:
            asked.set()
            await go.wait()

        cage.begun = begun
        sending = send(cage, "x")
        await asked.wait()
        ((_number, path, *_rest),) = await jobs(cage)
        cancelling = asyncio.ensure_future(cancel(cage, path))
        await cage.session.has_owner(FILES[0])  # in order: it has been asked for
        go.set()
        await slow.asked_to_cancel("x")
        slow.cancelled("x")
        await cancelling
        with pytest.raises(Cancelled):
            await sending

    play(test)


async def cancelled_late(cage: Cage) -> tuple[Slow, asyncio.Future[str], asyncio.Future[None]]:
    """A transfer that has been asked for, and of which the core half has heard that it is to be cancelled."""
    slow = Slow(cage)
    sending = send(cage, "x")
    await slow.has(1)
    ((_number, path, *_rest),) = await jobs(cage)
    cancelling = asyncio.ensure_future(cancel(cage, path))
    await slow.asked_to_cancel("x")
    return slow, sending, cancelling


def test_too_late_it_is_said_that_it_has_arrived(play: Play) -> None:
    async def test(cage: Cage) -> None:
        slow, sending, cancelling = await cancelled_late(cage)
        slow.ends["x"].set_result("Inbox/work/x")
        with pytest.raises(TransferFailed, match='"x" could not be cancelled any more: it has arrived, in Inbox/work/'):
            await cancelling
        assert await sending == "Inbox/work/x"

    play(test)


def test_one_that_failed_meanwhile_says_why(play: Play) -> None:
    async def test(cage: Cage) -> None:
        slow, sending, cancelling = await cancelled_late(cage)
        slow.ends["x"].set_exception(TransferFailed("its home is full"))
        for waiting in (cancelling, sending):
            with pytest.raises(TransferFailed, match="its home is full"):
                await waiting

    play(test)


@pytest.mark.parametrize("number", ["1", "2", "0", "99999999999", "x"])
def test_what_has_ended_and_what_never_was_are_not_there(play: Play, number: str) -> None:
    async def test(cage: Cage) -> None:
        await cage.send()  # which was 1
        path = f"{protocol.PATH}/jobs/{number}"
        for interface, member, signature, arguments in (
                (JOB, "Cancel", "", ()), (PROPERTIES, "GetAll", "s", (JOB,)), (PROPERTIES, "Get", "ss", (JOB, "Name"))):
            with pytest.raises(RuntimeFailure, match="there is no object"):
                await cage.session.call(FILES[0], path, interface, member, signature, arguments)

    play(test)


def test_there_are_no_more_than_there_may_be(play: Play) -> None:
    """Whoever makes thousands, with names as long as they may be: the list of them still fits a message."""
    async def test(cage: Cage) -> None:
        slow, name = Slow(cage), "n" * 250
        several = [await cage.another() for _ in range(8)]
        pipes = [await start(cage, f"{name}{number}", several[number % len(several)])
                 for number in range(TRANSFER_JOBS_MAX)]
        with pytest.raises(TransferFailed, match=f"{TRANSFER_JOBS_MAX} transfers of this cage are under way or wait"):
            await start(cage, "one more")
        await slow.has(TRANSFERS_PER_PAIR)
        assert [job[4] for job in await jobs(cage)] == [f"{name}{number}" for number in range(TRANSFER_JOBS_LISTED)]
        assert len(cage.heard) == TRANSFERS_PER_PAIR <= TRANSFERS_PER_CAGE
        for status, control in pipes:
            os.close(status)
            os.close(control)
        async with asyncio.timeout(20):
            while await jobs(cage):
                pass
        sending = send(cage, "after")
        await slow.has(TRANSFERS_PER_PAIR + 1)
        slow.ends["after"].set_result("Inbox/work/after")
        assert await sending == "Inbox/work/after"
        assert cage.log.read_text().count("started") == 1

    play(test)


# --- followed ----------------------------------------------------------------------------------------------------
def test_whoever_follows_one_is_told_its_number_and_all_that_the_core_tells(play: Play) -> None:
    async def test(cage: Cage) -> None:
        slow = Slow(cage)
        status, control = await start(cage)
        await slow.has(1)
        ((number, _path, *_rest),) = await jobs(cage)
        cage.streams[0].figures(state=READING, done=1, total=2)
        assert cage.streams[0].say(state=COMMITTED)
        slow.ends["x"].set_result("Inbox/work/x")
        assert await told(status) == [
            {"job": number, "state": WAITING, "done": 0, "total": 0}, {"state": READING, "done": 1, "total": 2},
            {"state": COMMITTED}, {"arrived": "Inbox/work/x"}]
        os.close(control)

    play(test)


def test_the_word_cancels_it(play: Play) -> None:
    async def test(cage: Cage) -> None:
        slow = Slow(cage)
        status, control = await start(cage)
        await slow.has(1)
        os.write(control, CANCEL * 100)
        await slow.asked_to_cancel("x")
        slow.cancelled("x")
        assert (await told(status))[-1]["error"] == "org.cageruntime.Error.Cancelled"
        assert cage.cancelled == ["x"]
        os.close(control)

    play(test)


@pytest.mark.parametrize("closes", ["status", "control"])
def test_it_is_given_up_where_nobody_follows_it_any_more(play: Play, closes: str) -> None:
    async def test(cage: Cage) -> None:
        slow = Slow(cage)
        status, control = await start(cage)
        await slow.has(1)
        os.close(status if closes == "status" else control)
        async with asyncio.timeout(20):
            while not slow.ends["x"].cancelled():
                await asyncio.sleep(0)
        assert await jobs(cage) == []
        os.close(control if closes == "status" else status)

    play(test)


@pytest.mark.parametrize("committed", [True, False])
def test_where_the_core_ends_whoever_follows_is_told_whether_it_may_have_arrived(play: Play, committed: bool) -> None:
    async def test(cage: Cage) -> None:
        slow = Slow(cage)
        status, control = await start(cage)
        await slow.has(1)
        if committed:
            assert cage.streams[0].say(state=COMMITTED)
        cage.streams[0].close()
        last = (await told(status))[-1]
        assert last["error"] == "org.cageruntime.Error." + (CutOff if committed else NothingDone).bus_name
        os.close(control)
        slow.ends["x"].cancel()

    play(test)


def test_whoever_never_reads_has_a_bounded_backlog_and_the_end_of_it(play: Play) -> None:
    async def test(cage: Cage) -> None:
        slow = Slow(cage)
        status, control = await start(cage)
        await slow.has(1)
        for done in range(2000):
            cage.streams[0].figures(state=READING, done=done, total=2000)
            if not done % 20:
                await jobs(cage)  # the half reads meanwhile
        assert cage.streams[0].say(state=COMMITTED)
        slow.ends["x"].set_result("Inbox/work/x")
        lines = await told(status)
        assert len(json.dumps(lines)) < 3 * PROGRESS_UNREAD_MAX
        assert lines[-2:] == [{"state": COMMITTED}, {"arrived": "Inbox/work/x"}]
        os.close(control)

    play(test)


@pytest.mark.parametrize("said", [b"no json\n", b"x" * 20000, b"[1]\n"])
def test_what_the_core_cannot_have_said_ends_it(play: Play, said: bytes) -> None:
    async def test(cage: Cage) -> None:
        slow = Slow(cage)
        status, control = await start(cage)
        await slow.has(1)
        os.write(cage.streams[0]._status, said)
        last = (await told(status))[-1]
        assert "says what cannot be understood" in last["sentence"]
        assert await jobs(cage) == []
        os.close(control)

    play(test)


# --- trees -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("member", ["SendTree", "StartTree"])
def test_a_tree_goes_to_the_core_and_has_its_job(play: Play, member: str) -> None:
    async def test(cage: Cage) -> None:
        slow = Slow(cage)
        answer = await cage.session.call(*FILES, member, "ssa{sv}", ("vault", "papers", {}), seconds=20)
        tree, status, *control = answer.descriptors
        assert len(control) == (1 if member == "StartTree" else 0)
        os.write(tree, b"whole")
        assert os.read(cage.streams[0].tree, 100) == b"whole"
        await slow.has(1)
        ((_number, path, _state, _target, name, *_rest),) = await jobs(cage)
        assert name == "papers"
        cancelling = asyncio.ensure_future(cancel(cage, path))
        await slow.asked_to_cancel("papers")
        slow.cancelled("papers")
        await cancelling
        lines = await told(status)
        assert lines[-1]["error"] == "org.cageruntime.Error.Cancelled"
        assert len(lines) == (2 if member == "StartTree" else 1)
        for descriptor in (tree, *control):
            os.close(descriptor)

    play(test)


def test_whoever_leaves_while_a_tree_waits_for_its_place_leaves_no_job(play: Play) -> None:
    async def test(cage: Cage) -> None:
        slow = Slow(cage)
        first = [send(cage, f"first{number}") for number in range(TRANSFERS_PER_PAIR)]
        await slow.has(TRANSFERS_PER_PAIR)
        leaving = await cage.another()
        waiting = asyncio.ensure_future(leaving.call(*FILES, "StartTree", "ssa{sv}", ("vault", "papers", {})))
        async with asyncio.timeout(20):
            while len(await jobs(cage)) == TRANSFERS_PER_PAIR:
                pass
        leaving.disconnect()
        with pytest.raises(CutOff):
            await waiting
        async with asyncio.timeout(20):
            while len(await jobs(cage)) > TRANSFERS_PER_PAIR:
                pass
        for end in slow.ends.values():
            end.set_result("Inbox/work/x")
        await asyncio.gather(*first)
        assert "papers" not in [arguments[1] for arguments, _size in cage.heard]

    play(test)
