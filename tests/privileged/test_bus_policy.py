# SPDX-License-Identifier: LGPL-2.1-or-later
"""A real dbus-daemon with our policy: who may own the names, and whose calls arrive."""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from jeepney import DBusAddress, HeaderFields, MessageType, new_method_call, new_signal
from jeepney.io.blocking import open_dbus_connection

from cage_runtime.daemon.rights import RIGHTS, Does
from tests import system_bus

TOP = Path(__file__).parents[2]
CORE, APPS = "org.cageruntime.Core1", "org.cageruntime.Apps1"

MEDIATION_INTERFACE = f"{CORE}.Mediation"
OWNER = """
import os, sys
from jeepney import DBusAddress, HeaderFields, new_method_call, new_method_return, new_signal, message_bus, MessageType
from jeepney.io.blocking import open_dbus_connection
os.setgroups([]), os.setgid(int(sys.argv[3])), os.setuid(int(sys.argv[3]))
with open_dbus_connection(sys.argv[1]) as connection:
    reply = connection.send_and_get_reply(message_bus.RequestName(sys.argv[2]))
    print(reply.header.message_type.name, flush=True)
    while reply.header.message_type is MessageType.method_return:
        message = connection.receive()
        if message.header.message_type is MessageType.method_call:
            if message.body:
                interface, _, member = message.body[0].rpartition(".")
                signal = new_signal(DBusAddress("/x", interface=interface), member)
                if message.body[1]:
                    signal.header.fields[HeaderFields.destination] = message.body[1]
                connection.send(signal)
            connection.send(new_method_return(message))
"""
"""Takes the user's id only once its modules are loaded: this tree may lie where that user cannot read.  Says the
signal that it is told to by whatever call."""
LISTENER = """
import os, pwd, sys
from jeepney import HeaderFields, MatchRule, message_bus, new_method_call, DBusAddress, MessageType
from jeepney.io.blocking import open_dbus_connection
person = pwd.getpwuid(int(sys.argv[2]))
os.initgroups(person.pw_name, person.pw_gid), os.setgid(person.pw_gid), os.setuid(person.pw_uid)
with open_dbus_connection(sys.argv[1]) as connection:
    connection.send_and_get_reply(message_bus.AddMatch(MatchRule(type="signal")))
    print(connection.unique_name, flush=True)
    while True:
        fields = connection.receive().header.fields
        member = fields.get(HeaderFields.member, "")
        if member == "Last":
            break
        if not member.startswith("Name"):
            print(member, flush=True)
"""
"""Prints its name, and every signal that it hears up to the one called Last, which whoever may say."""


@pytest.fixture(scope="module")
def bus() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield from _bus_in(Path(folder))


