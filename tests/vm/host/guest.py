# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the host asks of the machine under test, through the agent in it."""

from __future__ import annotations

import io
import json
import os
import tarfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.vm.agent import (
    COMMAND,
    ENDED,
    ERRORS,
    HEADER,
    HELLO,
    INPUT,
    OUTPUT,
    PIECE,
    FrameError,
    frame,
    frames,
    parsed,
)
from tests.vm.host.qemu import Machine

COMMAND_SECONDS = 300
BOOT_SECONDS = 300
KILL_SECONDS = 20
CAPTURED_BYTES = 256 << 20
Sink = Callable[[bytes], None]


@dataclass(frozen=True, kw_only=True)
class Ended:
    status: int
    output: bytes
    errors: bytes


class Guest:
    """The machine under test, as root; one command after the other."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    def greet(self, seconds: float) -> None:
        """Until the agent answers; the clock is now's and the random numbers are new from then on."""
        nonce = os.urandom(16).hex()
        request = {"nonce": nonce, "clock": time.time(), "seed": os.urandom(32).hex()}
        self._send(frame(HELLO, json.dumps(request).encode()))
        kind, payload = self._receive(time.monotonic() + seconds, boots=True)
        if (kind, payload) != (HELLO, nonce.encode()):
            raise self._machine.error("the agent answers something else")

    def run(self, *argv: str, given: bytes = b"", environment: Mapping[str, str] | None = None,
            seconds: float = COMMAND_SECONDS, sink: Sink | None = None) -> Ended:
        """A command, ended, whatever its status; after `seconds` it is killed, and MachineError comes if even that
        does not end it.  With a sink, both outputs go there as they come, and are not kept."""
        self._command(argv, given, environment or {}, seconds)
        until = time.monotonic() + seconds + 3 * KILL_SECONDS
        kept = {OUTPUT: bytearray(), ERRORS: bytearray()}
        while True:
            kind, payload = self._receive(until)
            if kind == ENDED:
                status = json.loads(payload)["status"]
                return Ended(status=status, output=bytes(kept[OUTPUT]), errors=bytes(kept[ERRORS]))
            if sink is not None:
                sink(payload)
            elif len(kept[kind]) + len(payload) > CAPTURED_BYTES:
                raise self._machine.error(f"{argv[0]} prints too much")
            else:
                kept[kind] += payload

    def ok(self, *argv: str, given: bytes = b"", seconds: float = COMMAND_SECONDS) -> str:
        """What a command prints; MachineError with its words where its status is not 0."""
        ended = self.run(*argv, given=given, seconds=seconds)
        if ended.status != 0:
            words = (ended.output + ended.errors).decode(errors="replace")
            raise self._machine.error(f"{' '.join(argv)}: status {ended.status} in the machine\n{words}")
        return ended.output.decode()

    def put(self, places: Mapping[Path, str]) -> None:
        """Copy files and trees of the host's to places in the machine, as root's."""
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as archive:
            for path, place in places.items():
                archive.add(path, place.lstrip("/"), filter=_as_root)
        self.ok("tar", "--extract", "--directory=/", given=packed.getvalue())

    def get(self, directory: str, place: Path) -> None:
        """Copy the files, and those alone, that are straight in a directory of the machine's to one of the host's."""
        packed = self.run("tar", "--create", f"--directory={directory}", ".")
        with tarfile.open(fileobj=io.BytesIO(packed.output)) as archive:
            for member in archive:
                content = archive.extractfile(member) if member.isfile() else None
                if content is not None:
                    (place / Path(member.name).name).write_bytes(content.read())

    def settle(self) -> None:
        """Until systemd says that the machine has booted; MachineError where anything of it has failed."""
        ended = self.run("systemctl", "is-system-running", "--wait", seconds=BOOT_SECONDS)
        if ended.output.strip() != b"running":
            failed = self.run("systemctl", "--failed", "--no-legend").output.decode()
            raise self._machine.error(f"the machine has booted to {ended.output.decode().strip()}: {failed}")

    def reboot(self) -> None:
        """As an administrator does it, until it has booted again.  That ends the agent too, which may have answered
        by then or not."""
        self._command(("systemctl", "--no-block", "reboot"), b"", {}, COMMAND_SECONDS)
        self._machine.wait_for("RESET", BOOT_SECONDS)
        self._machine.forget_answers()
        self.greet(BOOT_SECONDS)
        self.settle()

    def _command(self, argv: tuple[str, ...], given: bytes, environment: Mapping[str, str], seconds: float) -> None:
        for piece in frames(INPUT, given):
            self._send(piece)
        bounded = ["timeout", f"--kill-after={KILL_SECONDS}", str(seconds), *argv]
        self._send(frame(COMMAND, json.dumps({"argv": bounded, "environment": dict(environment)}).encode()))

    # --- frames -------------------------------------------------------------------------------------------------
    def _send(self, piece: bytes) -> None:
        self._machine.agent.settimeout(COMMAND_SECONDS)
        self._machine.agent.sendall(piece)

    def _receive(self, until: float, *, boots: bool = False) -> tuple[bytes, bytes]:
        try:
            kind, length = parsed(self._exactly(HEADER.size, until, boots=boots))
        except FrameError as error:
            raise self._machine.error(str(error)) from error
        return kind, self._exactly(length, until, boots=boots)

    def _exactly(self, length: int, until: float, *, boots: bool) -> bytes:
        got = bytearray()
        while len(got) < length:
            self._machine.wait_for_agent(until, boots=boots)
            piece = self._machine.agent.recv(min(PIECE, length - len(got)))
            if not piece:
                raise self._machine.error("the machine has closed its port")
            got += piece
        return bytes(got)


def _as_root(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    if member.name.endswith("__pycache__"):
        return None
    member.uid = member.gid = 0
    member.uname = member.gname = "root"
    return member
