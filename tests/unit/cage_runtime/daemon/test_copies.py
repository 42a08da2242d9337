# SPDX-License-Identifier: LGPL-2.1-or-later
"""A copy into a cage or out of it: nothing gets a name that both sides do not say the same of and that is not recorded,
whatever the half there does, and whoever is not heard of any more holds up nobody."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import select
import socket
from array import array
from collections.abc import Callable, Coroutine
from typing import Any, cast

import pytest

from cage_runtime.audit.event import Kind
from cage_runtime.config import Definition
from cage_runtime.daemon import copies
from cage_runtime.daemon.cage import Cage
from cage_runtime.daemon.copies import Begun, Copies, CopyOptions
from cage_runtime.daemon.jobs import Jobs
from cage_runtime.daemon.manager import Manager
from cage_runtime.daemon.sessions import Sessions, Started
from cage_runtime.daemon.state import Record, now
from cage_runtime.errors import CageError, RuntimeFailure, TransferFailed, WrongState
from cage_runtime.model import CageState, Label

RECORD = Record(name="work", uuid="a" * 32, created=now(), owner=0, definition=Definition(level="public"))
DIGEST = "c" * 64
WHOLE = json.dumps({"size": 5, "files": 1, "sha256": DIGEST}).encode() + b"\n"
EXIT, GO = b'{"event": "exit", "status": %d}', b'{"signal": 10}'
GIVEN = [{"outcome": "begun"}, {"outcome": "is given its name"}]


class Half:
    """The half in the cage, and all there is of the core around the copy; it has done what it does beforehand."""

    def __init__(self, output: bytes, *, status: int | None = 0, diagnostics: bytes = b"", alive: bool = False) -> None:
        near, self.socket = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.near, self.stream, self.records, self.refuses = near.detach(), -1, list[dict[str, str]](), ""
        self.told: list[bytes] = []
        """Once it is over, what the half was told."""
        pipes = [os.pipe(), os.pipe()]
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [pipe[0] for pipe in pipes]))]
        self.socket.sendmsg([b'{"event": "started"}'], ancillary)
        self.ends = [write for _, write in pipes]
        os.write(self.ends[0], output)
        os.write(self.ends[1], diagnostics)
        for read, write in pipes:
            os.close(read)
            if not alive:
                os.close(write)
        if not alive:
            self.socket.send(EXIT % status)
            self.ends = []

    async def copy(self, _cage: Cage, arguments: list[str], stream: int) -> Started:
        self.arguments, self.stream = arguments, os.dup(stream)
        return Started(channel=self.near)

    def record(self, kind: Kind, cage: Cage, fields: dict[str, str]) -> None:
        assert (kind, cage.name) == (Kind.COPY, "work")
        if self.refuses and fields["outcome"].startswith(self.refuses):
            raise RuntimeFailure("the chain is full")
        self.records.append(fields)

    def start(self, _description: str, work: Coroutine[None, None, dict[str, str]], _owner: int) -> str:
        self.task = asyncio.get_running_loop().create_task(work)
        return "/job"

    def heard(self) -> list[bytes]:
        """What it was told, and that there is nobody any more who could."""
        told = []
        self.socket.settimeout(10)
        with contextlib.suppress(ConnectionResetError):
            while message := self.socket.recv(4096):
                told.append(message)
        return told

    def close(self) -> None:
        self.socket.close()
        for descriptor in (*self.ends, *([self.stream] if self.stream >= 0 else [])):
            os.close(descriptor)


def told(half: Half, said: bytes, *, out: bool = False, closes: bool = False,
         then: Callable[[Half, Begun], None] = lambda _half, _begun: None) -> dict[str, str]:
    """The results of the copy of which the person's program has said `said`."""
    before = len(os.listdir("/proc/self/fd")) - 1 - (half.near >= 0) - len(half.ends)

    async def whole() -> dict[str, str]:
        cage = Cage(record=RECORD, label=Label(level="public", rank=0), state=CageState.RUNNING)
        own = Copies(cast(Manager, half), cast(Sessions, half), cast(Jobs, half))
        begun = own.out_of(cage, "papers", 7) if out else own.into(cage, "to/", "papers", CopyOptions(), 7)
        try:
            os.write(begun.descriptors[1], said)
            if closes:
                for descriptor in begun.descriptors:
                    os.close(descriptor)
            then(half, begun)
            return cast(dict[str, str], await half.task)
        finally:
            if not closes:
                for descriptor in begun.descriptors:
                    os.close(descriptor)

    try:
        return asyncio.run(whole())
    finally:
        half.told = half.heard()
        half.close()
        assert len(os.listdir("/proc/self/fd")) == before


