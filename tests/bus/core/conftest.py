# SPDX-License-Identifier: LGPL-2.1-or-later
"""The real caged in a process of its own, on a private bus, with a spawner and an applications' service that are not.

As root, caged runs as somebody else, because it refuses to be root.  Whoever runs the tests is its administrator.
"""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from jeepney import DBusAddress, MatchRule, Message, MessageType, message_bus, new_error, new_method_call
from jeepney.io.blocking import DBusConnection, open_dbus_connection
from jeepney.low_level import HeaderFields, MessageFlag
from jeepney.wrappers import new_method_return

from tests.bus.core.spawner import FakeSpawner

TOP = Path(__file__).parents[3]
CORE, PATH, APPS = "org.cageruntime.Core1", "/org/cageruntime/Core1", "org.cageruntime.Apps1"
SECONDS = 20.0
NOT_ASKED_FOR = ("NameAcquired", "NameOwnerChanged", "InterfacesAdded", "InterfacesRemoved")
OPEN_BUS = """<busconfig><type>session</type><listen>unix:path={bus}</listen><auth>EXTERNAL</auth>
<policy context="default"><allow user="*"/><allow own="*"/><allow send_destination="*"/><allow receive_sender="*"/>
</policy></busconfig>"""
CAGED = """
import sys
from cage_runtime.daemon import authorization, main
authorization.ADMINISTRATOR = int(sys.argv.pop(1))
main.ENDING_SECONDS = float(sys.argv.pop(1))
sys.exit(main.main())
"""
CONFIGURATION = """[paths]
state = "{top}/state"
run = "{top}/run"
shipped = "{shipped}"
administrator = "{top}/etc"
[users]
caged = "{user}"
mediators = "{user}"
apps = "{user}"
gateways = "{group}"
watch = "lp"
"""


class Refusal(Exception):
    """An error reply: the last part of its name, and its sentence."""

    def __init__(self, name: str, sentence: str) -> None:
        super().__init__(name, sentence)
        self.name, self.sentence = name.removeprefix("org.cageruntime.Error."), sentence


class Client:
    """A connection that calls caged."""

    interactive = False
    """Whether its calls let a person be asked for a password."""

    def __init__(self, address: str) -> None:
        self._connection: DBusConnection = open_dbus_connection(address, enable_fds=True)
        self.name: str = self._connection.unique_name
        self._early: dict[int, Message] = {}
        """Answers that came while another was waited for."""

    def close(self) -> None:
        self._connection.close()

    def call(self, member: str, signature: str = "", *arguments: Any, interface: str = f"{CORE}.Manager",
             path: str = PATH) -> Any:
        """The one value of the answer, the tuple of them, or None; Refusal for an error."""
        message = self._message(member, signature, arguments, interface, path)
        return self._result(self._connection.send_and_get_reply(message, timeout=SECONDS))

    def _message(self, member: str, signature: str, arguments: tuple[Any, ...], interface: str, path: str) -> Message:
        message = new_method_call(DBusAddress(path, CORE, interface), member, signature, arguments)
        if self.interactive:
            message.header.flags = MessageFlag.allow_interactive_authorization
        return message

    def send(self, member: str, signature: str = "", *arguments: Any, interface: str = f"{CORE}.Manager",
             path: str = PATH) -> int:
        """Call and do not wait; `answer` does."""
        message = self._message(member, signature, arguments, interface, path)
        serial = next(self._connection.outgoing_serial)
        self._connection.send(message, serial=serial)
        return serial

    def tell(self, member: str, signature: str, *arguments: Any) -> None:
        """Call and want no answer: of calls that have none the bus takes any number."""
        message = self._message(member, signature, arguments, f"{CORE}.Manager", PATH)
        message.header.flags = MessageFlag.no_reply_expected
        self._connection.send(message)

    def is_heard(self) -> None:
        """Returns when the bus has all that was sent before; what comes meanwhile is lost."""
        self._connection.send_and_get_reply(message_bus.GetId(), timeout=SECONDS)

    def answer(self, serial: int) -> Any:
        while serial not in self._early:
            message = self._connection.receive(timeout=SECONDS)
            if answered := message.header.fields.get(HeaderFields.reply_serial):
                self._early[answered] = message
        return self._result(self._early.pop(serial))

    def until(self, condition: Callable[[], bool]) -> None:
        """Until what caged answers fits; each answer is another turn of its loop."""
        deadline = time.monotonic() + SECONDS
        while not condition():
            assert time.monotonic() < deadline, "it has not come about"

    def _result(self, reply: Message) -> Any:
        if reply.header.message_type is MessageType.error:
            raise Refusal(reply.header.fields[HeaderFields.error_name], reply.body[0])
        return reply.body[0] if len(reply.body) == 1 else reply.body or None

    def properties(self, path: str, interface: str) -> dict[str, Any]:
        values = self.call("GetAll", "s", interface, interface="org.freedesktop.DBus.Properties", path=path)
        return {name: value for name, (_, value) in values.items()}

    @contextlib.contextmanager
    def signals(self) -> Iterator[Callable[[], tuple[str, str, tuple[Any, ...]]]]:
        """In the block, what it gives waits for caged's next signal that is not the object manager's: (path, member,
        arguments)."""
        rule = MatchRule(type="signal", sender=CORE)
        self._connection.send_and_get_reply(message_bus.AddMatch(rule))
        with self._connection.filter(MatchRule(type="signal"), queue=deque()) as queue:

            def following() -> tuple[str, str, tuple[Any, ...]]:
                while True:
                    message = self._connection.recv_until_filtered(queue, timeout=SECONDS)
                    fields = message.header.fields
                    if fields[HeaderFields.member] not in NOT_ASKED_FOR:
                        return fields[HeaderFields.path], fields[HeaderFields.member], message.body

            yield following
        self._connection.send_and_get_reply(message_bus.RemoveMatch(rule))


