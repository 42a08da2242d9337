# SPDX-License-Identifier: LGPL-2.1-or-later
"""A transfer that was begun, until it is known what became of it; Ctrl-C cancels it.

Law of this room: nobody is told that something did not arrive unless the core's side has said so.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time

from cage_runtime.cli.output import cell
from cage_runtime.errors import CageError, CutOff, from_bus

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType
    from typing import Any

PROGRESS_SECONDS = 0.3
"""Between two looks at how far it is."""
CANCEL = b"c"
"""As mediators/files/protocol.py has it, and the keys of what is told."""
_COLUMNS = 80
"""Where the terminal does not say how many it has."""


class Progress:
    """How far something is, on one line of a terminal, which is empty again in the end."""

    def __init__(self, what: str, *, shown: bool) -> None:
        self._what, self._wanted = what, shown
        self._due, self._there = time.monotonic() + PROGRESS_SECONDS, False

    def show(self, done: int, whole: int) -> None:
        if self._wanted and whole and time.monotonic() >= self._due:
            self._due = time.monotonic() + PROGRESS_SECONDS
            self._write(f"{self._what}: {100 * min(done, whole) // whole} %")

    def waits(self) -> None:
        """All of it has been read, and it is not there yet."""
        if self._there:
            self._write(f"{self._what}: read, not there yet")

    def _write(self, text: str) -> None:
        self._there = True
        try:
            columns = os.get_terminal_size(2).columns or _COLUMNS
        except OSError:
            columns = _COLUMNS
        sys.stderr.write(f"\r\x1b[K{text[:columns - 1]}")
        sys.stderr.flush()

    def clear(self) -> None:
        if self._there:
            self._there = False
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


class Followed:
    """What the cage half tells of one transfer, by the pipes that it gave for it; they are closed in the end."""

    def __init__(self, name: str, status: int, control: int, progress: Progress) -> None:
        """`name` of what is sent, for people."""
        self.interrupted = False
        """It was to be cancelled by Ctrl-C."""
        self.receipt = ""
        """Of what has arrived; empty where none was wanted, or there is none."""
        self._name, self._status, self._control, self._progress = name, status, control, progress
        self._before: Any = None

    def __enter__(self) -> Followed:
        # Instead of an exception, which could come between a line that was read and whoever needs it.
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            self._before = signal.signal(signal.SIGINT, self._interrupt)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)
        self._progress.clear()
        os.close(self._status)
        os.close(self._control)

    def _interrupt(self, *_: object) -> None:
        if self.interrupted:
            raise KeyboardInterrupt
        self.interrupted = True
        try:
            os.write(self._control, CANCEL)
        except OSError:  # whoever would hear it has ended, which the other pipe tells
            return

    def arrived(self) -> str:
        """Where it arrived, once it has; CageError otherwise."""
        for told in self._lines():
            if "error" in told:
                error = from_bus(str(told["error"]), str(told["sentence"]))
                raise unknown(self._name) if isinstance(error, CutOff) else error
            if "arrived" in told:
                self.receipt = str(told.get("receipt", ""))
                return str(told["arrived"])
            if told.get("state") == "reading":
                self._progress.show(int(told.get("done", 0)), int(told.get("total", 0)))
            elif "state" in told:
                self._progress.waits()
        raise unknown(self._name)

    def _lines(self) -> Iterator[dict[str, Any]]:
        rest = b""
        while chunk := os.read(self._status, 4096):
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                yield json.loads(line)


def unknown(name: str) -> CageError:
    """Whoever would tell what became of it has ended."""
    return CageError(f'"{cell(name)}": the core ended meanwhile, so it is not known whether it arrived; '
                     "look in the target before sending it again")
