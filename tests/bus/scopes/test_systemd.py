# SPDX-License-Identifier: LGPL-2.1-or-later
"""The conversation of cage-scopes with a systemd and a machined that answer as each test tells them to.

The real ones are talked to in tests/vm; here is what they say seldom, and what somebody else says in their place.
"""

from __future__ import annotations

import contextlib
import select
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from jeepney import DBusAddress, MessageFlag, new_signal
from jeepney.bus_messages import message_bus
from jeepney.io.blocking import DBusConnection, open_dbus_connection
from jeepney.low_level import HeaderFields

from cage_runtime.scopes import systemd as module
from cage_runtime.scopes.spec import Close, Leaving, Open, Opened, Register, Unregister
from cage_runtime.scopes.systemd import Systemd
from tests.bus.cli.conftest import FakeError, FakeService, bus_address, system_bus

__all__ = ["bus_address", "system_bus"]

SECONDS = 10.0
MANAGER = DBusAddress("/org/freedesktop/systemd1", interface="org.freedesktop.systemd1.Manager")
MACHINES = DBusAddress("/org/freedesktop/machine1", interface="org.freedesktop.machine1.Manager")
BUS = DBusAddress("/org/freedesktop/DBus", interface="org.freedesktop.DBus")
JOB, UNIT = "/org/freedesktop/systemd1/job/7", "cage-work.scope"


