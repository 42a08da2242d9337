# SPDX-License-Identifier: LGPL-2.1-or-later
"""A cage's own bus and its gateway with the uids that they have in life, which takes root to play.

Each probe is a process of its own uid (and, for a cage's end of the gateway, in a user namespace of its own) that
connects, makes one call and prints what came of it.
"""

from __future__ import annotations

import json
import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from cage_runtime import generate, manifest
from cage_runtime.config import Paths, Users

TOP = Path(__file__).parents[2]
MEDIATORS = manifest.load(Paths(shipped=str(TOP / "policies"), administrator="/nonexistent"))
BASE = 0x7123_0000
"""First uid of a range that no cage of this host has while the tests run."""
FILES = "org.cageruntime.Files1"

PROBE = """
import asyncio, ctypes, json, os, sys
sys.path.insert(0, sys.argv[1])
from cage_runtime.bus import Bus, DBUS
from cage_runtime.errors import CageError
todo = json.loads(sys.argv[2])
if "base" in todo:
    ready, go = os.pipe(), os.pipe()
    child = os.fork()
    if child:
        os.read(ready[0], 1)
        for kind in ("uid_map", "gid_map"):
            with open(f"/proc/{child}/{kind}", "w") as file:
                file.write(f"0 {todo['base']} 65536")
        os.write(go[1], b"x")
        sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    if ctypes.CDLL(None, use_errno=True).unshare(0x10000000):
        sys.exit("no user namespace")
    os.write(ready[1], b"x"), os.read(go[0], 1)
if "base" in todo:
    os.setresuid(0, 0, 0)  # only from this namespace's root on does a change of uid drop its capabilities
os.setgroups([]), os.setresgid(*[todo["gid"]] * 3), os.setresuid(*[todo["uid"]] * 3)
async def probe():
    try:
        bus = await Bus.connect(todo["address"], anonymous=todo.get("anonymous", False))
        for name in todo.get("own", []):
            await bus.own(name)
        where = DBUS if todo["member"] != "Send" else (todo["to"], "/org/cageruntime/Files1", "org.cageruntime.Files1")
        where = (where[0], where[1], todo.get("interface", where[2]))
        descriptors = [os.open("/dev/null", os.O_RDONLY) for _ in range(todo.get("descriptors", 0))]
        answer = await bus.call(*where, todo["member"], todo["signature"], tuple(todo["arguments"]), tuple(descriptors),
                                seconds=20)
        return "answered"
    except CageError as error:
        return error.sentence
print(asyncio.run(probe()), flush=True)
"""
HOLD = """
import asyncio, os, sys
sys.path.insert(0, sys.argv[1])
from cage_runtime.bus import Answer, Bus, Service, described
os.setgroups([]), os.setresgid(*[int(sys.argv[4])] * 3), os.setresuid(*[int(sys.argv[3])] * 3)
async def send(call):
    return Answer(values=("here",))
async def hold():
    bus = await Bus.connect(sys.argv[2])
    interface = described("interface.xml", "org.cageruntime.Files1", of="mediators.files")
    bus.serve("/org/cageruntime/Files1", Service(interface=interface, handlers={"Send": send}))
    await bus.own("org.cageruntime.Files1")
    print("owned", flush=True)
    await bus.closed()
asyncio.run(hold())
"""
DAEMON = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid()))
options = ["--nofork", "--nopidfile", "--address=systemd:", "--config-file=" + sys.argv[2]]
os.setgroups([]), os.setresgid(*[int(sys.argv[4])] * 3), os.setresuid(*[int(sys.argv[3])] * 3)
os.execvp("dbus-daemon", ["dbus-daemon", *options])
"""
IN_A_CAGES_ETC = 'mount --bind "$0" /etc/passwd && exec "$@"'
"""The cage's passwd over the host's, in a mount namespace of its own."""
PASSWD = "root:x:0:0::/root:/bin/sh\nmediator:x:990:990::/:/bin/false\nuser:x:1000:1000::/home/user:/bin/sh\n"


@pytest.fixture
def folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp())
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


class Place:
    """A bus, whoever holds the mediator's name on it, and the probes."""

    def __init__(self, folder: Path, prefix: list[str]) -> None:
        self.folder, self.prefix = folder, prefix
        self.socket = folder / "bus"
        self.running: list[subprocess.Popen[str]] = []

    def start(self, configuration: str, *, uid: int, gid: int, owner: tuple[int, int], mode: int) -> None:
        file = self.folder / "bus.conf"
        file.write_text(configuration)
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(self.socket))
            listening.listen()
            os.chown(self.socket, *owner)
            self.socket.chmod(mode)
            command = [sys.executable, "-c", DAEMON, str(listening.fileno()), str(file), str(uid), str(gid)]
            self.running.append(subprocess.Popen([*self.prefix, *command], pass_fds=(listening.fileno(),), text=True))

    def behind(self, owner: int) -> None:
        """From now on the socket is where only `owner` gets, as the spawner binds a gateway into a cage."""
        gate = self.folder / "gate"
        gate.mkdir(mode=0o700)
        os.chown(gate, owner, owner)
        self.socket = self.socket.rename(gate / "bus")

    def hold(self, uid: int, gid: int) -> None:
        command = [sys.executable, "-c", HOLD, str(TOP), f"unix:path={self.socket}", str(uid), str(gid)]
        holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.running.append(holder)
        assert holder.stdout is not None
        assert holder.stdout.readline() == "owned\n"

    def probe(self, **todo: object) -> str:
        todo = {"address": f"unix:path={self.socket}", "gid": todo["uid"], "to": FILES} | todo
        command = [sys.executable, "-c", PROBE, str(TOP), json.dumps(todo)]
        ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        assert ended.returncode == 0, ended.stderr
        return ended.stdout.strip()

    def stop(self) -> None:
        for process in reversed(self.running):
            process.terminate()
            process.communicate()


