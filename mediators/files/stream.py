# SPDX-License-Identifier: LGPL-2.1-or-later
"""The pipes of a transfer: what comes from the source, what it is told, and the word that it may say meanwhile.

Law of this room: whoever serves makes them, so that it reads and writes through open files of its own, whose flags
nobody else sets.  What is told goes one way, a line of JSON each, and never waits for whoever should read it: figures
are left out while others have not been read, which leaves room for what has to be said.  The source is gone when nobody
can read what it is told, or say anything, any more.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import fcntl
import json
import os
import termios
from collections.abc import Callable

from cage_runtime.bus import Answer
from cage_runtime.errors import CageError
from cage_runtime.model import PROGRESS_UNREAD_MAX
from mediators.files.protocol import ARRIVED, CANCEL, ERROR, LINE_MAX, SENTENCE

PIPE_BYTES = 1024 * 1024
"""What a pipe holds that the source fills, where the host lets it: the two sides work at the same time."""
_SENTENCE_MAX = LINE_MAX // 8
"""Characters of a sentence, each of which may be six bytes of JSON, in one line."""


class Stream:
    """Made before the source is answered; to be closed in every case."""

    def __init__(self, *, tree: bool = False, followed: bool = True) -> None:
        """With a pipe for the content of a `tree`; `followed` where the source can say a word, and is told more than
        how it ended."""
        self.tree = self._control = -1
        self._loop, self._followed, self._far = asyncio.get_running_loop(), followed, list[int]()
        if tree:
            self.tree, far_tree = os.pipe()
            self._far.append(far_tree)
            with contextlib.suppress(OSError):  # beyond the host's bound for one user it stays as it is
                fcntl.fcntl(self.tree, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        far_status, self._status = os.pipe()
        self._far.append(far_status)
        os.set_blocking(self._status, False)
        if followed:
            self._control, far_control = os.pipe()
            self._far.append(far_control)
            os.set_blocking(self._control, False)

    def answer(self) -> Answer:
        """The far ends, which are the source's from now on and not ours."""
        return Answer(values=tuple(range(len(self._far))), descriptors=tuple(self._far))

    def attend(self, *, gone: Callable[[], object], cancel: Callable[[], object] = lambda: None) -> None:
        """Have `cancel` called when that word is said, once, and `gone` when nobody can read any more what is told, or
        could say a word; that twice at most."""
        self._loop.add_reader(self._status, self._gone, gone)  # of the writing end of a pipe, this is its error alone
        if self._followed:
            self._loop.add_reader(self._control, self._heard, gone, cancel)

    def _gone(self, gone: Callable[[], object]) -> None:
        self._loop.remove_reader(self._status)
        gone()

    def _heard(self, gone: Callable[[], object], cancel: Callable[[], object]) -> None:
        try:
            word = os.read(self._control, len(CANCEL))
        except BlockingIOError:
            return
        self._loop.remove_reader(self._control)  # one word, however much is written
        if word == CANCEL:
            cancel()
        else:
            gone()

    def figures(self, **what: object) -> None:
        """How far it is; left out while what was told before has not been read, or where the source does not follow."""
        if self._followed and self._unread() < PROGRESS_UNREAD_MAX:
            self._tell(what)

    def say(self, **what: object) -> bool:
        """What has to be known; whether it is there to be read.  True where the source does not follow."""
        return not self._followed or self._tell(what)

    def arrived(self, arrived: str, **more: object) -> None:
        """The last word: the path where it is, and as much more as there is room for."""
        if not self._tell({ARRIVED: arrived, **more}):
            self._tell({ARRIVED: arrived})

    def failed(self, error: CageError) -> None:
        if not self._tell({ERROR: error.bus_error, SENTENCE: error.sentence}):
            self._tell({ERROR: error.bus_error, SENTENCE: error.sentence[:_SENTENCE_MAX]})

    def _unread(self) -> int:
        unread = array.array("i", [0])
        fcntl.ioctl(self._status, termios.FIONREAD, unread)
        return unread[0]

    def _tell(self, what: dict[str, object]) -> bool:
        line = json.dumps(what).encode() + b"\n"
        if len(line) > LINE_MAX:
            return False
        try:
            # Whole or not at all: no line is longer than what a pipe takes at once (pipe(7), PIPE_BUF).
            return os.write(self._status, line) == len(line)
        except (BlockingIOError, BrokenPipeError):
            return False

    def close(self) -> None:
        for end in (self._status, self._control):
            if end >= 0:
                self._loop.remove_reader(end)
        for end in (self._status, self._control, self.tree):
            if end >= 0:
                os.close(end)
        self.tree = self._status = self._control = -1
