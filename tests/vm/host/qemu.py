# SPDX-License-Identifier: LGPL-2.1-or-later
"""One emulated machine: started, watched, saved, restored and, in all cases, ended.

Law of this room: every wait has a bound, no socket has a name that somebody else could connect to, and no process
outlives the context that started it, nor this process, however that ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.vm.host.image import Files
from tests.vm.host.recipe import KERNEL_LINE, MACHINE

ANSWER_SECONDS = 60
STATE_SECONDS = 120
LOG_BYTES = 3000
PROGRAM = "qemu-system-x86_64"
DIES_WITH_US = ("setpriv", "--pdeathsig", "KILL", "--")


class MachineError(Exception):
    """The machine, or what emulates it, does not do what it must; the message ends with its last words."""


def version() -> str:
    """QEMU's; MachineError where there is none."""
    try:
        told = subprocess.run([PROGRAM, "--version"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise MachineError(f"this machine cannot run QEMU: {error}") from error
    return told.stdout.splitlines()[0]


class Machine:
    """A running QEMU; see `running`."""

    def __init__(self, process: subprocess.Popen[bytes], monitor: socket.socket, agent: socket.socket,
                 logs: Path) -> None:
        self.agent = agent
        """What the guest's agent reads and writes at its end."""
        self._process = process
        self._monitor = monitor
        self._logs = logs
        self._unread = b""
        self._events: list[dict[str, Any]] = []

    def ask(self, command: str, *descriptors: int, **arguments: object) -> Any:
        """Carry out a command of the QEMU machine protocol; its answer, or MachineError."""
        request = json.dumps({"execute": command, "arguments": arguments}).encode()
        socket.send_fds(self._monitor, [request], descriptors)
        until = time.monotonic() + ANSWER_SECONDS
        while True:
            message = self._message(until)
            if "return" in message:
                return message["return"]
            if "error" in message:
                raise self.error(f"QEMU does not {command}: {message['error']['desc']}")
            self._events.append(message)

    def greet(self) -> None:
        """The first exchange with QEMU, without which it carries out nothing."""
        self._message(time.monotonic() + ANSWER_SECONDS)
        self.ask("qmp_capabilities")

    def wait_for(self, event: str, seconds: float, status: str | None = None) -> None:
        """Until QEMU has told of an event (of a status, where given) since the last such wait."""
        until = time.monotonic() + seconds
        while True:
            while self._events:
                told = self._events.pop(0)
                came = told.get("data", {}).get("status")
                if told["event"] == event and status in (None, came):
                    return
                if came == "failed":
                    raise self.error("the machine's state cannot be passed on")
            self._events.append(self._message(until))

    def wait_for_agent(self, until: float, *, boots: bool = False) -> None:
        """Until there is something to read from the agent; MachineError where the machine goes down instead.  While it
        `boots` it may reset itself: its firmware does so once more."""
        while True:
            while self._events:
                told = self._events.pop(0)["event"]
                if told == "SHUTDOWN" or (told == "RESET" and not boots):
                    raise self.error(f"the machine has gone down without being asked to ({told})")
            ready, _, _ = select.select([self.agent, self._monitor], [], [], max(0, until - time.monotonic()))
            if self._monitor in ready:
                self._events.append(self._message(until))
            elif ready:
                return
            else:
                raise self.error("the machine does not answer in time")

    def forget_answers(self) -> None:
        """What the agent has said and nobody has read."""
        self.agent.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while self.agent.recv(1 << 16):
                pass

    def error(self, what: str) -> MachineError:
        words = [file.read_bytes()[-LOG_BYTES:].decode(errors="replace").strip()
                 for file in (self._logs / "console.txt", self._logs / "qemu.txt") if file.exists()]
        return MachineError("\n".join([what, *filter(None, words)]))

    def _message(self, until: float) -> dict[str, Any]:
        while b"\n" not in self._unread:
            self._monitor.settimeout(max(0.001, until - time.monotonic()))
            try:
                piece = self._monitor.recv(1 << 16)
            except TimeoutError:
                raise self.error("QEMU does not answer in time") from None
            if not piece:
                raise self.error("QEMU has ended")
            self._unread += piece
        line, _, self._unread = self._unread.partition(b"\n")
        message = json.loads(line)
        assert isinstance(message, dict)
        return message

    # --- its state ----------------------------------------------------------------------------------------------
    def save(self, memory: Path) -> None:
        """Stop for good, with everything but the disk in a file."""
        self.ask("stop")
        with memory.open("wb") as file, _filter("zstd", "-q", "-1", output=file.fileno()) as state:
            self._pass_on("migrate", state)
            self.wait_for("MIGRATION", STATE_SECONDS, "completed")
        self.ask("quit")
        self._process.wait(ANSWER_SECONDS)

    def go_on(self, memory: Path) -> None:
        """From a saved state, in a machine that was started to wait for it."""
        with memory.open("rb") as file, _filter("zstd", "-dq", given=file.fileno()) as state:
            self._pass_on("migrate-incoming", state)
            self.wait_for("MIGRATION", STATE_SECONDS, "completed")
        self.ask("cont")

    def _pass_on(self, command: str, state: int) -> None:
        self.ask("migrate-set-capabilities", capabilities=[{"capability": "events", "state": True}])
        self.ask("getfd", state, fdname="state")
        os.close(state)
        self.ask(command, uri="fd:state")


@contextlib.contextmanager
def _filter(*command: str, given: int | None = None, output: int | None = None) -> Iterator[int]:
    """A command between a file and a pipe, whose other end is the caller's to close; at the end it has ended well."""
    ours, theirs = os.pipe() if output is None else os.pipe()[::-1]
    process = subprocess.Popen([*DIES_WITH_US, *command], stdin=theirs if given is None else given,
                               stdout=theirs if output is None else output)
    os.close(theirs)
    try:
        yield ours
        if process.wait(STATE_SECONDS) != 0:
            raise MachineError(f"{command[0]} ended with status {process.returncode}")
    finally:
        _end(process)


@contextlib.contextmanager
def running(files: Files, disk: Path, logs: Path, *, waits: bool = False) -> Iterator[Machine]:
    """A machine on a qcow2 `disk`; its console and QEMU's words go to `logs`.  With `waits` it begins with `go_on`."""
    monitor, qemu_monitor = socket.socketpair()
    agent, qemu_agent = socket.socketpair()
    command = [
        *DIES_WITH_US, PROGRAM, *MACHINE, "-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny",
        "-kernel", str(files.kernel), "-initrd", str(files.initrd), "-append", KERNEL_LINE,
        "-drive", f"file={disk},format=qcow2,if=none,id=root,cache=unsafe,discard=unmap",
        "-chardev", f"file,id=console,path={logs}/console.txt,append=on", "-serial", "chardev:console",
        "-chardev", f"socket,id=agent,fd={qemu_agent.fileno()}",
        "-chardev", f"socket,id=monitor,fd={qemu_monitor.fileno()}", "-mon", "chardev=monitor,mode=control",
        *(("-incoming", "defer") if waits else ()),
    ]
    with monitor, agent, contextlib.ExitStack() as stack:
        with qemu_monitor, qemu_agent, (logs / "qemu.txt").open("ab") as log:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                       pass_fds=[qemu_monitor.fileno(), qemu_agent.fileno()])
            stack.callback(_end, process)
        machine = Machine(process, monitor, agent, logs)
        machine.greet()
        yield machine


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill it where it has not ended; a pidfd cannot mean another process."""
    if process.poll() is None:
        pidfd = os.pidfd_open(process.pid)
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        os.close(pidfd)
    process.wait()


def disk_over(base: Path, disk: Path) -> None:
    """A new disk that shows `base` and keeps what is written to itself; the two may be moved together."""
    kind = "qcow2" if base.suffix == ".qcow2" else "raw"
    below = os.path.relpath(base, disk.parent)
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", below, "-F", kind, disk], check=True)
