# SPDX-License-Identifier: LGPL-2.1-or-later
"""The core's end of a program in a cage: whatever the far end does, there is an answer in time and nothing leaks."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from array import array
from collections.abc import Awaitable, Callable

import pytest

from cage_runtime import attached
from cage_runtime.attached import DIAGNOSTICS_MAX, Ended, Gate, run_to_end
from cage_runtime.errors import RuntimeFailure, TransferFailed

STARTED, EXITED = b'{"event": "started"}', b'{"event": "exit", "status": 3}'
ODD = "did not answer as it should"


class Far:
    """A cage's end: it does all it does before the core looks, so that nothing here waits."""

    def __init__(self) -> None:
        near, self.socket = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.channel = near.detach()
        self.output, self.errors = os.pipe(), os.pipe()

    def send(self, message: bytes, *descriptors: int) -> None:
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", descriptors))] if descriptors else []
        self.socket.sendmsg([message], ancillary)

    def start(self) -> None:
        self.send(STARTED, self.output[0], self.errors[0])

    def end_output(self) -> None:
        os.close(self.output[1])
        os.close(self.errors[1])

    def close(self) -> None:
        self.socket.close()


READY, GO, ENDED_WELL = b"ready\n", b'{"signal": 10}', b'{"event": "exit", "status": 0}'


async def nothing_against_it() -> None:
    return


def follow(act: Callable[[Far], None], seconds: float = 5.0,
           passing: Callable[[], Awaitable[None]] = nothing_against_it,
           leaving: Callable[[], Awaitable[None]] | None = None) -> Ended:
    gate = Gate(ready=READY, passing=passing, go=signal.SIGUSR1, leaving=leaving)
    before = set(os.listdir("/proc/self/fd"))
    far = Far()
    try:
        act(far)
        return asyncio.run(run_to_end(far.channel, gate=gate, output_max=16, seconds=seconds))
    finally:
        far.close()
        for descriptor in (*far.output, *far.errors):
            try:
                os.close(descriptor)
            except OSError:
                continue
        assert set(os.listdir("/proc/self/fd")) == before


def test_output_diagnostics_and_status_come_back() -> None:
    def act(far: Far) -> None:
        far.start()
        os.write(far.output[1], b"1\n")
        os.write(far.errors[1], b"y" * 5000)
        far.end_output()
        far.send(EXITED)

    ended = follow(act)
    assert ended == Ended(status=3, untrusted_output=b"1\n", untrusted_diagnostics=b"y" * DIAGNOSTICS_MAX)


def after_start(message: bytes, *, descriptors: bool = False) -> Callable[[Far], None]:
    def act(far: Far) -> None:
        far.start()
        far.end_output()
        far.send(message, *([far.output[0]] if descriptors else []))

    return act


def much_output(far: Far) -> None:
    far.start()
    os.write(far.output[1], b"x" * 17)
    far.end_output()
    far.send(EXITED)


def ready_with(output: bytes) -> Callable[[Far], None]:
    def act(far: Far) -> None:
        far.start()
        os.write(far.output[1], READY + output)
        far.end_output()
        far.send(ENDED_WELL)

    return act


def answers_before_the_gate(far: Far) -> None:
    far.start()
    os.write(far.output[1], b"1\n")
    far.end_output()
    far.send(ENDED_WELL)


def directories(far: Far) -> None:
    directory = os.open("/", os.O_RDONLY)
    far.send(STARTED, directory, directory)
    os.close(directory)


def ends_after_start(far: Far) -> None:
    far.start()
    far.end_output()
    far.close()


