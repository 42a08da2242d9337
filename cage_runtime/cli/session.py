# SPDX-License-Identifier: LGPL-2.1-or-later
"""The relay between a person's terminal or pipes and a command in a cage (see spawner/channel.py).

Law of this room: the far side is a cage.  Its messages are bounded, its descriptors are looked at before they are
used, and nothing of ours goes in but bytes, signals and the size of a terminal: never a descriptor.
"""

from __future__ import annotations

import _socket
import errno
import json
import os
import select
import signal
import stat
import struct
import sys
import termios

from cage_runtime.cli.output import say, terminal_size
from cage_runtime.cli.pump import Pump, wait
from cage_runtime.errors import RuntimeFailure
from cage_runtime.spawner.channel import MESSAGE_MAX

# _socket and not socket: that one adds selectors and enums to every call, a tenth of the whole process's time.

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Any

STOPPED_STATUS = 137
"""Exit status when the cage ended under the command: as of a shell whose child was killed."""
DESCRIPTORS_MAX = 3
FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
_PTMX = os.makedev(5, 2)
"""The device number of every pseudo-terminal's master (Linux, admin-guide/devices.txt)."""
_READABLE = select.POLLIN | select.POLLHUP | select.POLLERR


class Session:
    """One command in a cage, from its start to its exit status; closes what it was given."""

    def __init__(self, channel: int, *, terminal: bool, program: str) -> None:
        self._channel = _socket.socket(fileno=channel)
        self._terminal, self._program = terminal, program
        self._pumps: list[Pump] = []
        self._started = self._detached = False
        self._handlers: dict[int, Any] = {}
        self._wakeup = self._wakeup_end = -1
        self._attributes: list[Any] | None = None

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._restore()
        for pump in self._pumps:
            pump.close()
        self._channel.close()

    def run(self) -> int:
        """Relays until the command has exited and its output is written; the status to exit with."""
        self._catch_signals()
        try:
            status, sentence = self._relay()
            self._restore_signals()
            for pump in self._pumps:
                pump.drain()
        finally:
            self._restore()
        if sentence:
            say(self._program, sentence)
        for failure in filter(None, (pump.failure for pump in self._pumps)):
            say(self._program, failure)
            status = status or 1
        return status

    def wait_started(self) -> int:
        """For a detached command: waits until it has started or was refused."""
        self._detached = True
        result = None
        while result is None and not self._started:
            result = self._message()
        status, sentence = result or (0, "")
        if sentence:
            say(self._program, sentence)
        return status

    # --- the loop ------------------------------------------------------------------------------------------

    def _relay(self) -> tuple[int, str]:
        channel, wakeup = self._channel.fileno(), self._wakeup
        while True:
            ready = wait(self._pumps, channel, wakeup)
            if wakeup in ready and (status := self._signals()) is not None:
                return status, ""
            for pump in self._pumps:
                pump.move(ready)
            if ready.get(channel, 0) & _READABLE and (result := self._message()) is not None:
                return result

    def _message(self) -> tuple[int, str] | None:
        """Takes one message from the channel; the status and a sentence when it was the last."""
        message, descriptors = self._receive()
        try:
            if message is None:
                return STOPPED_STATUS, "the cage stopped" + ("" if self._started else " before the command started")
            event = message.get("event")
            if event == "started" and not self._started:
                if not self._detached:
                    self._start(descriptors)
                    descriptors = []
                self._started = True
                return None
            if event == "exit" and self._started:
                return _status(message), ""
            if event == "refused" and not self._started:
                sentence = message.get("sentence")
                return _status(message) or 125, sentence if isinstance(sentence, str) else "the cage refused"
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        raise RuntimeFailure("the cage sent a message that makes no sense here; the session is closed")

    def _receive(self) -> tuple[dict[str, Any] | None, list[int]]:
        """The next message and its descriptors; None for the end of the channel."""
        try:
            untrusted, ancillary, flags, _ = self._channel.recvmsg(
                MESSAGE_MAX, _socket.CMSG_SPACE(DESCRIPTORS_MAX * 4), _socket.MSG_CMSG_CLOEXEC
            )
        except ConnectionResetError:
            return None, []
        descriptors: list[int] = []
        for level, kind, data in ancillary:
            if (level, kind) == (_socket.SOL_SOCKET, _socket.SCM_RIGHTS):
                descriptors += struct.unpack(f"{len(data) // 4}i", data[: len(data) // 4 * 4])
        if not untrusted:
            return None, descriptors
        try:
            message = json.loads(untrusted)
        except (ValueError, RecursionError):
            message = None
        if not isinstance(message, dict) or flags & (_socket.MSG_TRUNC | _socket.MSG_CTRUNC):
            message = {}
        return message, descriptors

    def _start(self, descriptors: list[int]) -> None:
        """Begins to relay through the command's near ends, if they are what they should be."""
        if self._terminal:
            if len(descriptors) != 1 or not _is_terminal_master(descriptors[0]):
                raise RuntimeFailure("the cage did not hand over a terminal; the session is closed")
            self._enter_raw()
            self._send_size()
            # Two pumps that each close their end.
            self._pumps = [Pump(0, os.dup(descriptors[0])), Pump(descriptors[0], 1)]
        else:
            expected = (os.O_WRONLY, os.O_RDONLY, os.O_RDONLY)
            if len(descriptors) != len(expected) or not all(map(_is_pipe, descriptors, expected)):
                raise RuntimeFailure("the cage did not hand over three pipes; the session is closed")
            inward, output, errors = descriptors
            self._pumps = [Pump(0, inward), Pump(output, 1), Pump(errors, 2)]

    # --- to the cage ---------------------------------------------------------------------------------------

    def _send(self, message: dict[str, int]) -> None:
        # A cage that does not read loses messages rather than hold us up; that it is gone, the next receive tells.
        try:
            self._channel.send(json.dumps(message).encode(), _socket.MSG_DONTWAIT | _socket.MSG_NOSIGNAL)
        except (BlockingIOError, BrokenPipeError, ConnectionResetError):
            return

    def _send_size(self) -> None:
        rows, columns = terminal_size()
        if rows and columns:
            self._send({"rows": rows, "columns": columns})

    # --- signals -------------------------------------------------------------------------------------------

    def _catch_signals(self) -> None:
        self._wakeup, self._wakeup_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(self._wakeup_end, warn_on_full_buffer=False)
        numbers = (*FORWARDED, signal.SIGWINCH, signal.SIGCONT) if self._terminal else FORWARDED
        for number in numbers:
            # What our parent had us ignore (nohup), the command does not get either.
            if signal.getsignal(number) != signal.SIG_IGN:
                self._handlers[number] = signal.signal(number, lambda *_: None)

    def _signals(self) -> int | None:
        """Passes on what has come; a status when it ends this session at once."""
        for number in os.read(self._wakeup, 64):
            if number == signal.SIGWINCH:
                self._send_size()
            elif number == signal.SIGCONT:
                self._enter_raw()
                self._send_size()
            elif number in FORWARDED:
                self._send({"signal": number})
                # Nothing to wait for, or nobody: the command has not begun, or its terminal goes.
                if not self._started or (self._terminal and number in (signal.SIGTERM, signal.SIGHUP)):
                    return 128 + number
        return None

    def _restore_signals(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}
        if self._wakeup >= 0:
            signal.set_wakeup_fd(-1)
            os.close(self._wakeup)
            os.close(self._wakeup_end)
            self._wakeup = self._wakeup_end = -1

    # --- the terminal --------------------------------------------------------------------------------------

    def _enter_raw(self) -> None:
        if not self._started and self._attributes is None:
            self._attributes = termios.tcgetattr(0)
        if self._attributes is None:
            return
        raw = list(self._attributes)
        raw[0] &= ~(
            termios.IGNBRK | termios.BRKINT | termios.PARMRK | termios.ISTRIP
            | termios.INLCR | termios.IGNCR | termios.ICRNL | termios.IXON
        )  # fmt: skip
        raw[1] &= ~termios.OPOST
        raw[2] = raw[2] & ~(termios.CSIZE | termios.PARENB) | termios.CS8
        raw[3] &= ~(termios.ECHO | termios.ECHONL | termios.ICANON | termios.ISIG | termios.IEXTEN)
        raw[6] = [*raw[6]]
        raw[6][termios.VMIN], raw[6][termios.VTIME] = 1, 0
        # Not tty.setraw, which before 3.12 leaves some of these; and TCSADRAIN keeps what was typed ahead.
        try:
            _set_attributes(raw)
        except termios.error as error:
            raise RuntimeFailure(f"no terminal to use: {error.args[1]}; run this in the foreground") from error

    def _restore(self) -> None:
        self._restore_signals()
        if self._attributes is not None:
            attributes, self._attributes = self._attributes, None
            try:
                _set_attributes(attributes)
            except termios.error:
                # The terminal is gone; there is nobody to restore it for.
                sys.stderr.flush()


def _set_attributes(attributes: list[Any]) -> None:
    """tcsetattr(3) of our terminal.  In the background it stops us, and the SIGCONT of `fg` interrupts it."""
    while True:
        try:
            return termios.tcsetattr(0, termios.TCSADRAIN, attributes)
        except termios.error as error:
            if error.args[0] != errno.EINTR:
                raise


def _status(message: dict[str, Any]) -> int:
    status = message.get("status")
    if type(status) is not int or not 0 <= status <= 255:
        raise RuntimeFailure("the cage gave an exit status that does not exist; the session is closed")
    return status


def _is_pipe(descriptor: int, access: int) -> bool:
    import fcntl

    mode = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    return stat.S_ISFIFO(os.fstat(descriptor).st_mode) and mode & os.O_ACCMODE == access


def _is_terminal_master(descriptor: int) -> bool:
    status = os.fstat(descriptor)
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == _PTMX and os.isatty(descriptor)
