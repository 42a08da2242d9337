# SPDX-License-Identifier: LGPL-2.1-or-later
"""The delivery half's side of attached.Gate: it says that it is ready, and waits for the word of the core half.

Law of this room: the word is cage-init's to pass on, whatever else sends the same signal.  What the core half gives up,
or what ends with it or with the cage, is withdrawn.
"""

from __future__ import annotations

import os
import signal
import sys

from cage_runtime.errors import TransferFailed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

GO = signal.SIGUSR1
INIT_UID = 0
WITHDRAWN = 24
"""The exit status of what was withdrawn."""
_ENDS = (signal.SIGHUP, signal.SIGTERM)
"""Sent where the core half is gone, and where the cage stops."""


class Withdrawn(TransferFailed):
    exit_status = WITHDRAWN


def prepare() -> None:
    """First of all: the word may come, and an end raises Withdrawn from now on."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {GO})
    for number in _ENDS:
        signal.signal(number, _withdraw)


def pass_(ready: str) -> None:
    """Write `ready` and wait for the word; Withdrawn where another one comes."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _ENDS)
    sys.stdout.write(ready)
    sys.stdout.flush()
    _wait_for_word()


def leave(write: Callable[[], None]) -> None:
    """Have all written that there is to say, and wait for the word once more; Withdrawn where another one comes, and
    what `write` raises where nobody reads it any more."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _ENDS)
    for number in _ENDS:
        signal.signal(number, _withdraw)  # one that was ignored would not wait for us
    write()
    sys.stdout.flush()
    with open(os.devnull, "wb") as null:
        os.dup2(null.fileno(), sys.stdout.fileno())
    _wait_for_word()


def _wait_for_word() -> None:
    while True:
        said = signal.sigwaitinfo((GO, *_ENDS))
        if said.si_signo != GO:
            _withdraw()
        # The cage's user can send signals to us too; what the core half says comes from cage-init.
        if said.si_uid == INIT_UID:
            return


def _withdraw(*_: object) -> NoReturn:
    raise Withdrawn("it was withdrawn before it was done")