class Core:
    """One bus, one spawner and, between `start` and `stop`, one caged."""

    def __init__(self, top: Path, mediator: str = "files") -> None:
        """`mediator` is the one that there is."""
        self.top, self._mediator = top, mediator
        # caged reads the project's files wherever they are; it writes nowhere but below `top`.
        as_root = os.geteuid() == 0
        self.user = pwd.getpwnam("nobody") if as_root else pwd.getpwuid(os.geteuid())
        read = ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
        self._as_user = ["setpriv", f"--reuid={self.user.pw_uid}", f"--regid={self.user.pw_gid}", "--clear-groups",
                         *read, "--"] if as_root else []
        self._make_directories()
        self.address = f"unix:path={top}/bus"
        self.log = top / "log"
        self._bus = self._start_bus()
        self.spawner = FakeSpawner(top / "run")
        self.spawner.start()
        self._caged: subprocess.Popen[bytes] | None = None

    def _make_directories(self) -> None:
        """As the spawner does, before caged is there."""
        self.top.chmod(0o755)
        for name in ("run/caged", "run/gateways", "state/cages", "state/audit", "state/exports"):
            directory = self.top / name
            directory.mkdir(mode=0o700, parents=True)
            os.chown(directory, self.user.pw_uid, self.user.pw_gid)
            directory.parent.chmod(0o755)
        group = grp.getgrgid(self.user.pw_gid).gr_name
        text = CONFIGURATION.format(top=self.top, shipped=TOP / "policies", user=self.user.pw_name, group=group)
        (self.top / "caged.conf").write_text(text)
        # One user plays the mediators' part, and so there can be one.
        masks = self.top / "etc/mediators.d"
        masks.mkdir(parents=True)
        for manifest in (TOP / "policies/mediators.d").glob("*.toml"):
            if manifest.stem != self._mediator:
                (masks / manifest.name).symlink_to(os.devnull)

    def _start_bus(self) -> subprocess.Popen[bytes]:
        file = self.top / "bus.conf"
        file.write_text(OPEN_BUS.format(bus=self.top / "bus"))
        command = ["dbus-daemon", f"--config-file={file}", "--nofork", "--nopidfile", "--print-address"]
        bus = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        assert bus.stdout is not None
        assert bus.stdout.readline().startswith(b"unix:path=")
        return bus

    def write_policy(self, text: str) -> None:
        """It is in force after the next start or reload."""
        directory = self.top / "etc/policy.d"
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "30-test.policy").write_text(text)

    def popen(self, administrator: int | None = None, ending: float = 15.0, **options: Any) -> subprocess.Popen[bytes]:
        """A caged, which has `ending` seconds for the calls in hand when it is told to end."""
        uid = os.geteuid() if administrator is None else administrator
        command = [*self._as_user, sys.executable, "-c", CAGED, str(uid), str(ending),
                   "--config", str(self.top / "caged.conf")]
        environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", "PYTHONPATH": str(TOP),
                       "DBUS_SYSTEM_BUS_ADDRESS": self.address, "PYTHONDONTWRITEBYTECODE": "1"}
        return subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, **options)

    def start(self, administrator: int | None = None, ending: float = 15.0) -> None:
        """Start caged and wait until it answers to its name."""
        with contextlib.closing(open_dbus_connection(self.address)) as connection, self.log.open("ab") as log:
            rule = MatchRule(type="signal", interface="org.freedesktop.DBus", member="NameOwnerChanged")
            rule.add_arg_condition(0, CORE)
            connection.send_and_get_reply(message_bus.AddMatch(rule))
            with connection.filter(rule) as queue:
                self._caged = self.popen(administrator, ending, stderr=log)
                connection.recv_until_filtered(queue, timeout=SECONDS)

    def tell(self) -> None:
        """Tell caged to end; returns when it has given up its name."""
        assert self._caged is not None
        with contextlib.closing(open_dbus_connection(self.address)) as connection:
            rule = MatchRule(type="signal", interface="org.freedesktop.DBus", member="NameOwnerChanged")
            rule.add_arg_condition(0, CORE)
            connection.send_and_get_reply(message_bus.AddMatch(rule))
            with connection.filter(rule) as queue:
                self._caged.terminate()
                connection.recv_until_filtered(queue, timeout=SECONDS)

    def stop(self, *, kill: bool = False) -> int:
        """End caged, politely unless `kill`; its status."""
        if self._caged is None:
            return 0
        (self._caged.kill if kill else self._caged.terminate)()
        return self.ended()

    def ended(self) -> int:
        """The status of a caged that has been told to end."""
        assert self._caged is not None
        status = self._caged.wait(SECONDS)
        self._caged = None
        return status

    def close(self) -> None:
        self.stop()
        self.spawner.close()
        self._bus.terminate()
        self._bus.communicate()

    @property
    def pid(self) -> int:
        assert self._caged is not None
        return self._caged.pid

    def is_mediator(self, uid: int) -> bool:
        return uid == self.user.pw_uid

    def client(self) -> Client:
        return Client(self.address)

    def client_of(self, person: str) -> Client:
        """A connection of somebody else's, which the kernel vouches for; for tests as root."""
        os.seteuid(pwd.getpwnam(person).pw_uid)
        try:
            return Client(self.address)
        finally:
            os.seteuid(0)


