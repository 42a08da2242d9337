# SPDX-License-Identifier: LGPL-2.1-or-later
"""Whom the commands talk to, and what a failure to reach them is called.

Law of this room: every way in which a call can fail leaves here as one error of the project's tree, with a sentence
that says what would help.
"""

from __future__ import annotations

import os

from cage_runtime.errors import (
    BUS_ERROR_PREFIX,
    AuthenticationNeeded,
    CageError,
    CutOff,
    NotAuthorized,
    RuntimeFailure,
    from_bus,
)
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
"""How long a program that is just being started again is waited for, after the bus has waited for it."""
CALL_SECONDS = 120.0
"""How long an ordinary call may take; a start waits for mounts, a stop for programs that save their work."""
QUESTION_SECONDS = 180.0
"""How much longer one may take for which a person is asked; as model.QUESTION_SECONDS, which this room does not import:
dataclasses would double the time of a call."""

CAGE_MESSAGE_BYTES = 32 * 1024
"""The most that the bus of a cage takes in one message (max_message_size of policies/cage-bus)."""

_DBUS = "org.freedesktop.DBus.Error."
_ABSENT = {_DBUS + "ServiceUnknown", _DBUS + "NameHasNoOwner"}
_ABSENT_PREFIX = _DBUS + "Spawn."
"""Errors of the bus itself that mean: nobody offers this name, or its start failed."""
_ENDED = {_DBUS + "NoReply", _DBUS + "Disconnected"}
_LATE = _DBUS + "TimedOut"
"""Of the bus alone: whoever it has started for this name has not come in time."""
_FORBIDDEN = {_DBUS + "AccessDenied", _DBUS + "InteractiveAuthorizationRequired"}


class NotRunning(RuntimeFailure):
    """Nobody is there to answer; asking again for the next name is useless."""


class Peer:
    """One object of one program on the bus.

    `who` it is to a person, and `absent` gives what to say when nobody is there.  `verb` is what the person typed, and
    `asks` whether the person, or an administrator, may be asked for a password.  `returning` says whether one that is
    not there is about to be, and `given_up` whether whoever starts it has given it up, for which the bus would wait.
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
        verb: str = "",
        asks: bool = False,
        returning: Callable[[], bool] = lambda: False,
        given_up: Callable[[], bool] | None = None,
    ) -> None:
        self._returning, self._given_up = returning, given_up
        self._bus, self._name, self._path, self._interface = bus, name, path, interface
        self._who, self._absent, self._verb, self._asks = who, absent, verb, asks

    def call(
        self,
        member: str,
        signature: str = "",
        *values: object,
        returns: str = "",
        timeout: float | None = CALL_SECONDS,
        meanwhile: Callable[[], object] | None = None,
    ) -> Any:
        """The method's result: None, the one value, or the tuple of them.  `meanwhile` is done while the peer works.

        First without a question, which is all that most calls need; nothing has been done when that is refused.
        """
        try:
            return self._call(member, signature, values, returns, timeout, meanwhile, interactive=False)
        except AuthenticationNeeded:
            if not self._asks:
                raise
        from cage_runtime.cli.agent import Agent

        longer = None if timeout is None else timeout + QUESTION_SECONDS
        with Agent():
            return self._call(member, signature, values, returns, longer, None, interactive=True)

    def _call(
        self,
        member: str,
        signature: str,
        values: tuple[object, ...],
        returns: str,
        timeout: float | None,
        meanwhile: Callable[[], object] | None,
        *,
        interactive: bool,
    ) -> Any:
        names = (self._name, self._path, self._interface, member)

        def once(meanwhile: Callable[[], object] | None) -> tuple[Any, ...]:
            return self._bus.call(*names, signature, values, returns=returns, timeout=timeout, meanwhile=meanwhile,
                                  interactive=interactive, silence=self._given_up and self._look)

        try:
            try:
                results = once(meanwhile)
            except BusError as error:
                # Nobody has it yet, so nothing has been done.
                coming = error.name == _LATE or (_is_absent(error) and self._returning())
                if not (coming and self._bus.wait_for(self._name, RETURN_SECONDS)):
                    raise
                results = once(None)
        except BusError as error:
            raise self._error(error, member) from error
        except TimeoutError as error:
            raise RuntimeFailure(f"{self._who} did not answer {member} within {timeout:.0f} seconds") from error
        return results[0] if len(results) == 1 else results or None

    def _look(self) -> None:
        if self._given_up is not None and self._given_up():
            raise NotRunning(f"{self._who} does not start; systemctl status {self._who} says why")

    def _error(self, error: BusError, member: str) -> CageError:
        if error.name.startswith(BUS_ERROR_PREFIX):
            found = from_bus(error.name, error.sentence)
            if isinstance(found, NotAuthorized) and self._verb and found.sentence.startswith(member + " "):
                # In the words that were typed.
                return type(found)(self._verb + found.sentence.removeprefix(member))
            return found
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
        return Peer(self._bus, self._name, path, interface, who=self._who, absent=self._absent, verb=self._verb,
                    asks=self._asks, returning=self._returning, given_up=self._given_up)

    def close(self) -> None:
        self._bus.close()


def _is_absent(error: BusError) -> bool:
    return error.name in _ABSENT or error.name.startswith(_ABSENT_PREFIX)


def core(verb: str, asks: bool = False) -> Peer:
    """caged's manager on the system bus, for `verb`, a sub-command of cagectl; see Peer for `asks`."""
    manager = CORE_NAME + ".Manager"
    asks = asks and os.geteuid() != 0  # for root nobody is asked
    return Peer(Connection(), CORE_NAME, CORE_PATH, manager, who="caged", absent=_no_core, verb=verb, asks=asks,
                returning=lambda: _held(STANDALONE_LOCK), given_up=_is_given_up)


def _no_core() -> str:
    if _held(STANDALONE_LOCK):
        return "caged is just being started again; try again"
    return "caged is not running; start it with systemctl start caged or caged --standalone"


def _is_given_up() -> bool:
    from cage_runtime.cli.unit import has_failed

    return has_failed("caged.service")


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


def mediator(name: str, so: str, *, given_up: Callable[[], bool] | None = None) -> Peer:
    """The cage half of the mediator `name` on the cage's own system bus; `so` is what follows where it is not there.

    No call of it goes on once `given_up`.
    """
    interface = f"org.cageruntime.{name.capitalize()}1"
    absent = f"the {name} mediator of this cage is not running, {so}; ask who runs this host"
    return Peer(Connection(message_bytes=CAGE_MESSAGE_BYTES), interface, "/" + interface.replace(".", "/"), interface,
                who=f"the {name} mediator", absent=lambda: absent, given_up=given_up)


def files() -> Peer:
    return mediator("files", "so nothing can be sent")