@pytest.fixture(scope="module")
def watching() -> Iterator[str]:
    """A bus where the user lp, by a group of its own, is one who watches; both names are owned."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        policies = Path(folder, "policies")
        policies.mkdir()
        for file in system_bus.POLICIES.iterdir():
            (policies / file.name).write_text(file.read_text().replace('group="cage-watch"', 'group="lp"'))
        for bus in _bus_in(Path(folder), policies):
            yield from _owned(bus)


def _bus_in(folder: Path, policies: Path = system_bus.POLICIES) -> Iterator[str]:
    configuration = folder / "bus.conf"
    configuration.write_text(system_bus.configuration(folder / "bus", policies))
    daemon = subprocess.Popen(
        ["dbus-daemon", "--nofork", "--nopidfile", f"--config-file={configuration}", "--print-address"],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert daemon.stdout is not None
    yield daemon.stdout.readline().strip()
    daemon.terminate()
    daemon.wait()
    daemon.stdout.close()


def own(bus: str, user: str, name: str) -> tuple[subprocess.Popen[str], str]:
    uid = str(pwd.getpwnam(user).pw_uid)
    process = subprocess.Popen(
        [sys.executable, "-c", OWNER, bus, name, uid], stdout=subprocess.PIPE, text=True, cwd="/"
    )
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


def finish(process: subprocess.Popen[str]) -> None:
    process.terminate()
    process.communicate()


@pytest.fixture(scope="module")
def owned(bus: str) -> Iterator[str]:
    """The bus on which both names are owned by whom they belong to."""
    yield from _owned(bus)


def _owned(bus: str) -> Iterator[str]:
    owners = [own(bus, "caged", CORE), own(bus, "cage-apps", APPS)]
    assert [answer for _, answer in owners] == ["method_return", "method_return"]
    yield bus
    for process, _ in owners:
        finish(process)


def arrives(bus: str, user: str, destination: str, member: str) -> bool:
    called = subprocess.run(
        ["dbus-send", f"--bus={bus}", "--print-reply", f"--dest={destination}", "/", member],
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
        user=user,
        group=pwd.getpwnam(user).pw_gid,
        extra_groups=os.getgrouplist(user, pwd.getpwnam(user).pw_gid),
    )
    assert called.returncode == 0 or "org.freedesktop.DBus.Error.AccessDenied" in called.stderr, called.stderr
    return called.returncode == 0


@pytest.mark.parametrize(
    ("user", "name"),
    [(user, name) for user in ("root", "nobody", "cage-files") for name in (CORE, APPS)]
    + [("caged", APPS), ("cage-apps", CORE)],
)
def test_nobody_else_may_own_a_name(bus: str, user: str, name: str) -> None:
    process, answer = own(bus, user, name)
    finish(process)
    assert answer == "error"


DESCRIPTION = ET.parse(TOP / f"cage_runtime/resources/{CORE}.xml")
STANDARD = [f"org.freedesktop.DBus.{member}" for member in (
    "Introspectable.Introspect", "ObjectManager.GetManagedObjects", "Peer.Ping", "Properties.Get", "Properties.GetAll")]


def members(*interfaces: str) -> list[str]:
    return [f"{CORE}.{interface}.{method.attrib['name']}" for interface in interfaces
            for method in DESCRIPTION.findall(f"interface[@name='{CORE}.{interface}']/method")]


@pytest.mark.parametrize("user", ["root", "nobody", "games"])
def test_everybody_may_call_what_the_daemon_decides_again(owned: str, user: str) -> None:
    assert [member for member in members("Manager", "Job") + STANDARD if not arrives(owned, user, CORE, member)] == []


@pytest.mark.parametrize("user", ["nobody", "cage-apps", "cage-files"])
@pytest.mark.parametrize("member", [f"{CORE}.Manager.Later", f"{CORE}.Cage.Later", f"{CORE}.Job.Later",
                                    f"{CORE}.Mediation.Later", "org.example.Another.Create",
                                    "org.freedesktop.DBus.Properties.Set", "org.freedesktop.DBus.Peer.GetMachineId"])
def test_a_member_that_is_not_named_arrives_from_no_person(owned: str, user: str, member: str) -> None:
    assert not arrives(owned, user, CORE, member)


def test_root_hears_from_the_daemon_what_is_not_there(owned: str) -> None:
    assert arrives(owned, "root", CORE, f"{CORE}.Manager.Later")
    assert not arrives(owned, "root", CORE, f"{CORE}.Mediation.Decide")
    assert not arrives(owned, "root", CORE, "org.example.Another.Create")


@pytest.mark.parametrize("user", ["cage-apps", "cage-files"])
def test_programs_of_the_core_are_no_persons(owned: str, user: str) -> None:
    assert [member for member in members("Manager", "Job") + STANDARD if arrives(owned, user, CORE, member)] == []


def test_of_who_watches_no_call_arrives_but_what_tells_of_something(watching: str) -> None:
    told = {f"{CORE}.Manager.{member}" for member, right in RIGHTS.items() if right.does is Does.TELLS}
    arrived = {member for member in members("Manager", "Job", "Mediation") + STANDARD
               if arrives(watching, "lp", CORE, member)}
    assert arrived == told | set(STANDARD)
    assert not arrives(watching, "lp", APPS, f"{APPS}.M")
    assert arrives(watching, "games", CORE, f"{CORE}.Manager.Create")


def test_who_watches_hears_of_cages_and_nothing_that_mediators_do(watching: str) -> None:
    assert heard(watching, "lp", addressed=False) == ["CageAdded", "PropertiesChanged"]


def test_a_call_that_names_no_interface_arrives_from_nobody(owned: str) -> None:
    """The bus could not tell which of the members it is."""
    with open_dbus_connection(owned) as connection:
        for member in ("Create", "List", "Decide"):
            call = new_method_call(DBusAddress("/x", CORE), member)
            assert HeaderFields.interface not in call.header.fields
            reply = connection.send_and_get_reply(call)
            assert reply.header.fields[HeaderFields.error_name] == "org.freedesktop.DBus.Error.AccessDenied"


@pytest.mark.parametrize("user", ["cage-files", "root", "nobody", "cage-apps"])
def test_mediation_is_for_mediators(owned: str, user: str) -> None:
    reached = [member for member in members("Mediation") if arrives(owned, user, CORE, member)]
    assert reached == (members("Mediation") if user == "cage-files" else [])


@pytest.mark.parametrize("user", ["caged", "root", "nobody", "cage-files"])
def test_only_the_daemon_commands_the_keeper_of_applications(owned: str, user: str) -> None:
    assert arrives(owned, user, APPS, f"{APPS}.M") is (user == "caged")


# --- what it says of its own accord ------------------------------------------------------------------------------
MANAGER_SIGNALS = (f"{CORE}.Manager.CageAdded", "org.freedesktop.DBus.Properties.PropertiesChanged")
MEDIATION_SIGNALS = (f"{MEDIATION_INTERFACE}.GatewayUp", f"{MEDIATION_INTERFACE}.GatewayDown")


@pytest.mark.parametrize("addressed", [False, True])
@pytest.mark.parametrize("user", ["root", "cage-files", "nobody", "cage-apps"])
def test_what_the_daemon_says_is_heard_by_whom_it_concerns(owned: str, user: str, addressed: bool) -> None:
    everything = [signal.rpartition(".")[2] for signal in (*MANAGER_SIGNALS, *MEDIATION_SIGNALS)]
    expected = {"root": everything, "cage-files": everything[2:]}.get(user, [])
    assert heard(owned, user, addressed=addressed) == expected


def heard(bus: str, user: str, *, addressed: bool) -> list[str]:
    """Which of the daemon's signals the user hears."""
    listener = subprocess.Popen([sys.executable, "-c", LISTENER, bus, str(pwd.getpwnam(user).pw_uid)],
                                stdout=subprocess.PIPE, text=True, cwd="/")
    assert listener.stdout is not None
    name = listener.stdout.readline().strip()
    with open_dbus_connection(bus) as connection:
        for signal in (*MANAGER_SIGNALS, *MEDIATION_SIGNALS):
            speak = new_method_call(DBusAddress("/x", CORE, f"{CORE}.Manager"), "Create", "ss",
                                    (signal, name if addressed else ""))
            assert connection.send_and_get_reply(speak).header.message_type is MessageType.method_return
        connection.send(new_signal(DBusAddress("/x", interface="org.example.Test"), "Last"))
    printed, _ = listener.communicate()
    return printed.split()
