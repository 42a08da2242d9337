# SPDX-License-Identifier: LGPL-2.1-or-later
"""The conversation with systemd and systemd-machined (org.freedesktop.systemd1(5), org.freedesktop.machine1(5)).

systemd makes a scope around a process that is there: the seed, a child of ours that does nothing, and that ends when
the cage's own first process is in.  What systemd tells by signals is believed by the sender's name on the bus, because
anybody may send us a signal.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import prctl

from cage_runtime.errors import CageError, NoSystemBus, RuntimeFailure
from cage_runtime.scopes.spec import (
    Asked,
    Close,
    Leaving,
    Open,
    Opened,
    Register,
    Unregister,
    is_scope,
    scope_of,
    slice_of,
)
from cage_runtime.sdbus import BusError, Connection, Incoming
from cage_runtime.spawner import syscall

LOG = logging.getLogger("cage-scopes")

CALL_SECONDS = 10.0
"""What the bus and systemd have to answer the few calls that open the conversation."""
GONE_SECONDS = 10.0
"""How long a unit of the cage's name may still be there: that of its last life, which systemd removes by itself."""
AGAIN_SECONDS = 0.5
"""Between two looks whether it is."""
FORGOTTEN_SECONDS = 5.0
"""What machined has to forget a cage that has ended; after that its next life begins all the same."""
STOP_SECONDS = 15
"""From the SIGTERM of a scope's stop to its SIGKILL: cage-init gives its processes 5 of them (model.STOP_SECONDS)."""
AFTER = ("cage-spawner.service", "caged.service", "cage-mediators.target")
"""A cage begins after these; when the host shuts down it ends before them, so that its end is carried out and recorded
as any other.  No requirement: none of them takes cages along when it stops."""

CLASS = "vm"
"""What machined takes a cage for.  Into one of class container it goes, as root and for whoever asks (machinectl
status, shell); nobody walks into a cage, and into one of class vm it does not."""

JOB_MODE = "ignore-dependencies"
"""For those a scope's start would wait, where one of them is being stopped or restarted; and that waits for the cage
that it is about to start, as for whatever it has in hand."""

_DBUS, _DBUS_PATH = "org.freedesktop.DBus", "/org/freedesktop/DBus"
_SYSTEMD, _SYSTEMD_PATH = "org.freedesktop.systemd1", "/org/freedesktop/systemd1"
_MANAGER = _SYSTEMD + ".Manager"
_MACHINED, _MACHINED_PATH = "org.freedesktop.machine1", "/org/freedesktop/machine1"
_UNIT_EXISTS = _SYSTEMD + ".UnitExists"
_NO_REPLY = _DBUS + ".Error.NoReply"
"""The bus's own word for one that has gone with a call in hand."""
_MACHINE_EXISTS = _MACHINED + ".MachineExists"
_PASSING = (_MACHINE_EXISTS, _DBUS + ".Error.UnixProcessIdUnknown", "System.Error.ESRCH")
"""Of a cage whose last life machined has not forgotten, and of one that has ended by now."""
_SUBSCRIBED = _SYSTEMD + ".AlreadySubscribed"
_MATCHES = (
    f"type='signal',sender='{_SYSTEMD}',path='{_SYSTEMD_PATH}',interface='{_MANAGER}',member='JobNew'",
    f"type='signal',sender='{_SYSTEMD}',path='{_SYSTEMD_PATH}',interface='{_MANAGER}',member='JobRemoved'",
    f"type='signal',sender='{_SYSTEMD}',path='{_SYSTEMD_PATH}',interface='{_MANAGER}',member='UnitRemoved'",
    f"type='signal',sender='{_MACHINED}',path='{_MACHINED_PATH}',interface='{_MACHINED}.Manager',member='MachineRemoved'",
    f"type='signal',sender='{_DBUS}',interface='{_DBUS}',member='NameOwnerChanged',arg0='{_SYSTEMD}'",
)
_INFINITY = 2**64 - 1


