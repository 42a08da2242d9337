# SPDX-License-Identifier: LGPL-2.1-or-later
"""Somebody who asks for a password on this terminal: pkttyagent(1), started as systemctl(1) does.

polkit knows an agent by the process that started it, which is this one: it is asked for what the bus sees as ours.
Where a desktop has an agent of its own, `--fallback` leaves it at that.
"""

from __future__ import annotations

import os
import signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType

PROGRAM = "/usr/bin/pkttyagent"
LAUNCHER = "/usr/bin/setpriv"
"""Has the agent end with us, however we end (prctl(2), PR_SET_PDEATHSIG)."""


class Agent:
    """In the block it is there, if this is a terminal and polkit's own package is installed."""

    def __init__(self) -> None:
        self._pid = 0

    def __enter__(self) -> Agent:
        if os.isatty(0) and os.access(PROGRAM, os.X_OK) and os.access(LAUNCHER, os.X_OK):
            ready, theirs = os.pipe2(os.O_CLOEXEC)
            os.set_inheritable(theirs, True)
            command = [LAUNCHER, "--pdeathsig=TERM", "--", PROGRAM, f"--notify-fd={theirs}", "--fallback"]
            self._pid = os.posix_spawn(LAUNCHER, command, os.environ)
            os.close(theirs)
            # It closes its end once it is registered; one that cannot start has closed it, too.
            os.read(ready, 1)
            os.close(ready)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._pid:
            # It gives the terminal back as it was; one that was stopped gets to do so.
            os.kill(self._pid, signal.SIGTERM)
            os.kill(self._pid, signal.SIGCONT)
            os.waitpid(self._pid, 0)
            self._pid = 0