@contextlib.contextmanager
def running(mediator: str = "files") -> Iterator[Core]:
    """caged with nothing in it, and with that mediator."""
    top = Path(tempfile.mkdtemp(prefix="core-"))
    core = Core(top, mediator)
    try:
        core.start()
        yield core
    finally:
        core.close()
        print(core.log.read_text(errors="replace"))  # noqa: T201 - which pytest shows of what fails
        shutil.rmtree(top)


@pytest.fixture
def core() -> Iterator[Core]:
    with running() as core:
        yield core


@pytest.fixture
def client(core: Core) -> Iterator[Client]:
    client = core.client()
    yield client
    client.close()


INSTALLED = {"application": "org.example.App", "branch": "stable", "commit": "c" * 64, "runtime": "r", "remote": "x"}
ANSWERS: dict[str, tuple[str, tuple[Any, ...]]] = {
    "AddRemote": ("s", ("F" * 40,)), "ListRemotes": ("a(sss)", ([("life", "https://localhost/", "F" * 40)],)),
    "Install": ("a{ss}", (INSTALLED,)), "Update": ("a{ss}", (INSTALLED,)), "List": ("aa{ss}", ([INSTALLED],)),
    "Trees": ("as", (["app/org.example.App"],)),
    "MenuEntry": ("a{ss}", ({"Name": "App", "Name[de]": "Programm", "Comment": "It does", "Terminal": "true"},)),
}


class FakeApps:
    """org.cageruntime.Apps1, which answers Install unless it is `patient`, and remembers what it was asked."""

    def __init__(self, address: str) -> None:
        self._connection: DBusConnection = open_dbus_connection(address)
        self._connection.send_and_get_reply(message_bus.RequestName(APPS))
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self.fault: tuple[str, str] | None = None
        self.waiting: list[Message] = []
        self.patient = False
        self.missing = False
        self.asked = threading.Event()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def close(self) -> None:
        client = open_dbus_connection(self._address())
        client.send(new_method_call(DBusAddress(PATH, APPS, APPS), "Enough"))
        self._thread.join()
        client.close()
        self._connection.close()

    def finish(self) -> None:
        """Have installed what it was patient about."""
        while self.waiting:
            self._connection.send(new_method_return(self.waiting.pop(), *ANSWERS["Install"]))

    def _address(self) -> str:
        return f"unix:path={self._connection.sock.getpeername()}"

    def _serve(self) -> None:
        while True:
            message = self._connection.receive()
            fields = message.header.fields
            if message.header.message_type is not MessageType.method_call:
                continue
            member = fields[HeaderFields.member]
            if member == "Enough":
                return
            self.calls.append((member, message.body))
            self._answer(message, member)
            self.asked.set()

    def _answer(self, message: Message, member: str) -> None:
        if member == "Install" and self.patient:
            self.waiting.append(message)
        elif member == "Install" and self.fault:
            name, sentence = self.fault
            self._connection.send(new_error(message, name, "s", (sentence,)))
        elif member == "Trees" and self.missing:
            error = new_error(message, "org.cageruntime.Error.NoSuchApplication", "s", ("not installed",))
            self._connection.send(error)
        elif member in ANSWERS:
            self._connection.send(new_method_return(message, *ANSWERS[member]))
        else:
            for waiting in self.waiting:
                error = new_error(waiting, "org.cageruntime.Error.Failed", "s", ("cancelled before it was done",))
                self._connection.send(error)
            self._connection.send(new_method_return(message))


@pytest.fixture
def apps(core: Core) -> Iterator[FakeApps]:
    apps = FakeApps(core.address)
    yield apps
    apps.close()
