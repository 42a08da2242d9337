# SPDX-License-Identifier: LGPL-2.1-or-later
"""The cage half on a cage's own bus: started by the first request, gone when idle, an authority over nothing."""

from __future__ import annotations

import asyncio
import functools
import os
import socket
import sys
from collections import Counter
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from cage_runtime import generate, manifest
from cage_runtime.bus import DBUS, Answer, Bus, Call, Service
from cage_runtime.config import Paths
from cage_runtime.errors import (
    CageError,
    CutOff,
    InvalidName,
    NothingDone,
    PolicyRefused,
    RuntimeFailure,
    TransferFailed,
)
from cage_runtime.model import TRANSFERS_PER_CAGE, TRANSFERS_PER_PAIR
from mediators import wire
from mediators.files import protocol
from mediators.files.stream import Stream

TOP = Path(__file__).parents[3]
MEDIATORS = manifest.load(Paths(shipped=str(TOP / "policies"), administrator="/nonexistent"))
FILES = (protocol.BUS_NAME, protocol.PATH, protocol.INTERFACE)
HALF = """#!{python}
import os, sys
sys.path.insert(0, {top!r})
from mediators import main
from mediators import cagehalf
cagehalf.CAGE_BUS, cagehalf.GATEWAY = {bus!r}, {gateway!r}
cagehalf.CageHalf.__init__.__kwdefaults__.update(idle_seconds={idle}, core_seconds=0.2)
with open({log!r}, "a", buffering=1) as log:
    log.write(f"started {{os.getpid()}}\\n")
    sys.argv[1:] = ["files", "--cage"]
    status = main.main()
    log.write(f"ended {{status}}\\n")
"""


class Cage:
    """A cage's bus with the session on it, and a core half at the other end of the gateway."""

    def __init__(self, address: str, session: Bus, core: Bus, log: Path, gateway: Any) -> None:
        self.address, self.session, self.core, self.log, self.gateway = address, session, core, log, gateway
        self.answer: Callable[[Call], Coroutine[Any, Any, Answer]] = self._arrived
        self.heard: list[tuple[list[Any], int]] = []
        self.streams: list[Stream] = []
        """Of those that were begun, in this order."""
        self.begun: Callable[[], Coroutine[Any, Any, None]] = self._at_once
        """Awaited before it is answered that one has been begun."""
        self.cancelled: list[str] = []
        """The names of those for which that was asked."""

    async def serve(self) -> None:
        interface = wire.interface("files")
        handlers = {"StartFile": self._start, "StartTree": self._start}
        self.core.serve(protocol.PATH, Service(interface=interface, handlers=handlers))
        await self.core.own(protocol.BUS_NAME)

    async def _start(self, call: Call) -> Answer:
        tree = call.member == "StartTree"
        self.heard.append((call.arguments, 0 if tree else os.fstat(call.descriptors[0]).st_size))
        await self.begun()
        stream = Stream(tree=tree)
        self.streams.append(stream)
        work = asyncio.ensure_future(self.answer(call))
        stream.attend(gone=work.cancel, cancel=lambda: self.cancelled.append(call.arguments[1]))
        work.add_done_callback(functools.partial(self._ended, stream))
        return stream.answer()

    def _ended(self, stream: Stream, work: asyncio.Task[Answer]) -> None:
        if not work.cancelled():
            error = work.exception()
            if isinstance(error, CageError):
                stream.failed(error)
            else:
                stream.arrived(work.result().values[0])
        stream.close()

    async def _at_once(self) -> None:
        return

    async def _arrived(self, _call: Call) -> Answer:
        return Answer(values=("Inbox/work/x",))

    async def another(self) -> Bus:
        """One more program of the session."""
        return await Bus.connect(self.address)

    async def send(
        self, name: str = "x", descriptor: int | None = None, *, to: str = "vault", through: Bus | None = None
    ) -> str:
        opened = os.open(__file__, os.O_RDONLY) if descriptor is None else descriptor
        session = through or self.session
        try:
            answer = await session.call(*FILES, "Send", "ssha{sv}", (to, name, 0, {}), (opened,), seconds=20)
        finally:
            os.close(opened)
        return str(answer.values[0])

    async def gone(self) -> None:
        """Waits until nobody owns the mediator's name on the cage's bus."""
        while (await self.session.call(*DBUS, "NameHasOwner", "s", (FILES[0],))).values[0]:
            await asyncio.sleep(0)

    async def logged(self, line: str) -> None:
        async with asyncio.timeout(20):
            while line not in self.log.read_text():
                await asyncio.sleep(0)


