# SPDX-License-Identifier: LGPL-2.1-or-later
"""A process in a context, or in none, that does what it is told (acts.py)."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from cage_runtime.spawner.lsm.contexts import Contexts

TOP = Path(__file__).parents[3]
GATE = 'read -r go && exec "$@" 3<&0'


class Party:
    """See `started`."""

    def __init__(self, process: subprocess.Popen[bytes], channel: socket.socket, xid: int) -> None:
        self.pid = process.pid
        self.xid = xid
        self._channel = channel.makefile("rwb", buffering=0)

    def does(self, act: str, *arguments: Any) -> Any:
        """What the act comes to; OSError as it met it."""
        self.begins(act, *arguments)
        return self.ends()

    def begins(self, act: str, *arguments: Any) -> None:
        """Without waiting for what it comes to, which `ends` does."""
        self._channel.write(json.dumps([act, arguments]).encode() + b"\n")

    def ends(self) -> Any:
        line = self._channel.readline()
        if not line:
            raise EOFError("the process has ended")
        answer = json.loads(line)
        if "errno" in answer:
            raise OSError(answer["errno"], answer["words"])
        return answer["result"]

    def outcome(self, act: str, *arguments: Any) -> str:
        """`done`, or the name of the error."""
        try:
            self.does(act, *arguments)
        except OSError as error:
            return errno.errorcode[error.errno or 0]
        return "done"


@contextlib.contextmanager
def started(contexts: Contexts | None = None, xid: int = 0, descriptors: Iterable[int] = ()) -> Iterator[Party]:
    """Born, labelled with `xid` where there are `contexts`, and only then let go, as a cage is."""
    ours, theirs = socket.socketpair()
    command = [sys.executable, "-B", "-m", "tests.kernels.lsm.acts"]
    with ours, theirs:
        process = subprocess.Popen(["/bin/bash", "-c", GATE, "gate", *command], stdin=theirs.fileno(),
                                   pass_fds=tuple(descriptors), cwd=TOP, env={**os.environ, "PYTHONPATH": str(TOP)})
        theirs.close()
        pidfd = os.pidfd_open(process.pid)
        try:
            if contexts and xid:
                contexts.enter(pidfd, xid)
            ours.sendall(b"go\n")
            party = Party(process, ours, xid)
            assert party.does("pid") == process.pid
            yield party
        finally:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            process.wait(60)
            os.close(pidfd)
