# SPDX-License-Identifier: LGPL-2.1-or-later
"""Whom the commands talk to, and what a failure to reach them is called.

Law of this room: every way in which a call can fail leaves here as one error of the project's tree, with a sentence
that says what would help.
"""

from __future__ import annotations

import os

from cage_runtime.errors import BUS_ERROR_PREFIX, CageError, CutOff, NotAuthorized, RuntimeFailure, from_bus
from cage_runtime.sdbus import BusError, Connection

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

CORE_NAME = "org.cageruntime.Core1"
CORE_PATH = "/org/cageruntime/Core1"
STANDALONE_LOCK = "/run/cage-runtime/standalone.lock"
"""Held by caged --standalone for as long as it starts what has ended again."""
RETURN_SECONDS = 10.0
"""How long a program that is just being started again is waited for."""
CALL_SECONDS = 120.0
"""How long an ordinary call may take; a start waits for mounts, a stop for programs that save their work."""

_DBUS = "org.freedesktop.DBus.Error."
_ABSENT = {_DBUS + "ServiceUnknown", _DBUS + "NameHasNoOwner"}
_ABSENT_PREFIX = _DBUS + "Spawn."
"""Errors of the bus itself that mean: nobody offers this name, or its start failed."""
_ENDED = {_DBUS + "NoReply", _DBUS + "Disconnected"}
_LATE = _DBUS + "TimedOut"
"""Of the bus alone: whoever it has started for this name has not come in time."""
_FORBIDDEN = {_DBUS + "AccessDenied", _DBUS + "InteractiveAuthorizationRequired"}
_NEEDS_ROOT = {*_FORBIDDEN, BUS_ERROR_PREFIX + NotAuthorized.bus_name}
"""What somebody who is not root is answered where root alone may ask: by the bus, or by the peer itself."""


class NotRunning(RuntimeFailure):
    """Nobody is there to answer; asking again for the next name is useless."""


class Peer:
    """One object of one program on the bus.

    `who` it is to a person, and `absent` gives what to say when nobody is there.  `needs_root` is what the person
    asked for, where root alone can have it.  `returning` says whether one that is not there is about to be.
    """

    def __init__(
        self,
        bus: Connection,
        name: str,
        path: str,
        interface: str,
        *,
        who: str,
        absent: Callable[[], str],
        needs_root: str = "",
        returning: Callable[[], bool] = lambda: False,
    ) -> None:
        self._returning = returning
        self._bus, self._name, self._path, self._interface = bus, name, path, interface
        self._who, self._absent, self._needs_root = who, absent, needs_root

    def call(
        self,
        member: str,
        signature: str = "",
        *values: object,
        returns: str = "",
        timeout: float | None = CALL_SECONDS,
        meanwhile: Callable[[], object] | None = None,
    ) -> Any:
        """The method's result: None, the one value, or the tuple of them.  `meanwhile` is done while the peer works."""
        called = (self._name, self._path, self._interface, member, signature, values)
        try:
            try:
                results = self._bus.call(*called, returns=returns, timeout=timeout, meanwhile=meanwhile)
            except BusError as error:
                # Nobody has it, so nothing has been done.
                if not (_is_absent(error) and self._returning() and self._bus.wait_for(self._name, RETURN_SECONDS)):
                    raise
                results = self._bus.call(*called, returns=returns, timeout=timeout)
        except BusError as error:
            raise self._error(error) from error
        except TimeoutError as error:
            raise RuntimeFailure(f"{self._who} did not answer {member} within {timeout:.0f} seconds") from error
        return results[0] if len(results) == 1 else results or None

    def _error(self, error: BusError) -> CageError:
        if error.name in _NEEDS_ROOT and self._needs_root and os.geteuid() != 0:
            return NotAuthorized(f"{self._needs_root} needs root on this host; use sudo")
        if error.name.startswith(BUS_ERROR_PREFIX):
            return from_bus(error.name, error.sentence)
        if _is_absent(error):
            return NotRunning(self._absent())
        if error.name == _LATE:
            return NotRunning(f"{self._who} was started and has not come up in time; see its journal")
        if error.name in _ENDED:
            return CutOff(f"{self._who} ended before it answered; see its journal, and try again")
        if error.name in _FORBIDDEN:
            return NotAuthorized(f"the bus does not let this user ask that of {self._who}: {error.sentence}")
        return RuntimeFailure(f"{self._who}: {error.sentence or error.name}")

    def at(self, path: str, interface: str) -> Peer:
        """Another object of the same program."""
        return Peer(self._bus, self._name, path, interface, who=self._who, absent=self._absent,
                    needs_root=self._needs_root, returning=self._returning)

    def close(self) -> None:
        self._bus.close()


def _is_absent(error: BusError) -> bool:
    return error.name in _ABSENT or error.name.startswith(_ABSENT_PREFIX)


def core(verb: str) -> Peer:
    """caged's manager on the system bus, for `verb`, a sub-command of cagectl."""
    manager = CORE_NAME + ".Manager"
    return Peer(Connection(), CORE_NAME, CORE_PATH, manager, who="caged", absent=_no_core, needs_root=verb,
                returning=lambda: _held(STANDALONE_LOCK))


def _no_core() -> str:
    if _held(STANDALONE_LOCK):
        return "caged is just being started again; try again"
    return "caged is not running; start it with systemctl start caged or caged --standalone"


def _held(lock: str) -> bool:
    """Whether a process has this lock; no for a file that is not there, or not for this person to open."""
    import fcntl

    try:
        with open(lock, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except (FileNotFoundError, PermissionError):
        return False
    return False


def job(manager: Peer, path: str) -> Peer:
    return manager.at(path, CORE_NAME + ".Job")


def files() -> Peer:
    """The cage half of the files mediator, on the cage's own system bus."""
    name = "org.cageruntime.Files1"
    absent = "the files mediator of this cage is not running, so nothing can be sent; ask who runs this host"
    return Peer(Connection(), name, "/org/cageruntime/Files1", name, who="the files mediator", absent=lambda: absent)
