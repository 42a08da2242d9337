# SPDX-License-Identifier: LGPL-2.1-or-later
"""The two pipes of a tree that is being sent: what comes from the source, and what it is told.

Law of this room: the core makes both, so that it reads and writes through open files of its own, whose flags nobody
else sets.  What is told goes one way, a line of JSON each, and never waits for whoever should read it.  The source is
gone when nobody can read what it is told any more.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
from collections.abc import Callable

from cage_runtime.bus import Answer
from cage_runtime.errors import CageError

PIPE_BYTES = 1024 * 1024
"""What a pipe holds that the source fills, where the host lets it: the two sides work at the same time."""
ARRIVED, RECEIPT, ERROR, SENTENCE = "arrived", "receipt", "error", "sentence"
"""Keys of the last line: where it arrived, and the receipt where one is wanted; or the error's name on the bus, and
what it says."""


class Stream:
    """Made before the source is answered; to be closed in every case."""

    def __init__(self) -> None:
        self.tree, far_tree = os.pipe()
        far_status, self._status = os.pipe()
        self._far = (far_tree, far_status)
        os.set_blocking(self._status, False)
        with contextlib.suppress(OSError):  # beyond the host's bound for one user it stays as it is
            fcntl.fcntl(self.tree, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        self._loop = asyncio.get_running_loop()

    def answer(self) -> Answer:
        """The far ends, which are the source's from now on and not ours."""
        return Answer(values=(0, 1), descriptors=self._far)

    def when_gone(self, what: Callable[[], object]) -> None:
        """Have `what` called, once, when nobody can read any more what is told."""
        self._loop.add_reader(self._status, self._gone, what)  # of the writing end of a pipe, this is its error alone

    def _gone(self, what: Callable[[], object]) -> None:
        self._loop.remove_reader(self._status)
        what()

    def arrived(self, path: str, receipt: str | None) -> None:
        self._tell({ARRIVED: path} | ({} if receipt is None else {RECEIPT: receipt}))

    def failed(self, error: CageError) -> None:
        self._tell({ERROR: error.bus_error, SENTENCE: error.sentence})

    def _tell(self, what: dict[str, str]) -> None:
        with contextlib.suppress(BlockingIOError, BrokenPipeError):
            os.write(self._status, json.dumps(what).encode() + b"\n")

    def close(self) -> None:
        self._loop.remove_reader(self._status)
        os.close(self._status)
        os.close(self.tree)
