# SPDX-License-Identifier: LGPL-2.1-or-later
"""What cages are handed to read and the core pays for: memory, or space on its disk.

Law of this room: whoever keeps a descriptor keeps nothing by it.  What was lent is taken back after a while, and with
the cage that has it, and a cage has a bound for what it holds meanwhile.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass

from cage_runtime.errors import RuntimeFailure
from cage_runtime.model import LENT_SECONDS

_READ_ALONE = 0o444
"""No cage opens it once more to write, whatever user it is of."""


@dataclass(kw_only=True, slots=True, eq=False)
class _One:
    writable: int
    size: int
    until: asyncio.TimerHandle | None = None


class Lent:
    """All that a core half has lent, by the instance that has it."""

    def __init__(self, most: int, *, seconds: float = LENT_SECONDS) -> None:
        """A cage holds `most` bytes at once, unless it holds one thing alone."""
        self._most, self._seconds = most, seconds
        self._lent: dict[str, list[_One]] = {}

    def check(self, uuid: str, size: int) -> None:
        """RuntimeFailure where the instance may not have so many bytes more."""
        held = sum(one.size for one in self._lent.get(uuid, ()))
        if held and held + size > self._most:
            raise RuntimeFailure(f"this cage has been handed {held} bytes within {self._seconds:.0f} s, and "
                                 f"{self._most} are the most; try again in a while")

    def lend(self, uuid: str, writable: int) -> int:
        """A descriptor of the file for the instance to read, the caller's; `writable` is ours from now on, and nobody
        else may write to it any more.  The bound was looked at before."""
        one = _One(writable=writable, size=os.fstat(writable).st_size)
        try:
            os.fchmod(writable, _READ_ALONE)
            descriptor = os.open(f"/proc/self/fd/{writable}", os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            os.close(writable)
            raise RuntimeFailure(f"it cannot be handed over: {error.strerror}") from error
        one.until = asyncio.get_running_loop().call_later(self._seconds, self._take_back, uuid, one)
        self._lent.setdefault(uuid, []).append(one)
        return descriptor

    def left(self, uuid: str) -> None:
        """The instance has ended; a descriptor of its may be with another by now."""
        for one in list(self._lent.get(uuid, ())):
            self._take_back(uuid, one)

    def _take_back(self, uuid: str, one: _One) -> None:
        if one.until is not None:
            one.until.cancel()
        try:
            os.ftruncate(one.writable, 0)
        finally:
            os.close(one.writable)
            self._lent[uuid].remove(one)
            if not self._lent[uuid]:
                del self._lent[uuid]
