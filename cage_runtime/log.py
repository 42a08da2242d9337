# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the programs of the core say on standard error, in the form that systemd's journal understands where it reads.

Under systemd each line begins with its priority (sd-daemon(3)); otherwise, for a person, with the program's name alone.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from types import TracebackType

_PRIORITIES = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))
DEBUG_PRIORITY = 7


def to_journal() -> bool:
    """Whether standard error is the journal's stream (systemd.exec(5), JOURNAL_STREAM): not what was inherited."""
    try:
        found = os.fstat(2)
    except OSError:
        return False
    return os.environ.get("JOURNAL_STREAM", "") == f"{found.st_dev}:{found.st_ino}"


def prefix(level: int) -> str:
    """What goes before a line of that level (of logging) on standard error."""
    if not to_journal():
        return ""
    return f"<{next((priority for least, priority in _PRIORITIES if level >= least), DEBUG_PRIORITY)}>"


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        # Each line is an entry of its own in the journal: none is to begin with what somebody else chose.
        before = prefix(record.levelno)
        return "\n".join(before + line for line in super().format(record).split("\n"))


def set_up(form: str) -> None:
    """Log to standard error in `form` (logging.Formatter) from now on, and what nobody catches as well."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter(form))
    logging.basicConfig(handlers=[handler], level=logging.INFO)
    sys.excepthook = _uncaught(sys.excepthook)


_Hook = Callable[[type[BaseException], BaseException, TracebackType | None], None]


def _uncaught(usual: _Hook) -> _Hook:
    def hook(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        if issubclass(kind, Exception):
            logging.getLogger().critical("ended by an error of its own", exc_info=(kind, error, traceback))
        else:
            usual(kind, error, traceback)

    return hook