class Host:
    """systemd and machined on a bus, and cage-scopes' end of it."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.systemd = FakeService(address, "org.freedesktop.systemd1")
        self.machined = FakeService(address, "org.freedesktop.machine1")
        self.systemd.answers["Subscribe"] = lambda: ("", ())
        self.systemd.answers["ListUnitsByPatterns"] = lambda *_: ("a(ssssssouso)", ([],))
        self.systemd.answers["ListJobs"] = lambda: ("a(usssoo)", ([],))
        self.systemd.answers["StartTransientUnit"] = lambda *_: ("o", (JOB,))
        self.machined.answers["RegisterMachine"] = lambda *_: ("o", ("/org/freedesktop/machine1/machine/work",))
        before = self._names()
        self.told: list[Opened | Leaving] = []
        self.scopes = Systemd(self.told.append)
        self.scopes.begin()
        (self.name,) = self._names() - before

    def _names(self) -> set[str]:
        with open_dbus_connection(self.address) as connection:
            names = connection.send_and_get_reply(message_bus.ListNames()).body[0]
            return set(names) - {connection.unique_name}

    def says(self, who: FakeService, about: DBusAddress, member: str, signature: str, *body: Any) -> None:
        with who.turn:
            who._connection.send(new_signal(about, member, signature, body))

    def job_ends(self, result: str) -> None:
        self.says(self.systemd, MANAGER, "JobRemoved", "uoss", 7, JOB, UNIT, result)

    def until(self, done: Callable[[], object]) -> None:
        """Take turns until `done`, or nothing comes for far too long."""
        end = time.monotonic() + SECONDS
        self.scopes.turn()
        while not done():
            connection = self.scopes.connection
            assert connection is not None
            poll = select.poll()
            poll.register(connection.fileno(), connection.waits_for()[0])
            due = min(end, self.scopes.waits_until() or end)
            poll.poll(max(0, int((due - time.monotonic()) * 1000) + 1))
            assert time.monotonic() < end, f"only this was told: {self.told}"
            self.scopes.turn()

    def asked(self, who: FakeService, member: str) -> list[tuple[Any, ...]]:
        return [call[1:] for call in who.calls if call[0] == member]

    def close(self) -> None:
        for number in range(1, 4):
            self.scopes.ask(Close(number=number))
        if self.scopes.connection is not None:
            self.scopes.connection.close()
        self.systemd.close()
        self.machined.close()


@pytest.fixture
def host(system_bus: str) -> Iterator[Host]:
    host = Host(system_bus)
    yield host
    host.close()


def lives(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


OPEN = Open(number=1, name="work", runtime="")


def test_a_scope_is_there_when_its_job_is_done(host: Host) -> None:
    host.scopes.ask(OPEN)
    host.until(lambda: host.asked(host.systemd, "StartTransientUnit"))
    ((unit, mode, properties, _),) = host.asked(host.systemd, "StartTransientUnit")
    assert (unit, mode) == (UNIT, "ignore-dependencies")
    given = {name: value for name, (_, value) in properties}
    assert (given["Slice"], given["Delegate"], given["Description"]) == ("cages.slice", True, "Cage work")
    (seed,) = given["PIDs"]
    assert host.told == []
    host.job_ends("done")
    host.until(lambda: host.told)
    assert host.told == [Opened(number=1, seed=seed)]
    assert lives(seed)
    host.scopes.ask(Close(number=1))
    assert not lives(seed)


def send_to(host: Host, stranger: DBusConnection, about: DBusAddress, member: str, signature: str, *body: Any) -> None:
    signal = new_signal(about, member, signature, body)
    signal.header.fields[HeaderFields.destination] = host.name
    signal.header.flags |= MessageFlag.no_reply_expected
    stranger.send(signal)


def test_nobody_else_can_say_that_a_job_has_ended(host: Host) -> None:
    """A signal to one name alone passes no match rule, and any user may send one on the system bus."""
    host.scopes.ask(OPEN)
    host.until(lambda: host.asked(host.systemd, "StartTransientUnit"))
    with open_dbus_connection(host.address) as stranger:
        send_to(host, stranger, MANAGER, "JobRemoved", "uoss", 7, JOB, UNIT, "failed")
        send_to(host, stranger, MANAGER, "JobRemoved", "s", "")
        send_to(host, stranger, MANAGER, "JobNew", "uos", 7, JOB, "cage-vault.scope")
        send_to(host, stranger, MACHINES, "MachineRemoved", "so", "work", JOB)
        send_to(host, stranger, MACHINES, "MachineRemoved", "s", "work")
        send_to(host, stranger, BUS, "NameOwnerChanged", "s", "")
        stranger.send_and_get_reply(message_bus.GetId())
    host.job_ends("done")
    host.until(lambda: host.told)
    assert [type(each) for each in host.told] == [Opened]
    assert host.told[0].fault == ""  # type: ignore[union-attr]


@pytest.mark.parametrize("result", ["failed", "canceled", "timeout", "dependency"])
def test_a_job_that_fails_is_told_with_its_result(host: Host, result: str) -> None:
    host.scopes.ask(OPEN)
    host.until(lambda: host.asked(host.systemd, "StartTransientUnit"))
    host.until(lambda: any(each.job for each in host.scopes._openings.values()))
    host.job_ends(result)
    host.until(lambda: host.told)
    assert host.told == [Opened(number=1, fault=f"systemd makes no {UNIT}: its job ended as {result}; see its journal")]


def test_what_systemd_refuses_is_told_in_its_words(host: Host) -> None:
    host.systemd.fail("StartTransientUnit", "org.freedesktop.DBus.Error.AccessDenied", "Permission denied")
    host.scopes.ask(OPEN)
    host.until(lambda: host.told)
    assert host.told == [Opened(number=1, fault=f"systemd makes no {UNIT}: Permission denied")]


def test_the_scope_of_a_cage_s_last_life_is_waited_for(host: Host) -> None:
    answers = [FakeError("org.freedesktop.systemd1.UnitExists", "there"), None]

    def start(*_: object) -> tuple[str, tuple[str]]:
        answer = answers.pop(0)
        if answer is not None:
            raise answer
        return "o", (JOB,)

    host.systemd.answers["StartTransientUnit"] = start
    host.scopes.ask(OPEN)
    host.until(lambda: host.scopes.waits_until())
    host.says(host.systemd, MANAGER, "UnitRemoved", "so", "other.scope", "/org/freedesktop/systemd1/unit/other")
    host.says(host.systemd, MANAGER, "UnitRemoved", "so", UNIT, "/org/freedesktop/systemd1/unit/cage_2dwork_2escope")
    host.until(lambda: any(each.job for each in host.scopes._openings.values()))
    assert len(host.asked(host.systemd, "StartTransientUnit")) == 2
    host.job_ends("done")
    host.until(lambda: host.told)
    assert host.told[0].fault == ""  # type: ignore[union-attr]


EXISTS = FakeError("org.freedesktop.systemd1.UnitExists", "there")


def test_a_scope_in_which_nothing_ever_was_is_stopped(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of itself systemd keeps it for good: the process that it was made around ended before it was in."""
    monkeypatch.setattr(module, "AGAIN_SECONDS", 0.01)
    there = [True]

    def start(*_: object) -> tuple[str, tuple[str]]:
        if there:
            raise EXISTS
        return "o", (JOB,)

    host.systemd.answers |= {
        "StartTransientUnit": start, "GetUnitProcesses": lambda _: ("a(sus)", ([],)),
        "StopUnit": lambda *_: ("o", (str(there.clear() or JOB),))}
    host.scopes.ask(OPEN)
    host.until(lambda: any(each.job for each in host.scopes._openings.values()))
    assert host.asked(host.systemd, "StopUnit") == [(UNIT, "replace")]
    members = [call[0] for call in host.systemd.calls]
    assert members[-4:] == ["StartTransientUnit", "GetUnitProcesses", "StopUnit", "StartTransientUnit"]