@pytest.fixture
def play(tmp_path: Path, start_bus: Any, start_gateway: Any) -> Callable[..., None]:
    def run(test: Callable[[Cage], Coroutine[Any, Any, None]], *, idle: float = 30.0, with_core: bool = True) -> None:
        gateway, log, half = start_gateway("work"), tmp_path / "log", tmp_path / "half"
        bus = f"unix:path={tmp_path}/cage"
        half.write_text(HALF.format(python=sys.executable, top=str(TOP), bus=bus, gateway=gateway.address, idle=idle,
                                    log=str(log)))
        half.chmod(0o755)
        services = tmp_path / "services"
        services.mkdir()
        (services / "files.service").write_text(f"[D-BUS Service]\nName={FILES[0]}\nExec={half}\n")
        template = (TOP / "policies/cage-bus/bus.conf.in").read_text()
        text = generate.cage_bus(template, MEDIATORS)
        text = text.replace("/opt/cage-runtime/cage-bus/services", str(services))
        for uid in ("0", "990", "1000"):  # one uid plays all of them here; tests/privileged tells them apart
            text = text.replace(f'user="{uid}"', f'user="uid{os.getuid()}"')
        start_bus("cage", text.replace(f'user="uid{os.getuid()}"', f'user="{os.getuid()}"'))

        async def whole() -> None:
            cage = Cage(bus, await Bus.connect(bus), await Bus.connect(gateway.address), log, gateway)
            if with_core:
                await cage.serve()
            await test(cage)
            cage.session.disconnect()
            cage.core.disconnect()

        asyncio.run(whole())

    return run


Play = Callable[..., None]


def test_the_first_request_starts_it_and_passes_through(play: Play) -> None:
    async def test(cage: Cage) -> None:
        assert await cage.send("re\u0301sume\u0301.pdf") == "Inbox/work/x"
        assert await cage.send() == "Inbox/work/x"
        assert cage.heard[0] == (["vault", "re\u0301sume\u0301.pdf", 0, {}], os.stat(__file__).st_size)
        assert cage.log.read_text().count("started") == 1

    play(test)


def test_errors_of_the_core_half_pass_through_unchanged(play: Play) -> None:
    async def test(cage: Cage) -> None:
        async def refuse(_call: Call) -> Answer:
            raise PolicyRefused("no rule allows files.Send to that cage")

        cage.answer = refuse
        with pytest.raises(PolicyRefused) as refused:
            await cage.send()
        assert refused.value.sentence == "no rule allows files.Send to that cage"

    play(test)


@pytest.mark.parametrize(
    ("name", "opens", "kind", "says"),
    [
        ("../x", __file__, InvalidName, 'it has a "/"'),
        ("x", "/", TransferFailed, '"x" is not a regular file'),
        ("x", "/dev/null", TransferFailed, '"x" is not a regular file'),
    ],
)
def test_what_is_plainly_wrong_does_not_reach_the_core(
    play: Play, name: str, opens: str, kind: type[CageError], says: str
) -> None:
    async def test(cage: Cage) -> None:
        with pytest.raises(kind, match=says):
            await cage.send(name, os.open(opens, os.O_RDONLY))
        assert cage.heard == []

    play(test)


def test_without_a_core_half_it_says_so(play: Play) -> None:
    async def test(cage: Cage) -> None:
        with pytest.raises(RuntimeFailure, match="the core's files mediator is not running"):
            await cage.send()
        await cage.serve()
        assert await cage.send() == "Inbox/work/x"

    play(test, with_core=False)


def test_it_ends_when_idle_and_starts_again(play: Play) -> None:
    async def test(cage: Cage) -> None:
        await cage.send()
        await cage.gone()
        await cage.logged("ended 0")
        assert await cage.send() == "Inbox/work/x"
        assert cage.log.read_text().count("started") == 2

    play(test, idle=0.05)


def test_what_is_sent_is_given_up_when_whoever_sends_it_leaves(play: Play) -> None:
    """Of that transfer alone, the core half sees the connection end."""

    async def test(cage: Cage) -> None:
        given_up, done = asyncio.Event(), asyncio.Event()

        async def until_gone(_call: Call) -> Answer:
            try:
                await done.wait()
            except asyncio.CancelledError:
                given_up.set()
                raise
            return Answer(values=("Inbox/work/kept",))

        cage.answer = until_gone
        await cage.core.follow_callers()
        kept, leaving = asyncio.ensure_future(cage.send()), await cage.another()
        gone = asyncio.ensure_future(cage.send(through=leaving))
        while len(cage.heard) < 2:
            await asyncio.sleep(0)
        leaving.disconnect()
        async with asyncio.timeout(20):
            await given_up.wait()
        done.set()
        assert await kept == "Inbox/work/kept"
        with pytest.raises(RuntimeFailure):
            await gone

    play(test)


