# SPDX-License-Identifier: LGPL-2.1-or-later
"""A real dbus-daemon with our policy: who may own the names, and whose calls arrive."""

from __future__ import annotations

import pwd
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import system_bus

TOP = Path(__file__).parents[2]
CORE, APPS = "org.cageruntime.Core1", "org.cageruntime.Apps1"

OWNER = """
import os, sys
from jeepney import new_method_call, new_method_return, message_bus, MessageType
from jeepney.io.blocking import open_dbus_connection
os.setgroups([]), os.setgid(int(sys.argv[3])), os.setuid(int(sys.argv[3]))
with open_dbus_connection(sys.argv[1]) as connection:
    reply = connection.send_and_get_reply(message_bus.RequestName(sys.argv[2]))
    print(reply.header.message_type.name, flush=True)
    while reply.header.message_type is MessageType.method_return:
        message = connection.receive()
        if message.header.message_type is MessageType.method_call:
            connection.send(new_method_return(message))
"""
"""Takes the user's id only once its modules are loaded: this tree may lie where that user cannot read."""


@pytest.fixture(scope="module")
def bus() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield from _bus_in(Path(folder))


def _bus_in(folder: Path) -> Iterator[str]:
    configuration = folder / "bus.conf"
    configuration.write_text(system_bus.configuration(folder / "bus"))
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
        extra_groups=[],
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


MANAGER, CAGE, JOB, MEDIATION = (f"{CORE}.{interface}.M" for interface in ("Manager", "Cage", "Job", "Mediation"))
PROPERTIES, PING = "org.freedesktop.DBus.Properties.GetAll", "org.freedesktop.DBus.Peer.Ping"


@pytest.mark.parametrize("member", [MANAGER, CAGE, JOB, PROPERTIES, PING])
def test_root_may_call_the_daemon(owned: str, member: str) -> None:
    assert arrives(owned, "root", CORE, member)


@pytest.mark.parametrize("user", ["nobody", "cage-apps", "cage-files"])
@pytest.mark.parametrize("member", [MANAGER, CAGE, JOB, PROPERTIES, PING])
def test_nobody_else_may_call_the_daemon(owned: str, user: str, member: str) -> None:
    assert not arrives(owned, user, CORE, member)


@pytest.mark.parametrize("user", ["cage-files", "root", "nobody", "cage-apps"])
def test_mediation_is_for_mediators(owned: str, user: str) -> None:
    assert arrives(owned, user, CORE, MEDIATION) is (user == "cage-files")


@pytest.mark.parametrize("user", ["caged", "root", "nobody", "cage-files"])
def test_only_the_daemon_commands_the_keeper_of_applications(owned: str, user: str) -> None:
    assert arrives(owned, user, APPS, f"{APPS}.M") is (user == "caged")