def test_a_scope_in_which_something_is_is_not(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "AGAIN_SECONDS", 0.01)
    monkeypatch.setattr(module, "GONE_SECONDS", 0.2)
    host.systemd.answers["GetUnitProcesses"] = lambda _: ("a(sus)", ([("/cages.slice", 7, "sleep")],))
    host.systemd.fail("StartTransientUnit", EXISTS.name, EXISTS.sentence)
    host.scopes.ask(OPEN)
    host.until(lambda: host.told)
    assert len(host.asked(host.systemd, "GetUnitProcesses")) > 1
    assert host.asked(host.systemd, "StopUnit") == []


def unit(name: str) -> tuple[str, ...]:
    return (name, "", "loaded", "active", "running", "", "/unit", 0, "", "/")  # type: ignore[return-value]


def test_at_the_start_scopes_are_cleared_that_a_killed_one_has_left(host: Host) -> None:
    inside = {UNIT: [], "cage-full.scope": [("/cages.slice", 7, "sleep")], "cage-new.scope": []}
    host.systemd.answers |= {
        "ListUnitsByPatterns": lambda *_: ("a(ssssssouso)", ([*map(unit, inside)],)),
        "GetUnitProcesses": lambda name: ("a(sus)", (inside[name],)), "StopUnit": lambda *_: ("o", (JOB,))}
    scopes = Systemd(host.told.append)
    scopes.begin()
    scopes.ask(Open(number=1, name="new", runtime=""))
    with contextlib.closing(host.scopes.connection):  # type: ignore[type-var]
        host.scopes = scopes
        host.until(lambda: host.asked(host.systemd, "StopUnit"))
        host.until(lambda: not scopes._calls)
    assert host.asked(host.systemd, "StopUnit") == [(UNIT, "replace")], "what is asked for now is not what was left"


def test_a_systemd_that_executes_itself_anew_is_asked_again(host: Host) -> None:
    """It may have made the scope, and it may not; what it has made around the first seed goes with that."""
    def leave(*_: object) -> tuple[str, tuple[str]]:
        host.systemd._connection.sock.shutdown(socket.SHUT_RDWR)
        return "o", (JOB,)

    gone = host.systemd
    gone.answers["StartTransientUnit"] = leave
    host.scopes.ask(OPEN)
    host.until(lambda: host.scopes.waits_until())
    (first,) = dict(host.asked(gone, "StartTransientUnit")[0][2])["PIDs"][1]
    assert not lives(first)
    gone.close()
    host.systemd = FakeService(host.address, "org.freedesktop.systemd1")
    host.systemd.answers |= {"Subscribe": lambda: ("", ()), "StartTransientUnit": lambda *_: ("o", (JOB,))}
    host.until(lambda: any(each.job for each in host.scopes._openings.values()))
    assert [call[0] for call in host.systemd.calls] == ["Subscribe", "StartTransientUnit"]
    host.job_ends("done")
    host.until(lambda: host.told)
    (second,) = dict(host.asked(host.systemd, "StartTransientUnit")[0][2])["PIDs"][1]
    assert host.told == [Opened(number=1, seed=second)]
    assert lives(second)