HOSTILE: dict[str, tuple[Callable[[Far], None], str]] = {
    "ends at once": (Far.close, "ended before"),
    "ends after start": (ends_after_start, "ended before"),
    "refuses": (lambda far: far.send(b'{"event": "refused", "status": 125, "sentence": "secret"}'), "could not start"),
    "exit first": (lambda far: far.send(EXITED), ODD),
    "not JSON": (lambda far: far.send(b"\xff{"), ODD),
    "deep JSON": (lambda far: far.send(b"[" * 4000), ODD),
    "deep ignored JSON": (lambda far: far.send(b'{"event": "started", "x": ' + b"[" * 4000), ODD),
    "unknown event": (lambda far: far.send(b'{"event": "secret"}'), ODD),
    "long message": (lambda far: far.send(b" " * 4000 + STARTED + b" " * 4000), ODD),
    "no descriptors": (lambda far: far.send(STARTED), ODD),
    "one descriptor": (lambda far: far.send(STARTED, far.output[0]), ODD),
    "many descriptors": (lambda far: far.send(STARTED, *[far.output[0]] * 200), ODD),
    "directories": (directories, ODD),
    "starts twice": (after_start(STARTED), ODD),
    "descriptors at exit": (after_start(EXITED, descriptors=True), ODD),
    "status out of range": (after_start(b'{"event": "exit", "status": 256}'), ODD),
    "much output": (much_output, ODD),
    "much output behind the gate": (ready_with(b"x" * 17), ODD),
    "ends well before the gate": (after_start(ENDED_WELL), ODD),
    "answers before the gate": (answers_before_the_gate, ODD),
}


@pytest.mark.parametrize("how", HOSTILE)
def test_a_far_end_that_breaks_the_protocol_fails_its_own_transfer(how: str) -> None:
    act, reason = HOSTILE[how]
    with pytest.raises(TransferFailed, match=reason) as failed:
        follow(act)
    assert "secret" not in failed.value.sentence


def heard_from(act: Callable[[Far], None], heard: list[bytes]) -> Callable[[Far], None]:
    """`act`, and what came to the far end is in `heard` when it is closed."""

    def listening(far: Far) -> None:
        act(far)
        far.close, close = lambda: (heard.append(far.socket.recv(100)), close()), far.close  # type: ignore[method-assign]

    return listening


def test_what_is_behind_the_gate_happens_after_the_word() -> None:
    heard: list[bytes] = []
    assert follow(heard_from(ready_with(b"1\n"), heard)).untrusted_output == b"1\n"
    assert heard == [GO]


def test_one_that_may_not_pass_is_told_to_end() -> None:
    heard: list[bytes] = []

    async def refused() -> None:
        raise RuntimeFailure("it cannot be recorded")

    with pytest.raises(RuntimeFailure, match="it cannot be recorded"):
        follow(heard_from(ready_with(b""), heard), passing=refused)
    assert heard == [b'{"signal": 15}']


def test_one_that_never_ends_is_killed_at_the_deadline() -> None:
    heard: list[bytes] = []
    with pytest.raises(TransferFailed, match="had not received it after 0 s"):
        follow(heard_from(Far.start, heard), seconds=0.05)
    assert heard == [b'{"signal": 9}']


# --- what waits once more ----------------------------------------------------------------------------------------
def says_all(far: Far) -> None:
    far.start()
    os.write(far.output[1], READY + b"all")
    far.end_output()
    far.send(ENDED_WELL)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[signal.Signals]:
    """The signals that the program is sent."""
    sent: list[signal.Signals] = []
    monkeypatch.setattr(attached, "send_signal", lambda _near, number: sent.append(number))
    return sent


def test_what_it_wrote_is_decided_on_before_it_is_told_to_go(told: list[signal.Signals]) -> None:
    async def leaving() -> None:
        assert told == [signal.SIGUSR1]

    assert follow(says_all, leaving=leaving).untrusted_output == b"all"
    assert told == [signal.SIGUSR1, signal.SIGUSR1]


def test_what_may_not_leave_is_told_to_end(told: list[signal.Signals]) -> None:
    async def leaving() -> None:
        raise TransferFailed("it stays")

    with pytest.raises(TransferFailed, match="it stays"):
        follow(says_all, leaving=leaving)
    assert told == [signal.SIGUSR1, signal.SIGTERM]


def test_what_it_said_last_counts_also_where_it_has_not_read_all() -> None:
    """It ends as it is told to go."""
    far: list[Far] = []

    def act(there: Far) -> None:
        says_all(there)
        far.append(there)

    async def leaving() -> None:
        far[0].close()

    assert follow(act, leaving=leaving) == Ended(status=0, untrusted_output=b"all", untrusted_diagnostics=b"")