@dataclass(kw_only=True, slots=True)
class Ending:
    """A cage that machined is to forget.  Of a machine that has ended it stops the unit by its name, which may be that
    of the next life: what it says once this is answered, it has said before that is begun."""

    until: float
    afterwards: list[Callable[[], None]] = field(default_factory=list)


@dataclass(kw_only=True, slots=True)
class Opening:
    """A scope that is asked for, or is there and kept by its seed."""

    request: Open
    seed: int
    until: float
    """When a unit of that name that is there is no more taken for one that goes."""
    job: str = ""
    """The D-Bus path of systemd's job, while that runs."""
    again: float | None = None
    """When it is asked for again, which waits for a unit of that name to be removed, or for systemd to come back: at
    the latest then, because what is told of that may be lost while systemd is away."""
    opened: bool = False
    waited: bool = False
    """Whether it has been asked for again before."""

    def wait(self) -> None:
        self.waited = True
        self.again = min(self.until, time.monotonic() + AGAIN_SECONDS)

    @property
    def unit(self) -> str:
        return scope_of(self.request.runtime, self.request.name)


class Systemd:
    def __init__(self, tell: Callable[[Opened | Leaving], None]) -> None:
        self._tell = tell
        self._bus: Connection | None = None
        self._systemd = ""
        """The unique name of systemd on the bus."""
        self._openings: dict[int, Opening] = {}
        self._calls: dict[int, Callable[[Incoming], None]] = {}
        self._unregistered: dict[str, tuple[float, Register]] = {}
        """Cages whose name another machine has, most likely that of their last life; until when that is hoped for."""
        self._endings: dict[str, Ending] = {}
        """By the cage's name."""
        self._said: set[str] = set()

    def begin(self) -> None:
        """Be there for what systemd tells; where the bus is not there yet, from the first request on."""
        try:
            self._connected()
        except CageError as error:
            LOG.warning("%s", error.sentence)
            return
        self._post_or_not("ListUnitsByPatterns", "asas", (["active"], ["cage-*.scope"]), self._clear_all)

    # --- what is asked -------------------------------------------------------------------------------------------
    def ask(self, request: Asked) -> None:
        match request:
            case Open():
                opening = Opening(request=request, seed=_seed(), until=time.monotonic() + GONE_SECONDS)
                self._openings[request.number] = opening
                self._after_ending(request.name, lambda: self._start_if_wanted(opening))
            case Close():
                if request.number in self._openings:
                    _end(self._openings.pop(request.number).seed)
            case Register():
                self._after_ending(request.name, lambda: self._register(request))
            case Unregister():
                self._after_ending(request.name, lambda: self._unregister(request))

    def _after_ending(self, name: str, do: Callable[[], None]) -> None:
        """`do` when nobody has to forget a cage of that name any more."""
        if ending := self._endings.get(name):
            ending.afterwards.append(do)
        else:
            do()

    def _start_if_wanted(self, opening: Opening) -> None:
        if self._openings.get(opening.request.number) is opening:
            self._start(opening)

    def _start(self, opening: Opening) -> None:
        opening.again = None
        no_others: list[object] = []
        arguments = (opening.unit, JOB_MODE, _properties(opening), no_others)
        try:
            self._post(_SYSTEMD, _SYSTEMD_PATH, _MANAGER, "StartTransientUnit", "ssa(sv)a(sa(sv))", arguments,
                       lambda reply: self._queued(opening, reply))
        except CageError as error:
            self._fail(opening, error.sentence)

    def _queued(self, opening: Opening, reply: Incoming) -> None:
        try:
            (opening.job,) = reply.body("o")
        except BusError as error:
            if error.name == _UNIT_EXISTS and time.monotonic() < opening.until:
                # One that goes has gone by the second time.
                if opening.waited:
                    self._clear(opening.unit, opening, opening.wait)
                else:
                    opening.wait()
            elif error.name == _NO_REPLY and time.monotonic() < opening.until:
                # systemd executes itself anew, and is asked again when it is back; a scope that it has made all the
                # same goes with its seed.
                _end(opening.seed)
                opening.seed = _seed()
                opening.wait()
            elif error.name == _UNIT_EXISTS:
                self._fail(opening, f"there is a unit {opening.unit} already, which is none of this runtime's; "
                                    f"see systemctl status {opening.unit}")
            else:
                self._fail(opening, f"systemd makes no {opening.unit}: {error.sentence or error.name}")

    # --- scopes in which nothing is ------------------------------------------------------------------------------
    def _clear(self, unit: str, opening: Opening | None, done: Callable[[], None]) -> None:
        """Stop a scope in which nothing is, for one that waits for its name; `done` when that has begun or need not.

        systemd hears that a scope becomes empty, and one whose process ends just as it is put in never was otherwise:
        that of a cage whose spawner was killed at its birth.  It would stay, and its name with it.
        """
        self._post_or_not("GetUnitProcesses", "s", (unit,), lambda reply: self._clear_empty(unit, opening, reply, done))

    def _clear_empty(self, unit: str, opening: Opening | None, reply: Incoming, done: Callable[[], None]) -> None:
        try:
            (processes,) = reply.body("a(sus)")
        except BusError:  # it has gone
            processes = None
        # One that has been asked for since is another: it may be there already.
        asked_for = any(each.unit == unit and each is not opening for each in self._openings.values())
        if processes == [] and not asked_for:
            self._post_or_not("StopUnit", "ss", (unit, "replace"), lambda _reply: done())
        else:
            done()

    def _clear_all(self, reply: Incoming) -> None:
        try:
            (units,) = reply.body("a(ssssssouso)")
        except BusError as error:
            LOG.warning("the scopes of cages cannot be looked through: %s", error.sentence or error.name)
            return
        for unit, *_ in units:
            if is_scope(unit):
                self._clear(unit, None, lambda: None)

    def _post_or_not(self, member: str, signature: str, values: tuple[object, ...],
                     answered: Callable[[Incoming], None]) -> None:
        """Of a bus that goes away all who wait hear at once."""
        with contextlib.suppress(NoSystemBus):
            self._post(_SYSTEMD, _SYSTEMD_PATH, _MANAGER, member, signature, values, answered)

    def _fail(self, opening: Opening, sentence: str) -> None:
        # Gone where nobody waits any more.
        if self._openings.pop(opening.request.number, None):
            _end(opening.seed)
            self._tell(Opened(number=opening.request.number, fault=sentence[:1000]))

    def _register(self, request: Register) -> None:
        arguments = (request.name, bytes.fromhex(request.uuid), "cage-runtime", CLASS, request.leader, "")
        try:
            self._post(_MACHINED, _MACHINED_PATH, _MACHINED + ".Manager", "RegisterMachine", "sayssus", arguments,
                       lambda reply: self._registered(request, reply))
        except CageError as error:
            self._say_once(error.bus_name, f"machinectl does not know of cages: {error.sentence}")

    def _registered(self, request: Register, reply: Incoming) -> None:
        try:
            reply.body("o")
        except BusError as error:
            now = time.monotonic()
            if error.name == _MACHINE_EXISTS:
                self._unregistered = {name: each for name, each in self._unregistered.items() if each[0] > now}
                self._unregistered.setdefault(request.name, (now + GONE_SECONDS, request))
            why = f"machinectl does not know of the cage {request.name}: {error.sentence or error.name}"
            if error.name not in _PASSING:
                self._say_once(error.name, why)

    def _unregister(self, request: Unregister) -> None:
        """Have the machine forgotten, if it is that cage: another of its name is none of ours."""
        self._unregistered.pop(request.name, None)
        ending = self._endings[request.name] = Ending(until=time.monotonic() + FORGOTTEN_SECONDS)
        self._post_for(request.name, ending, _machine_of(request.name), _DBUS + ".Properties", "Get", "ss",
                       (_MACHINED + ".Machine", "Id"), lambda reply: self._identified(request, ending, reply))

    def _identified(self, request: Unregister, ending: Ending, reply: Incoming) -> None:
        try:
            (found,) = reply.body("v")
        except (BusError, RuntimeFailure):  # it is not there, or knows of none
            found = None
        if found == bytes.fromhex(request.uuid):
            self._post_for(request.name, ending, _MACHINED_PATH, _MACHINED + ".Manager", "UnregisterMachine", "s",
                           (request.name,), lambda _reply: self._forgotten(request.name, ending))
        else:
            self._forgotten(request.name, ending)

    def _post_for(self, name: str, ending: Ending, *call: Any) -> None:
        """Call machined, as `_post` does; without a bus nobody has anything to forget."""
        try:
            self._post(_MACHINED, *call)
        except CageError:
            self._forgotten(name, ending)

    def _forgotten(self, name: str, ending: Ending) -> None:
        """Go on with what waits for that, unless it was not waited for any more."""
        if self._endings.get(name) is ending:
            del self._endings[name]
            for do in ending.afterwards:
                self._after_ending(name, do)

    def _say_once(self, kind: str, sentence: str) -> None:
        if kind not in self._said:
            self._said.add(kind)
            LOG.warning("%s", sentence)

    # --- the bus -------------------------------------------------------------------------------------------------
    @property
    def connection(self) -> Connection | None:
        return self._bus

    def waits_until(self) -> float | None:
        """The moment of time.monotonic() at which `turn` has something to do, whatever comes."""
        ends = [opening.again for opening in self._openings.values() if opening.again is not None]
        ends += [ending.until for ending in self._endings.values()]
        if self._bus is not None and (due := self._bus.waits_for()[1]) is not None:
            ends.append(due)
        return min(ends, default=None)

    def turn(self) -> None:
        """Take what has come, and give up what has waited long enough."""
        try:
            while self._bus is not None and (message := self._bus.take()) is not None:
                self._hear(message)
        except NoSystemBus as error:
            self._lost(error)
        now = time.monotonic()
        for name, ending in list(self._endings.items()):
            if now >= ending.until:
                self._forgotten(name, ending)
        for opening in [each for each in self._openings.values() if each.again is not None and now >= each.again]:
            self._start(opening)

    def _post(self, *call: Any) -> None:
        """Call a method (`call` ends with what is to be done with the reply); NoSystemBus."""
        *words, answered = call
        try:
            cookie = self._connected().post(*words)
        except NoSystemBus as error:
            self._lost(error)
            raise
        self._calls[cookie] = answered

    def _connected(self) -> Connection:
        if self._bus is not None:
            return self._bus
        bus = Connection()
        try:
            for match in _MATCHES:
                bus.call(_DBUS, _DBUS_PATH, _DBUS, "AddMatch", "s", (match,), timeout=CALL_SECONDS)
            _subscribe(bus)
            (self._systemd,) = bus.call(_DBUS, _DBUS_PATH, _DBUS, "GetNameOwner", "s", (_SYSTEMD,), returns="s",
                                        timeout=CALL_SECONDS)
            (jobs,) = bus.call(_SYSTEMD, _SYSTEMD_PATH, _MANAGER, "ListJobs", returns="a(usssoo)",
                               timeout=CALL_SECONDS)
        except (BusError, TimeoutError) as error:
            bus.close()
            why = error.sentence if isinstance(error, BusError) else "it does not answer"
            raise NoSystemBus(f"systemd cannot be reached on the system bus: {why}") from error
        except CageError:
            bus.close()
            raise
        self._bus = bus
        for _, unit, kind, *_ in jobs:
            if kind == "stop" and is_scope(unit):
                self._tell(Leaving(unit=unit))
        return bus

    def _lost(self, error: CageError) -> None:
        """Whoever waits for something from that connection does not get it; the next who asks has a new one."""
        if self._bus is not None:
            self._bus.close()
            self._bus = None
        self._calls.clear()
        endings, self._endings = self._endings, {}
        for opening in [each for each in self._openings.values() if not each.opened]:
            self._fail(opening, error.sentence)
        for do in [do for ending in endings.values() for do in ending.afterwards]:
            do()  # of openings, those that are there still

    def _hear(self, message: Incoming) -> None:
        if cookie := message.cookie:
            if answered := self._calls.pop(cookie, None):
                answered(message)
        elif message.sender == _DBUS and message.is_signal(_DBUS, "NameOwnerChanged"):
            self._systemd = message.body("sss")[2]
            if self._systemd and self._bus is not None:  # it has executed itself anew
                self._calls[self._bus.post(_SYSTEMD, _SYSTEMD_PATH, _MANAGER, "Subscribe")] = lambda _reply: None
                self._start_waiting()
        elif message.is_signal(_MACHINED + ".Manager", "MachineRemoved") and message.has("so"):
            # Whoever says that: to ask once more does no harm.
            until, request = self._unregistered.pop(message.body("so")[0], (0.0, None))
            if request is not None and time.monotonic() < until:
                self._register(request)
        elif message.sender != self._systemd:
            return
        elif message.is_signal(_MANAGER, "JobRemoved"):
            _, job, _, result = message.body("uoss")
            self._job_ended(job, result)
        elif message.is_signal(_MANAGER, "JobNew"):
            unit = message.body("uos")[2]
            # Of a scope there are but two jobs: that which starts it, for us, and that which stops it.
            if is_scope(unit) and not any(each.unit == unit for each in self._openings.values()):
                self._tell(Leaving(unit=unit))
        elif message.is_signal(_MANAGER, "UnitRemoved"):
            unit, _ = message.body("so")
            self._start_waiting(unit)

    def _start_waiting(self, unit: str = "") -> None:
        """Ask again for what waits to be, or for that one."""
        for opening in [each for each in self._openings.values() if each.again is not None]:
            if unit in ("", opening.unit):
                self._start(opening)

    def _job_ended(self, job: str, result: str) -> None:
        opening = next((each for each in self._openings.values() if each.job == job), None)
        if opening is None:
            return
        opening.job = ""
        if result != "done":
            self._fail(opening, f"systemd makes no {opening.unit}: its job ended as {result}; see its journal")
            return
        opening.opened = True
        self._tell(Opened(number=opening.request.number, seed=opening.seed))