def outcomes(half: Half) -> list[str]:
    return [record["outcome"] for record in half.records]


READY = f"{DIGEST}\n".encode()


def test_what_both_say_the_same_of_is_recorded_and_then_gets_its_name() -> None:
    half = Half(READY + b'{"name": "papers (2)"}\n')
    assert told(half, WHOLE) == {"name": "papers (2)", "size": "5", "files": "1", "sha256": DIGEST}
    about = {"direction": "in", "path": "to/", "name": "papers"}
    known = about | {"size": "5", "files": "1", "sha256": DIGEST}
    assert half.records == [about | {"outcome": "begun"}, known | {"outcome": "is given its name"},
                            known | {"outcome": "arrived as papers (2)"}]
    assert half.arguments == ["in", "to/", "papers", "fail"]
    assert half.told == [GO]


def test_out_of_a_cage_it_may_have_its_name_when_that_is_recorded() -> None:
    def look(half: Half, begun: Begun) -> None:
        go = begun.descriptors[2]

        def name() -> None:
            assert outcomes(half) == ["begun", "is given its name"]
            os.write(begun.descriptors[1], b'{"name": "mine"}\n')

        asyncio.get_running_loop().add_reader(go, lambda: (os.read(go, 1), name()))

    half = Half(READY)
    assert told(half, WHOLE, out=True, then=look)["name"] == "mine"
    assert outcomes(half) == ["begun", "is given its name", "arrived as mine"]


def test_what_got_no_name_here_is_recorded_as_that() -> None:
    half = Half(READY)
    with pytest.raises(TransferFailed, match="is there"):
        told(half, WHOLE + b'{"fault": "is there\\u001b"}\n', out=True)
    assert outcomes(half)[1:] == ["is given its name", "is there\\x1b"]


HOSTILE: dict[str, tuple[bytes, dict[str, Any]]] = {
    "another digest": (b"d" * 64 + b"\n" + b'{"name": "papers"}\n', {}),
    "no digest": (b"", {}),
    "a digest and nothing more": (READY, {}),
    "no name": (READY + b"papers\n", {}),
    "a name that goes up": (READY + b'{"name": "../x"}\n', {}),
    "a name that moves the cursor": (READY + b'{"name": "\\u001b[2J"}\n', {}),
    "more than a name": (READY + b'{"name": "x", "path": "y"}\n', {}),
    "more than it may": (READY + b'{"name": "x"}' + b" " * 4000, {}),
    "a status": (READY, {"status": 3}),
}


@pytest.mark.parametrize(("output", "how"), HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_half_makes_no_copy(output: bytes, how: dict[str, Any]) -> None:
    half = Half(output, **how)
    with pytest.raises(TransferFailed):
        told(half, WHOLE)
    assert not outcomes(half)[-1].startswith("arrived")
    named = "is given its name" in outcomes(half)
    assert named == output.startswith(READY)
    assert (GO in half.told) == named


def test_what_it_says_of_why_it_failed_is_bounded_and_moves_nothing() -> None:
    half = Half(b"", status=1, diagnostics=b"cage-mediator: \x1b[2J" + b"x" * 4000)
    with pytest.raises(TransferFailed) as failed:
        told(half, b"{}\n")
    assert failed.value.sentence.startswith("\\x1b[2Jxxx")
    assert len(failed.value.sentence) < 400
    assert outcomes(half) == ["begun", failed.value.sentence]


def test_one_that_never_ends_has_its_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copies, "DELIVERY_SECONDS", 0.1)
    monkeypatch.setattr(copies, "DELIVERY_FILES_PER_SECOND", 1e9)
    half = Half(b"c" * 10, alive=True)
    with pytest.raises(TransferFailed, match="after 0 s"):
        told(half, WHOLE)
    assert half.told == [b'{"signal": 9}']
    assert len(outcomes(half)) == 2


def test_so_has_whoever_asked_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copies, "TRANSFER_SECONDS", 0.1)
    half = Half(READY, alive=True)
    with pytest.raises(TransferFailed, match="was not done after"):
        told(half, b"")
    assert half.told == []