SEND = {"member": "Send", "signature": "ssha{sv}", "arguments": ["vault", "x", 0, {}], "descriptors": 1}
HAS_OWNER = {"member": "NameHasOwner", "signature": "s", "arguments": [FILES]}
REQUEST = {"member": "RequestName", "signature": "su", "arguments": [FILES, 7]}
MONITOR = {"interface": "org.freedesktop.DBus.Monitoring", "member": "BecomeMonitor", "signature": "asu",
           "arguments": [[], 0]}
MOST = max(mediator.descriptors for mediator in MEDIATORS)
TOO_MANY = {"member": "Send", "signature": "h" * (MOST + 1), "arguments": list(range(MOST + 1)),
            "descriptors": MOST + 1}


# --- a cage's own bus --------------------------------------------------------------------------------------------
@pytest.fixture
def cage_bus(folder: Path) -> Iterator[Place]:
    passwd = folder / "passwd"
    passwd.write_text(PASSWD)
    place = Place(folder, ["unshare", "--mount", "sh", "-c", IN_A_CAGES_ETC, str(passwd)])
    text = generate.cage_bus((TOP / "policies/cage-bus/bus.conf.in").read_text(), MEDIATORS)
    place.start(text, uid=990, gid=990, owner=(990, 990), mode=0o666)
    place.hold(990, 990)
    yield place
    place.stop()


@pytest.mark.parametrize("uid", [0, 1000])
def test_the_session_and_the_cages_root_may_send_and_nothing_more(cage_bus: Place, uid: int) -> None:
    assert cage_bus.probe(uid=uid, **SEND) == "answered"
    assert cage_bus.probe(uid=uid, **HAS_OWNER) == "answered"
    assert "Rejected send message" in cage_bus.probe(uid=uid, **REQUEST)
    assert "Rejected send message" in cage_bus.probe(uid=uid, **MONITOR)
    assert "the bus went away" in cage_bus.probe(uid=uid, **TOO_MANY)


def test_the_mediator_owns_its_name_and_no_other(cage_bus: Place) -> None:
    assert cage_bus.probe(uid=990, **HAS_OWNER, own=[]) == "answered"
    assert "is owned by another process" in cage_bus.probe(uid=990, **HAS_OWNER, own=[FILES])
    assert "not allowed to own" in cage_bus.probe(uid=990, **HAS_OWNER, own=["org.example.X"])
    assert "Rejected send message" in cage_bus.probe(uid=990, **MONITOR)


def test_no_other_uid_connects_to_a_cages_bus(cage_bus: Place) -> None:
    for uid in (1, 1001, 65534):
        assert "no bus answers" in cage_bus.probe(uid=uid, **HAS_OWNER)


# --- a cage's gateway --------------------------------------------------------------------------------------------
@pytest.fixture
def gateway(folder: Path) -> Iterator[Place]:
    caged, files = pwd.getpwnam("caged"), pwd.getpwnam("cage-files")
    place = Place(folder, [])
    text = generate.gateway_bus((TOP / "policies/gateway/bus.conf.in").read_text(), MEDIATORS, Users().mediator)
    place.start(text, uid=caged.pw_uid, gid=caged.pw_gid, owner=(caged.pw_uid, caged.pw_gid), mode=0o666)
    place.hold(files.pw_uid, files.pw_gid)
    place.behind(BASE + 990)
    yield place
    place.stop()


def test_the_cages_mediator_may_send_and_nothing_more(gateway: Place) -> None:
    mediator = {"base": BASE, "uid": 990, "anonymous": True}
    assert gateway.probe(**mediator, **SEND) == "answered"
    assert gateway.probe(**mediator, **HAS_OWNER) == "answered"
    assert "Rejected send message" in gateway.probe(**mediator, **REQUEST)
    assert "Rejected send message" in gateway.probe(**mediator, **MONITOR)
    assert "the bus went away" in gateway.probe(**mediator, **TOO_MANY)


def test_the_session_does_not_reach_the_gateway(gateway: Place) -> None:
    for anonymous in (True, False):
        assert "Permission denied" in gateway.probe(base=BASE, uid=1000, anonymous=anonymous, **SEND)


def test_another_cage_does_not_reach_the_gateway(gateway: Place) -> None:
    for uid in (0, 990, 1000):
        assert "Permission denied" in gateway.probe(base=BASE + 65536, uid=uid, anonymous=True, **SEND)


def test_a_uid_of_the_host_is_refused_even_where_the_socket_is_open(gateway: Place) -> None:
    gateway.socket.parent.chmod(0o755)
    for user in ("root", "caged", "nobody"):
        assert "no bus answers" in gateway.probe(uid=pwd.getpwnam(user).pw_uid, **HAS_OWNER)


def test_a_core_half_has_its_own_name_and_calls_nobody(gateway: Place) -> None:
    """A mediator that a cage has taken over is not another one, and not a cage to another one."""
    gateway.socket.parent.chmod(0o755)
    for mediator in MEDIATORS:
        user = pwd.getpwnam(Users().mediator(mediator.name)).pw_uid
        assert gateway.probe(uid=user, **HAS_OWNER) == "answered"
        own = gateway.probe(uid=user, **HAS_OWNER, own=[mediator.bus_name])
        assert own == "answered" if mediator.name != "files" else "is owned by another process" in own
        for other in MEDIATORS:
            if other is not mediator:
                assert "not allowed to own" in gateway.probe(uid=user, **HAS_OWNER, own=[other.bus_name])
        assert "Rejected send message" in gateway.probe(uid=user, **SEND)
        assert "Rejected send message" in gateway.probe(uid=user, **MONITOR)