def _machine_of(name: str) -> str:
    """The D-Bus path of the machine (sd_bus_path_encode(3))."""
    return f"{_MACHINED_PATH}/machine/{re.sub('[^A-Za-z0-9]', lambda it: f'_{ord(it[0]):02x}', name)}"


def _subscribe(bus: Connection) -> None:
    try:
        bus.call(_SYSTEMD, _SYSTEMD_PATH, _MANAGER, "Subscribe", timeout=CALL_SECONDS)
    except BusError as error:
        if error.name != _SUBSCRIBED:
            raise


def _properties(opening: Opening) -> list[tuple[str, tuple[str, object]]]:
    """Of the scope (systemd.scope(5)).  Its limits are the cage's own cgroup's, beneath it, as on any host."""
    return [
        ("Description", ("s", f"Cage {opening.request.name}")),
        ("Slice", ("s", slice_of(opening.request.runtime)[-1])),
        ("PIDs", ("au", [opening.seed])),
        ("Delegate", ("b", True)),
        ("CollectMode", ("s", "inactive-or-failed")),
        ("TasksMax", ("t", _INFINITY)),
        ("After", ("as", list(AFTER))),
        # SIGTERM goes to every process; cage-init takes it, from outside, for the wish that the cage ends.
        ("KillMode", ("s", "control-group")),
        ("TimeoutStopUSec", ("t", STOP_SECONDS * 1_000_000)),
    ]


def _seed() -> int:
    """A child that holds nothing and waits for its end, which comes with ours at the latest."""
    parent = os.getpid()
    pid = syscall.fork()
    if pid:
        return pid
    try:
        prctl.set_pdeathsig(signal.SIGKILL)
        prctl.set_name("cage-seed")
        os.closerange(0, 1 << 20)
        if os.getppid() == parent:
            signal.pause()
    finally:
        os._exit(0)


def _end(seed: int) -> None:
    os.kill(seed, signal.SIGKILL)
    os.waitpid(seed, 0)