SAID = {"nothing": (b"", True), "half a line": (WHOLE[:-1], True), "no JSON": (b"x\n", False),
        "too much": (b" " * 5000, False), "more bytes than there are": (WHOLE.replace(b"5", b"5" * 18), False),
        "no digest": (WHOLE.replace(b"c", b"C"), False), "another key": (b'{"path": "x"}\n', False),
        "less than nothing": (WHOLE.replace(b"5", b"-5"), False)}


@pytest.mark.parametrize(("said", "closes"), SAID.values(), ids=SAID)
def test_what_makes_no_sense_gives_it_up(said: bytes, closes: bool) -> None:
    half = Half(READY, alive=True)
    with pytest.raises(TransferFailed, match="gone" if closes else "whoever asked for it said"):
        told(half, said, closes=closes)
    assert half.told == []
    assert len(outcomes(half)) == 2


def test_who_goes_while_the_half_is_waited_for_has_it_withdrawn() -> None:
    half = Half(b"", alive=True)
    with pytest.raises(TransferFailed, match="gone"):
        told(half, WHOLE, closes=True)
    assert half.told == []
    assert outcomes(half) == ["begun", copies.GIVEN_UP]


@pytest.mark.parametrize("refused", ["begun", "is given"])
def test_what_cannot_be_recorded_is_not_done(refused: str) -> None:
    half = Half(READY, alive=True)
    half.refuses = refused
    if refused == "begun":  # and nobody is started
        os.close(half.near)
        half.near = -1
    with pytest.raises(RuntimeFailure, match="chain is full"):
        told(half, WHOLE)
    assert GO not in half.told


def test_cancelled_it_is_withdrawn() -> None:
    half = Half(READY[:10], alive=True)

    def cancel(half: Half, _begun: Begun) -> None:
        asyncio.get_running_loop().call_later(0.05, half.task.cancel)

    with pytest.raises(asyncio.CancelledError):
        told(half, WHOLE, then=cancel)
    assert outcomes(half) == ["begun", "cancelled"]


def test_where_nobody_tells_whether_it_got_its_name_the_record_says_so() -> None:
    half = Half(READY)
    with pytest.raises(TransferFailed, match="makes no sense"):
        told(half, WHOLE + b"{]\n", out=True)
    assert outcomes(half)[-1].endswith("makes no sense; it may have its name")
    half = Half(READY + b"x")
    with pytest.raises(TransferFailed, match="did not say how it arrived"):
        told(half, WHOLE)
    assert outcomes(half)[-1].endswith("arrived; it may have its name")


@pytest.mark.parametrize("state", [CageState.STOPPED, CageState.PAUSED])
def test_into_one_that_does_not_run_nothing_is_begun(state: CageState) -> None:
    half = Half(b"")
    cage = Cage(record=RECORD, label=Label(level="public", rank=0), state=state)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(WrongState):
        Copies(cast(Manager, half), cast(Sessions, half), cast(Jobs, half)).out_of(cage, "x", 0)
    assert len(os.listdir("/proc/self/fd")) == before
    assert half.records == []
    os.close(half.near)
    half.close()


def test_where_there_is_no_room_for_a_job_nothing_is_left() -> None:
    half = Half(b"")
    cage = Cage(record=RECORD, label=Label(level="public", rank=0), state=CageState.RUNNING)

    def full(_description: str, work: Coroutine[None, None, dict[str, str]], _owner: int) -> str:
        work.close()
        raise CageError("too many")

    half.start = full  # type: ignore[method-assign]
    before = len(os.listdir("/proc/self/fd"))
    for begin in (lambda own: own.out_of(cage, "x", 0), lambda own: own.into(cage, "x", "y", CopyOptions(), 0)):
        with pytest.raises(CageError, match="too many"):
            begin(Copies(cast(Manager, half), cast(Sessions, half), cast(Jobs, half)))
    assert len(os.listdir("/proc/self/fd")) == before
    os.close(half.near)
    half.close()


def test_the_stream_is_the_halfs_to_read_or_to_write_and_nobody_else_holds_it() -> None:
    half, looking = Half(READY + b'{"name": "x"}\n'), list[asyncio.Future[None]]()

    def fill(half: Half, begun: Begun) -> None:
        os.write(begun.descriptors[0], b"hello")

        async def look() -> None:
            while half.stream < 0:
                await asyncio.sleep(0)
            assert os.read(half.stream, 100) == b"hello"
            assert not select.select([half.stream], [], [], 0)[0]

        looking.append(asyncio.ensure_future(look()))

    told(half, WHOLE, then=fill)
    assert looking[0].exception() is None