def test_a_unit_of_somebody_else_s_is_not_waited_for_for_ever(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GONE_SECONDS", 0.1)
    host.systemd.fail("StartTransientUnit", "org.freedesktop.systemd1.UnitExists", "there")
    host.scopes.ask(OPEN)
    host.until(lambda: host.told)
    assert host.told == [Opened(number=1, fault=f"there is a unit {UNIT} already, which is none of this runtime's; "
                                                f"see systemctl status {UNIT}")]  # fmt: skip


def test_a_scope_that_nobody_waits_for_any_more_is_not_told_of(host: Host) -> None:
    host.scopes.ask(OPEN)
    host.until(lambda: host.asked(host.systemd, "StartTransientUnit"))
    (seed,) = dict(host.asked(host.systemd, "StartTransientUnit")[0][2])["PIDs"][1]
    host.scopes.ask(Close(number=1))
    assert not lives(seed)
    host.job_ends("failed")
    host.scopes.ask(Open(number=2, name="vault", runtime=""))
    host.until(lambda: any(each.job for each in host.scopes._openings.values()))
    assert host.told == []


def test_no_bus_is_a_sentence(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/nonexistent/bus")
    told: list[Opened | Leaving] = []
    scopes = Systemd(told.append)
    scopes.begin()
    scopes.ask(OPEN)
    assert host.told == []
    assert [each.fault[:41] for each in told if isinstance(each, Opened)] == [
        "no system bus at unix:path=/nonexistent/b"]


def test_the_end_of_a_scope_is_told_before_it_comes(host: Host) -> None:
    host.scopes.ask(OPEN)
    host.until(lambda: host.asked(host.systemd, "StartTransientUnit"))
    for unit in (UNIT, "session-3.scope", "cage-spawner.service", "cage-vault.scope"):
        host.says(host.systemd, MANAGER, "JobNew", "uos", 9, "/org/freedesktop/systemd1/job/9", unit)
    host.until(lambda: host.told)
    assert host.told == [Leaving(unit="cage-vault.scope")]


def test_an_end_that_was_begun_before_is_told_too(host: Host) -> None:
    host.systemd.answers["ListJobs"] = lambda: ("a(usssoo)", ([
        (7, "cage-work.scope", "stop", "running", JOB, "/org/freedesktop/systemd1/unit/cage_2dwork_2escope"),
        (8, "cage-vault.scope", "start", "running", JOB, "/org/freedesktop/systemd1/unit/cage_2dvault_2escope"),
        (9, "caged.service", "stop", "waiting", JOB, "/org/freedesktop/systemd1/unit/caged_2eservice"),
    ],))
    told: list[Opened | Leaving] = []
    later = Systemd(told.append)
    later.begin()
    assert told == [Leaving(unit="cage-work.scope")]
    assert later.connection is not None
    later.connection.close()


def test_a_cage_is_registered_when_its_last_life_is_forgotten(host: Host) -> None:
    host.machined.fail("RegisterMachine", "org.freedesktop.machine1.MachineExists", "there")
    host.scopes.ask(Register(name="work", uuid="a" * 32, leader=4711))
    host.until(lambda: host.scopes._unregistered)
    host.machined.answers["RegisterMachine"] = lambda *_: ("o", ("/org/freedesktop/machine1/machine/work",))
    host.says(host.machined, MACHINES, "MachineRemoved", "so", "other", "/org/freedesktop/machine1/machine/other")
    host.says(host.machined, MACHINES, "MachineRemoved", "so", "work", "/org/freedesktop/machine1/machine/work")
    host.until(lambda: not host.scopes._unregistered and not host.scopes._calls)
    given = ("work", b"\xaa" * 16, "cage-runtime", "vm", 4711, "")
    assert host.asked(host.machined, "RegisterMachine") == [given, given]


def test_a_machined_that_is_not_there_is_told_of_once(host: Host, caplog: pytest.LogCaptureFixture) -> None:
    host.machined.fail("RegisterMachine", "org.freedesktop.DBus.Error.ServiceUnknown", "no such service")
    for _ in range(3):
        host.scopes.ask(Register(name="work", uuid="a" * 32, leader=4711))
    host.until(lambda: not host.scopes._calls)
    assert [record.getMessage() for record in caplog.records] == [
        "machinectl does not know of the cage work: no such service"]


# --- the end of a cage, and its next life -----------------------------------------------------------------------------
ENDED = Unregister(name="work", uuid="a" * 32)
NEXT = Register(name="work", uuid="a" * 32, leader=4711)


def knows(host: Host, uuid: bytes) -> None:
    host.machined.answers |= {"Get": lambda *_: ("v", (("ay", uuid),)), "UnregisterMachine": lambda *_: ("", ())}


def heard(host: Host) -> list[str]:
    return [call[0] for call in host.machined.calls]


def passed(host: Host) -> None:
    """Until all that was sent to systemd before has been answered."""
    host.scopes.ask(Open(number=3, name="other", runtime=""))
    host.until(lambda: any("cage-other.scope" in call for call in host.systemd.calls))


def test_machined_forgets_a_cage_before_anything_is_done_for_its_next_life(host: Host) -> None:
    """Of a machine whose unit has gone it stops the unit of that name, which would be the new one."""
    knows(host, b"\xaa" * 16)
    with host.machined.turn:
        host.scopes.ask(ENDED)
        host.scopes.ask(OPEN)
        host.scopes.ask(NEXT)
        passed(host)
        assert [call[0] for call in host.asked(host.systemd, "StartTransientUnit")] == ["cage-other.scope"]
    host.until(lambda: any(UNIT in call for call in host.systemd.calls) and not host.scopes._calls)
    assert host.machined.calls[:2] == [("Get", "org.freedesktop.machine1.Machine", "Id"), ("UnregisterMachine", "work")]
    assert heard(host)[2:] == ["RegisterMachine"]


def test_another_machine_of_that_name_is_left_alone(host: Host) -> None:
    knows(host, b"\xbb" * 16)
    host.scopes.ask(ENDED)
    host.scopes.ask(OPEN)
    host.until(lambda: host.asked(host.systemd, "StartTransientUnit"))
    assert heard(host) == ["Get"]


@pytest.mark.parametrize("error", [
    "org.freedesktop.DBus.Error.ServiceUnknown", "org.freedesktop.DBus.Error.UnknownObject"])
def test_a_machined_that_is_not_there_or_knows_nothing_is_nothing(
    host: Host, error: str, caplog: pytest.LogCaptureFixture
) -> None:
    host.machined.fail("Get", error, "nothing")
    host.scopes.ask(ENDED)
    host.scopes.ask(OPEN)
    host.until(lambda: host.asked(host.systemd, "StartTransientUnit"))
    assert (heard(host), host.scopes._endings, caplog.records) == (["Get"], {}, [])


def test_one_that_does_not_unregister_is_not_asked_for_ever(host: Host) -> None:
    knows(host, b"\xaa" * 16)
    host.machined.fail("UnregisterMachine", "org.freedesktop.machine1.NoSuchMachine", "gone by now")
    host.scopes.ask(ENDED)
    host.scopes.ask(OPEN)
    host.until(lambda: host.asked(host.systemd, "StartTransientUnit"))
    assert heard(host) == ["Get", "UnregisterMachine"]


def test_a_machined_that_does_not_answer_keeps_no_cage_from_its_next_life(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FORGOTTEN_SECONDS", 0.1)
    knows(host, b"\xaa" * 16)
    with host.machined.turn:
        host.scopes.ask(ENDED)
        host.scopes.ask(ENDED)
        host.scopes.ask(OPEN)
        host.until(lambda: host.asked(host.systemd, "StartTransientUnit"))
    assert host.scopes._endings == {}


def test_one_that_is_not_wanted_any_more_is_not_started_afterwards(host: Host) -> None:
    knows(host, b"\xaa" * 16)
    with host.machined.turn:
        host.scopes.ask(ENDED)
        host.scopes.ask(OPEN)
        host.scopes.ask(Close(number=1))
    host.until(lambda: not host.scopes._endings)
    assert host.asked(host.systemd, "StartTransientUnit") == []


def test_a_life_that_has_ended_is_not_registered_any_more(host: Host) -> None:
    host.machined.fail("RegisterMachine", "org.freedesktop.machine1.MachineExists", "there")
    host.scopes.ask(NEXT)
    host.until(lambda: host.scopes._unregistered)
    knows(host, b"\xbb" * 16)
    host.scopes.ask(ENDED)
    host.says(host.machined, MACHINES, "MachineRemoved", "so", "work", "/org/freedesktop/machine1/machine/work")
    host.until(lambda: not host.scopes._endings)
    passed(host)
    assert heard(host) == ["RegisterMachine", "Get"]


def test_where_the_bus_goes_meanwhile_whoever_waits_is_told(host: Host) -> None:
    with host.machined.turn:
        host.scopes.ask(ENDED)
        host.scopes.ask(OPEN)
        assert host.scopes.connection is not None
        with socket.socket(fileno=socket.dup(host.scopes.connection.fileno())) as connection:
            connection.shutdown(socket.SHUT_RDWR)
        host.scopes.turn()
    assert [told.fault != "" for told in host.told if isinstance(told, Opened)] == [True]
    assert host.scopes._endings == {}


def test_the_path_of_a_machine() -> None:
    assert module._machine_of("my-cage2") == "/org/freedesktop/machine1/machine/my_2dcage2"
