# SPDX-License-Identifier: LGPL-2.1-or-later
"""The core's end of a program that runs in a cage: its channel, its output, its status.

Law of this room: all of it comes from a cage.  Each read has a bound, each descriptor a kind, the whole a deadline;
what does not fit is a failure of that program and of nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import stat
from array import array
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, Literal

import msgspec

from cage_runtime.decoding import decode
from cage_runtime.errors import CageError, TransferFailed
from cage_runtime.pipes import readable
from cage_runtime.spawner.channel import MESSAGE_MAX

DIAGNOSTICS_MAX = 1024
"""Bytes of a program's standard error that are kept for the record; the rest is read and dropped."""
DESCRIPTORS_MAX = 3
"""Descriptors in one message of a channel."""
CHUNK = 65536
"""Bytes that are read from a program at a time."""

Sink = Callable[[bytes], None]


class Gone(TransferFailed):
    """The target ended, and the program in it without a word."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ended:
    """How a program ended: its status as a shell has it, and what it wrote, untrusted."""

    status: int
    untrusted_output: bytes
    untrusted_diagnostics: bytes


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """What a channel says of the program at its other end (spawner/channel.py)."""

    event: Literal["started", "exit", "refused"]
    status: Annotated[int, msgspec.Meta(ge=0, le=255)] = 0


_EVENTS = msgspec.json.Decoder(Event)


@dataclass(frozen=True, kw_only=True, slots=True)
class Gate:
    """Where a program has to wait: it writes `ready`, `passing` is awaited, and `go` is sent to it.

    `passing` may raise, and then the program does not pass.  With `leaving`, it waits once more when it has written
    all, until that was awaited, which may raise as well.
    """

    ready: bytes
    passing: Callable[[], Awaitable[None]]
    go: signal.Signals
    leaving: Callable[[], Awaitable[None]] | None = None


async def run_to_end(channel: int, *, gate: Gate, output_max: int, seconds: float, sink: Sink | None = None) -> Ended:
    """Follow the program at the other end of `channel`, which is closed in every case.

    What it writes after `gate` is kept, or given to `sink` as it comes, which may raise a CageError.

    TransferFailed where it could not start, wrote more than `output_max` bytes, ended well without having passed
    `gate`, broke the protocol otherwise, or had not ended after `seconds`; then it is killed.
    """
    with socket.socket(fileno=channel) as near, contextlib.ExitStack() as held:
        near.setblocking(False)
        try:
            async with asyncio.timeout(seconds):
                return await _follow(near, held, gate, output_max, sink)
        except TimeoutError as error:
            send_signal(near, signal.SIGKILL)
            raise TransferFailed(f"the target had not received it after {seconds:.0f} s") from error
        except CageError:
            # It tidies up; what does not is behind the gate, and the target's own.
            send_signal(near, signal.SIGTERM)
            raise


def send_signal(near: socket.socket, number: signal.Signals) -> None:
    """To the program at the other end of its channel."""
    with contextlib.suppress(OSError):  # it has ended already
        near.send(json.dumps({"signal": number}).encode())


async def _follow(near: socket.socket, held: contextlib.ExitStack, gate: Gate, output_max: int,
                  sink: Sink | None) -> Ended:
    started, pipes = await next_event(near, held)
    if started.event == "refused":
        raise TransferFailed("the target could not start to receive it")
    if started.event != "started" or len(pipes) != 2 or not all(map(is_pipe, pipes)):
        raise TransferFailed("the target did not answer as it should")
    answering = asyncio.ensure_future(_answer(near, pipes[0], gate, output_max, sink))
    diagnosing = asyncio.ensure_future(read(pipes[1], DIAGNOSTICS_MAX))
    ending = asyncio.ensure_future(_ended(near, held))
    tasks = (answering, diagnosing, ending)
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)  # before their descriptors are closed
    (passed, output), ended = answering.result(), ending.result()
    if len(output) > output_max or (ended.status == 0 and not passed):
        raise TransferFailed("the target did not answer as it should")
    return Ended(status=ended.status, untrusted_output=output, untrusted_diagnostics=diagnosing.result())


async def _answer(near: socket.socket, pipe: int, gate: Gate, output_max: int,
                  sink: Sink | None) -> tuple[bool, bytes]:
    """Whether the program has passed `gate`, and what it wrote afterwards, a byte more than it may at most."""
    first = await read(pipe, len(gate.ready), enough=True)
    if first != gate.ready:
        if len(first) == len(gate.ready):  # it says something else, and might wait for an answer to that
            raise TransferFailed("the target did not answer as it should")
        return False, first
    await gate.passing()
    send_signal(near, gate.go)
    output = await read(pipe, output_max + 1, sink=sink)
    if gate.leaving is not None:
        await gate.leaving()
        send_signal(near, gate.go)
    return True, output


async def _ended(near: socket.socket, held: contextlib.ExitStack) -> Event:
    event, descriptors = await next_event(near, held)
    if event.event != "exit" or descriptors:
        raise TransferFailed("the target did not answer as it should")
    return event


async def next_event(near: socket.socket, held: contextlib.ExitStack) -> tuple[Event, list[int]]:
    """The next message of a channel and its descriptors, which `held` closes; TransferFailed where there is none."""
    await readable(near.fileno())
    size = array("i").itemsize * DESCRIPTORS_MAX
    message = MESSAGE_MAX, socket.CMSG_SPACE(size), socket.MSG_CMSG_CLOEXEC
    try:
        untrusted, ancillary, flags, _ = near.recvmsg(*message)
    except ConnectionResetError:
        # Said once where the far end has gone without having read all that it was told; what it said is still there.
        untrusted, ancillary, flags, _ = near.recvmsg(*message)
    descriptors = array("i")
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors.frombytes(content[: len(content) - len(content) % descriptors.itemsize])
    for descriptor in descriptors:
        held.callback(os.close, descriptor)
    if not untrusted:
        raise Gone("the target ended before it had received it")
    if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
        raise TransferFailed("the target did not answer as it should")
    try:
        return decode(untrusted, _EVENTS), list(descriptors)
    except msgspec.DecodeError as error:
        raise TransferFailed("the target did not answer as it should") from error


def is_pipe(descriptor: int) -> bool:
    return stat.S_ISFIFO(os.fstat(descriptor).st_mode)


async def read(pipe: int, limit: int, *, enough: bool = False, sink: Sink | None = None) -> bytes:
    """What is written to `pipe`, of which the first `limit` bytes are kept; no more is read where that is `enough`.

    With a `sink` nothing is kept, and that has the bound.
    """
    os.set_blocking(pipe, False)
    kept = bytearray()
    while not (enough and len(kept) == limit):
        await readable(pipe)
        try:
            chunk = os.read(pipe, limit - len(kept) if enough else CHUNK)
        except BlockingIOError:
            continue
        if not chunk:
            break
        if sink is not None:
            sink(chunk)
        else:
            kept += chunk[: limit - len(kept)]
    return bytes(kept)