@pytest.mark.parametrize("ends", ["asked", "committed", "gateway"])
def test_where_the_core_ends_meanwhile_nobody_says_that_nothing_arrived(play: Play, ends: str) -> None:
    """Whether it has not said yet that it has begun; or it is committed; or the gateway ends with it."""
    async def test(cage: Cage) -> None:
        async def end() -> None:
            if ends == "gateway":
                cage.gateway.process.kill()
            cage.core.disconnect()
            raise asyncio.CancelledError

        async def commit(_call: Call) -> Answer:
            cage.streams[0].say(state=protocol.COMMITTED)
            await end()
            raise AssertionError

        if ends == "committed":
            cage.answer = commit
        else:
            cage.begun = end
        with pytest.raises(CutOff):
            await cage.send()

    play(test)


@pytest.mark.parametrize("state", [protocol.READING, protocol.DELIVERING])
def test_where_the_core_ends_before_it_is_committed_nothing_can_have_arrived(play: Play, state: str) -> None:
    async def test(cage: Cage) -> None:
        async def end(_call: Call) -> Answer:
            cage.streams[0].figures(state=state, done=1, total=2)
            raise asyncio.CancelledError

        cage.answer = end
        with pytest.raises(NothingDone, match='nothing of "x" arrived; send it again'):
            await cage.send()

    play(test)


def test_one_more_transfer_waits_until_another_has_ended(play: Play) -> None:
    """Of all, as of those to one target; those to others do not wait for it."""

    async def test(cage: Cage) -> None:
        done, under_way, peaks = asyncio.Event(), Counter[str](), Counter[str]()

        async def slow(call: Call) -> Answer:
            counted = ("all", call.arguments[0])
            under_way.update(counted)
            peaks.update(name for name in counted if under_way[name] > peaks[name])
            await done.wait()
            under_way.subtract(counted)
            return Answer(values=("Inbox/work/slow",))

        cage.answer = slow
        targets = [name for name in ("vault", "other", "third") for _ in range(TRANSFERS_PER_PAIR + 2)]
        sending = [asyncio.ensure_future(cage.send(to=target)) for target in targets]
        while under_way["all"] < TRANSFERS_PER_CAGE:
            await asyncio.sleep(0)
        done.set()
        assert await asyncio.gather(*sending) == ["Inbox/work/slow"] * len(targets)
        assert peaks["all"] == TRANSFERS_PER_CAGE
        assert max(peaks[name] for name in targets) == TRANSFERS_PER_PAIR

    play(test)


def test_whoever_leaves_does_not_wait_any_more(play: Play) -> None:
    async def test(cage: Cage) -> None:
        done = asyncio.Event()

        async def slow(_call: Call) -> Answer:
            await done.wait()
            return Answer(values=("Inbox/work/slow",))

        cage.answer = slow
        sending = [asyncio.ensure_future(cage.send()) for _ in range(TRANSFERS_PER_PAIR)]
        while len(cage.heard) < TRANSFERS_PER_PAIR:
            await asyncio.sleep(0)
        leaving = await cage.another()
        waiting = asyncio.ensure_future(cage.send("left", through=leaving))
        await asyncio.sleep(0)
        await leaving.has_owner(FILES[0])  # in order: the request is on its way to the half
        leaving.disconnect()
        with pytest.raises(RuntimeFailure):
            await waiting
        while await cage.session.has_owner(str(leaving._connection.unique_name)):
            await asyncio.sleep(0)
        done.set()
        await asyncio.gather(*sending)
        await cage.send("last")
        assert [arguments[1] for arguments, _size in cage.heard] == ["x"] * TRANSFERS_PER_PAIR + ["last"]

    play(test)


def test_a_long_transfer_is_not_idleness(play: Play) -> None:
    async def test(cage: Cage) -> None:
        done = asyncio.Event()

        async def slow(_call: Call) -> Answer:
            await done.wait()
            return Answer(values=("Inbox/work/slow",))

        cage.answer = slow
        sending = asyncio.ensure_future(cage.send())
        while not cage.heard:
            await asyncio.sleep(0)
        asyncio.get_running_loop().call_later(0.2, done.set)  # four times what it waits when idle
        assert await sending == "Inbox/work/slow"
        assert cage.log.read_text().count("started") == 1

    play(test, idle=0.05)


def test_a_gateway_that_is_just_being_made_anew_is_waited_for(play: Play) -> None:
    """As where caged ends before there is a bus: who has connected is cut off, and nobody listens for a while."""

    async def test(cage: Cage) -> None:
        path = Path(cage.gateway.path)
        path.rename(f"{path}.new")
        with socket.socket(socket.AF_UNIX) as dying:
            dying.bind(str(path))
            dying.listen()
            dying.setblocking(False)
            sending = asyncio.ensure_future(cage.send())
            connection, _ = await asyncio.get_running_loop().sock_accept(dying)
            connection.close()
        path.unlink()
        Path(f"{path}.new").rename(path)
        assert await sending == "Inbox/work/x"

    play(test)


def test_it_ends_with_an_error_when_its_gateway_ends(play: Play) -> None:
    async def test(cage: Cage) -> None:
        await cage.send()
        cage.gateway.process.kill()
        await cage.logged("ended 125")

    play(test)
