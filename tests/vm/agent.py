#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""The agent in the machine under test: one command after the other, asked for over a virtio-serial port.

It runs on the machine's own Python with nothing beside it; the host imports it for the frames alone.  Both directions
are frames: a kind (one byte), a length (32 bits, little endian), that many bytes.

    host to agent    HELLO    JSON: nonce, clock (seconds since 1970), seed (hexadecimal)
                     INPUT    a piece of the next command's standard input
                     COMMAND  JSON: argv, environment
    agent to host    HELLO    the nonce
                     OUTPUT, ERRORS   pieces of the command's two outputs, as they come
                     ENDED    JSON: status, as subprocess has it
"""

from __future__ import annotations

import fcntl
import json
import os
import selectors
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import IO

HELLO, INPUT, COMMAND, OUTPUT, ERRORS, ENDED = b"H", b"I", b"C", b"O", b"E", b"X"
HEADER = struct.Struct("<cI")
PIECE = 1 << 16
"""Bytes in one frame at most; a longer one means that the two sides have lost each other."""
PORT_NAME = "org.cageruntime.test"
RNDRESEEDCRNG = 0x5207
NOT_FOUND = 127


class FrameError(ValueError):
    """What came is no frame of ours."""


def frame(kind: bytes, payload: bytes) -> bytes:
    """One frame as bytes; ValueError where the payload is longer than PIECE."""
    if len(payload) > PIECE:
        raise ValueError(f"{len(payload)} bytes do not fit into a frame")
    return HEADER.pack(kind, len(payload)) + payload


def frames(kind: bytes, payload: bytes) -> list[bytes]:
    """As many frames as a payload of any length needs; none for an empty one."""
    return [frame(kind, payload[start:start + PIECE]) for start in range(0, len(payload), PIECE)]


def parsed(header: bytes) -> tuple[bytes, int]:
    """Kind and length; FrameError where it cannot be a header."""
    kind, length = HEADER.unpack(header)
    if kind not in (HELLO, INPUT, COMMAND, OUTPUT, ERRORS, ENDED) or length > PIECE:
        raise FrameError(f"{header!r} begins no frame")
    return kind, length


# --- in the machine -------------------------------------------------------------------------------------------------
Send = Callable[[bytes, bytes], None]


class Port:
    """The virtio-serial port, whose other end is open as long as the machine lives."""

    def __init__(self, path: str) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)

    def receive(self) -> tuple[bytes, bytes]:
        """The next frame: kind, payload."""
        kind, length = parsed(self._exactly(HEADER.size))
        return kind, self._exactly(length)

    def send(self, kind: bytes, payload: bytes) -> None:
        left = memoryview(frame(kind, payload))
        while left:
            left = left[os.write(self._descriptor, left):]

    def _exactly(self, length: int) -> bytes:
        got = bytearray()
        while len(got) < length:
            piece = os.read(self._descriptor, length - len(got))
            if not piece:
                raise EOFError("the host has closed the port")
            got += piece
        return bytes(got)


def be_now(clock: float, seed: bytes) -> None:
    """A machine that goes on from a saved state has a clock of then, and random numbers that it gave out before."""
    time.clock_settime(time.CLOCK_REALTIME, clock)
    with open("/dev/urandom", "wb") as pool:
        pool.write(seed)
        pool.flush()
        fcntl.ioctl(pool, RNDRESEEDCRNG)


def run(argv: list[str], environment: dict[str, str], given: IO[bytes], send: Send, directory: str) -> int:
    """Run a command to its end, sending its outputs on; what it leaves running does not hold this up."""
    try:
        process = subprocess.Popen(argv, cwd=directory, env={**os.environ, "HOME": "/root", **environment},
                                   stdin=given, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
    except OSError as error:
        send(ERRORS, f"{argv[0]}: {error.strerror}\n".encode())
        return NOT_FOUND
    assert process.stdout is not None
    assert process.stderr is not None
    pidfd = os.pidfd_open(process.pid)
    with selectors.DefaultSelector() as selector:
        selector.register(pidfd, selectors.EVENT_READ)
        for stream, kind in ((process.stdout, OUTPUT), (process.stderr, ERRORS)):
            os.set_blocking(stream.fileno(), False)
            selector.register(stream, selectors.EVENT_READ, kind)
        while not any(key.fd == pidfd for key, _ in _passed_on(selector, send)):
            pass
        # It has ended: what is left in its pipes, and no more.
        selector.unregister(pidfd)
        while selector.get_map() and _passed_on(selector, send, 0):
            pass
    os.close(pidfd)
    process.stdout.close()
    process.stderr.close()
    return process.wait()


def _passed_on(selector: selectors.BaseSelector, send: Send,
               seconds: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
    """Wait for anything and send on one piece of each stream that has any; what was ready."""
    ready = selector.select(seconds)
    for key, _ in ready:
        if key.data is not None:
            piece = os.read(key.fd, PIECE)
            if piece:
                send(key.data, piece)
            else:
                selector.unregister(key.fileobj)
    return ready


def main() -> None:
    port = Port(sys.argv[1])
    while True:
        # What a command reads waits in a file: the agent does one thing at a time, and cannot be held up by both ends.
        with tempfile.TemporaryFile(dir="/var/tmp") as given:
            serve(port, given)


def serve(port: Port, given: IO[bytes]) -> None:
    """Until one command has been carried out."""
    while True:
        kind, payload = port.receive()
        if kind == INPUT:
            given.write(payload)
        elif kind == HELLO:
            request = json.loads(payload)
            be_now(request["clock"], bytes.fromhex(request["seed"]))
            port.send(HELLO, request["nonce"].encode())
        elif kind == COMMAND:
            request = json.loads(payload)
            given.seek(0)
            status = run(request["argv"], request["environment"], given, port.send, "/root")
            port.send(ENDED, json.dumps({"status": status}).encode())
            return


if __name__ == "__main__":
    main()
