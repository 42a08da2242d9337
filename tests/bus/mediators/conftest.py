# SPDX-License-Identifier: LGPL-2.1-or-later
"""Real buses, with the configuration that is shipped, and a stand-in for caged that starts real delivery halves."""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import json
import os
import signal
import socket
import subprocess
import sys
from array import array
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from cage_runtime import generate, manifest
from cage_runtime.bus import Answer, Bus, Call, Handler, Service, Variant, described
from cage_runtime.config import Paths
from cage_runtime.errors import PolicyRefused, RuntimeFailure, WrongState
from cage_runtime.model import CORE_BUS_NAME, CORE_PATH, Flow
from mediators import wire
from mediators.files import protocol
from mediators.files.core import serve_until_bus_ends
from mediators.reading import Copy, copy
from mediators.sniff import sniffer
from mediators.stage import Stager

TOP = Path(__file__).parents[3]
MEDIATORS = manifest.load(Paths(shipped=str(TOP / "policies"), administrator="/nonexistent"))
CONTENT = b"quarterly figures\n"
WORK, VAULT = "11111111-work", "22222222-vault"
OPEN_BUS = """<busconfig><listen>systemd:</listen><auth>EXTERNAL</auth><policy context="default">
<allow user="*"/><allow own="*"/><allow send_destination="*" eavesdrop="true"/><allow receive_sender="*"/>
</policy></busconfig>"""
ACTIVATED = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid()))
options = ["--nofork", "--nopidfile", "--address=systemd:", "--config-file=" + sys.argv[2]]
os.execvp("dbus-daemon", ["dbus-daemon", *options])
"""
AS_INIT = """
import os, sys
from mediators import main
from mediators.files import deliver
deliver.INIT_UID = os.getuid()
sys.exit(main.main())
"""
"""The mediators' program, which takes us for cage-init."""
HALF = [sys.executable, "-c", AS_INIT, "files"]


class Daemon:
    """One dbus-daemon on a socket that was handed to it, as caged and cage-init start theirs."""

    def __init__(self, folder: Path, name: str, configuration: str) -> None:
        self.path = f"{folder}/{name}"
        self.address = f"unix:path={self.path}"
        file = folder / f"{name}.conf"
        file.write_text(configuration)
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(f"{folder}/{name}")
            listening.listen()
            command = [sys.executable, "-c", ACTIVATED, str(listening.fileno()), str(file)]
            self.process = subprocess.Popen(command, pass_fds=(listening.fileno(),))

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait()


StartBus = Callable[[str, str], Daemon]


@pytest.fixture
def start_bus(tmp_path: Path) -> Iterator[StartBus]:
    daemons: list[Daemon] = []

    def start(name: str, configuration: str = OPEN_BUS) -> Daemon:
        daemons.append(Daemon(tmp_path, name, configuration))
        return daemons[-1]

    yield start
    for daemon in daemons:
        daemon.stop()


@pytest.fixture
def start_gateway(start_bus: StartBus) -> Callable[[str], Daemon]:
    template = (TOP / "policies/gateway/bus.conf.in").read_text()
    text = generate.gateway_bus(template, MEDIATORS, lambda _name: getpass.getuser())
    return lambda name: start_bus(f"gateway-{name}", text)


@pytest.fixture
def system_bus(start_bus: StartBus, monkeypatch: pytest.MonkeyPatch) -> Daemon:
    daemon = start_bus("system", OPEN_BUS)
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", daemon.address)
    return daemon


class StandInCaged:
    """Answers Mediation: `allowed` maps (source uuid, target name) to the target's uuid; cages have homes."""

    def __init__(self, bus: Bus, homes: Path) -> None:
        self.bus, self.homes = bus, homes
        self.gateways: list[tuple[str, str, str]] = []
        self.names: dict[str, str] = {}
        self.allowed: dict[tuple[str, str], str] = {}
        self.max_size = 0
        self.flow = Flow.LEVEL
        self.led_to = ""
        """The name of the target after redirects, where that is another than the one asked for."""
        self.full = False
        self.asked: list[list[str]] = []
        self.records: asyncio.Queue[list[object]] = asyncio.Queue()
        self.malformed: asyncio.Queue[list[str]] = asyncio.Queue()
        self.starting: asyncio.Event | None = None
        """Where it is there, a delivery half starts once it is set."""
        self.delivering = 0
        self.stops = False
        """Whether the targets stop their delivery halves as they start."""
        self.ended: list[int] = []
        """The statuses of the delivery halves that have ended."""
        self.recording: asyncio.Event | None = None
        """Where it is there, what is to be in the chain is there once it is set."""
        self.pending: list[list[Any]] = []
        """What waited for that."""
        self.keeps: list[int] | None = None
        """Where it is there, the targets keep what they are given to read, in here."""
        self.killed_at: list[str] = []
        """Members at which it is killed once they are done and before they are answered, in this order."""
        self.before_confirmed: Callable[[], None] = lambda: None
        self.one_way, self.max_files, self.log = False, 0, ""
        self.require = ""
        self.signs = True
        """Whether it gives receipts."""
        self.told: list[dict[str, Any]] = []
        """What each request turned out to be."""
        self.withdrawn: list[str] = []
        self.notifications: list[tuple[str, int, dict[str, Any]]] = []
        """What was to be shown: the source, the id, the notification."""
        self.unshown: list[tuple[str, int]] = []
        self.down: set[str] = set()
        """The uuids of cages that do not run."""
        self.asks = False
        """Whether a person is to be asked at first sight, and has said yes by the second."""
        self.types: list[str] = []
        self.latest = ""
        """The connection of the core half that asked for the gateways last."""
        self.mediator: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    @classmethod
    async def start(cls, homes: Path) -> StandInCaged:
        caged = cls(await Bus.connect(), homes)
        caged._serve()
        return caged

    def _serve(self) -> None:
        handlers = {"Gateways": self._gateways, "Decide": self._decide, "Confirm": self._confirm,
                    "Withdraw": self._withdraw, "Show": self._show, "Unshow": self._unshow,
                    "Deliver": self._deliver, "Record": self._record, "Receipt": self._receipt,
                    "RecordMalformed": self._record_malformed}
        interface = described("org.cageruntime.Core1.xml", wire.MEDIATION)
        mortal = {member: self._mortal(member, handler) for member, handler in handlers.items()}
        self.bus.serve(CORE_PATH, Service(interface=interface, handlers=mortal))

    def _mortal(self, member: str, handler: Handler) -> Handler:
        """`handler`, whose answer nobody hears where it is killed at: then another caged comes."""

        async def handled(call: Call) -> Answer:
            answer = await handler(call)
            if self.killed_at and self.killed_at[0] == member:
                del self.killed_at[0]
                self.bus.disconnect()
                self.bus = await Bus.connect()
                self._serve()
                await self.appear()
            return answer

        return handled

    async def appear(self) -> None:
        await self.bus.own(CORE_BUS_NAME)

    def add(self, name: str, uuid: str, address: str) -> None:
        self.gateways.append((name, uuid, address))
        self.names[uuid] = name
        (self.homes / name).mkdir(parents=True, exist_ok=True)

    def up(self, name: str, uuid: str, address: str) -> None:
        self.bus.emit(CORE_PATH, wire.MEDIATION, "GatewayUp", "sss", (name, uuid, address), to=self.mediator.result())

    def runs(self, uuid: str) -> None:
        """The cage begins to run."""
        self.down.discard(uuid)
        self.bus.emit(CORE_PATH, wire.MEDIATION, "CageChanged", "sb", (uuid, True), to=self.latest)

    async def _gateways(self, call: Call) -> Answer:
        self.latest = call.sender
        if not self.mediator.done():
            self.mediator.set_result(call.sender)
        return Answer(values=(self.gateways,))

    async def _decide(self, call: Call) -> Answer:
        source, _service, _argument, target, _request, _asker = call.arguments
        self.asked.append(call.arguments[:5])
        if source in self.down:
            raise WrongState("the cage that asks does not run any more")
        return self._permission(source, target, "", "ask" if self.asks else "allow")

    async def _confirm(self, call: Call) -> Answer:
        source, service, argument, target, request, what = call.arguments
        told = {key: variant.value for key, variant in what.items()}
        self.asked.append([source, service, argument, target, request])
        self.told.append(told)
        self.before_confirmed()
        permission = self._permission(source, target, f"{source}:{self.allowed.get((source, target), '')}")
        if told["target-uuid"] != self.allowed[source, target]:
            raise PolicyRefused(f'"{target}" is not the cage that it was')
        if 0 < self.max_size < told["size"]:
            raise PolicyRefused("it is larger than the policy lets through by now")
        return permission

    async def _show(self, call: Call) -> Answer:
        """Ids of its own, or the one that is replaced; as caged, whether or not anybody sees it."""
        ticket, about = call.arguments
        source = ticket.partition(":")[0]
        told = {key: variant.value for key, variant in about.items()}
        number = told.get("replaces") or 1000 + len(self.notifications)
        self.notifications.append((source, number, told))
        return Answer(values=(number,))

    async def _unshow(self, call: Call) -> Answer:
        self.unshown.append(tuple(call.arguments))
        return Answer()

    def act(self, number: int, action: str) -> None:
        self.bus.emit(CORE_PATH, wire.MEDIATION, "Acted", "us", (number, action), to=self.mediator.result())

    async def _withdraw(self, call: Call) -> Answer:
        self.withdrawn.append(call.arguments[0])
        return Answer()

    def _permission(self, source: str, target: str, ticket: str, action: str = "allow") -> Answer:
        """Where it is confirmed its ticket says, in the open, between which instances it is."""
        if (source, target) not in self.allowed:
            raise PolicyRefused("no rule allows files.Send to that cage")
        words = {"action": action, "target": self.led_to or target, "target-uuid": self.allowed[source, target],
                 "source-name": self.names[source], "flow": self.flow.value, "transform": "", "require": self.require,
                 "user": "", "log": self.log, "ticket": ticket}
        return Answer(values=({
            **{key: Variant("s", value) for key, value in words.items()},
            **{key: Variant("b", False) for key in ("two-way", "notify", "autostart")},
            "one-way": Variant("b", self.one_way),
            "max-size": Variant("t", self.max_size), "max-files": Variant("u", self.max_files),
            "types": Variant("as", self.types), "choices": Variant("as", []),
        },))

    async def _deliver(self, call: Call) -> Answer:
        ticket, arguments, (index,) = call.arguments
        target = ticket.partition(":")[2]
        if target in self.down:
            raise WrongState("the target does not run; start it, and send again")
        self.delivering += 1
        if self.keeps is not None:
            self.keeps.append(os.dup(call.descriptors[index]))
        if self.starting is not None:
            await self.starting.wait()
        near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        out, err = os.pipe(), os.pipe()
        home = str(self.homes / self.names[target])
        process = subprocess.Popen([*HALF, "--deliver", *arguments], stdin=call.descriptors[index], stdout=out[1],
                                   stderr=err[1], env={"HOME": home}, cwd=TOP)
        if self.stops:
            process.send_signal(signal.SIGSTOP)
        far.sendmsg([b'{"event": "started"}'], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", (out[0], err[0])))])
        for descriptor in (*out, *err):
            os.close(descriptor)
        loop, pidfd = asyncio.get_running_loop(), os.pidfd_open(process.pid)
        loop.add_reader(pidfd, self._exit, process, pidfd, far)
        loop.add_reader(far, self._pass_on, process, far)
        return Answer(values=(0,), descriptors=(near.detach(),))

    def _pass_on(self, process: subprocess.Popen[bytes], far: socket.socket) -> None:
        """As cage-init: the signals of whoever has the other end, and SIGHUP when nobody has it."""
        try:
            message = far.recv(4096)
        except ConnectionResetError:  # whoever had it has not even read that it had started
            message = b""
        process.send_signal(json.loads(message)["signal"] if message else signal.SIGHUP)
        if not message:
            asyncio.get_running_loop().remove_reader(far)

    def _exit(self, process: subprocess.Popen[bytes], pidfd: int, far: socket.socket) -> None:
        asyncio.get_running_loop().remove_reader(far)
        asyncio.get_running_loop().remove_reader(pidfd)
        os.close(pidfd)
        with far, contextlib.suppress(BrokenPipeError):
            self.ended.append(process.wait())
            far.send(json.dumps({"event": "exit", "status": self.ended[-1] & 255}).encode())

    async def _record(self, call: Call) -> Answer:
        if self.full:
            raise RuntimeFailure("the chain takes nothing")
        if self.recording is not None:
            self.pending.append(call.arguments)
            await self.recording.wait()
        self.records.put_nowait(call.arguments)
        return Answer()

    async def _receipt(self, call: Call) -> Answer:
        """As Record; what caged would sign is the outcome and the request."""
        *arguments, outcome = call.arguments
        self.records.put_nowait(arguments)
        if self.full:
            raise RuntimeFailure("the chain takes nothing")
        return Answer(values=(f"{outcome} {arguments[4]['request']}" if self.signs else "",))

    async def _record_malformed(self, call: Call) -> Answer:
        self.malformed.put_nowait(call.arguments)
        return Answer()


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something that another task of this loop brings about."""
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0)


async def client(address: str) -> Bus:
    """A cage's end of its gateway, as its mediator connects."""
    return await Bus.connect(address, anonymous=True)


async def present(bus: Bus, name: str) -> None:
    presence = wire.Presence(bus, name)
    await presence.follow()
    if not await presence.wait(20):
        raise RuntimeFailure(f"nobody came to own {name}")


class World:
    """A stand-in caged, a core half, and a connection of each cage to its gateway."""

    def __init__(self, caged: StandInCaged, homes: Path, staging: Path) -> None:
        self.until = until
        self.caged, self.homes, self.staging = caged, homes, staging
        self.clients: dict[str, Bus] = {}
        self.gateways: dict[str, Any] = {}

    async def send(self, cage: str, target: str, name: str = "figures.txt", descriptor: int | None = None) -> str:
        opened = os.open(self.homes / "source", os.O_RDONLY) if descriptor is None else descriptor
        try:
            answer = await self.clients[cage].call(
                protocol.BUS_NAME, protocol.PATH, protocol.INTERFACE, protocol.SEND, protocol.SEND_SIGNATURE,
                (target, name, 0, {}), (opened,), seconds=20,
            )
        finally:
            os.close(opened)
        return str(answer.values[0])

    async def recorded(self) -> dict[str, str]:
        async with asyncio.timeout(20):
            source, name, target, service, details = await self.caged.records.get()
        assert (source, name, target, service) == (WORK, "work", VAULT, "files.Send")
        return dict(details)

    def arrived(self) -> list[str]:
        return sorted(str(path.relative_to(self.homes)) for path in self.homes.glob("*/Inbox/*/*"))


Play = Callable[..., None]


@pytest.fixture
def play(tmp_path: Path, start_gateway: Callable[[str], Daemon]) -> Play:
    """Runs a test's coroutine in a world with the cages work and vault, where work may send to vault."""

    @contextlib.asynccontextmanager
    async def world(copier: Copy) -> AsyncIterator[World]:
        homes = tmp_path / "homes"
        homes.mkdir()
        (homes / "source").write_bytes(CONTENT)
        caged = await StandInCaged.start(homes)
        here = World(caged, homes, tmp_path / "staging")
        for name, uuid in (("work", WORK), ("vault", VAULT)):
            here.gateways[name] = start_gateway(name)
            address = here.gateways[name].address
            caged.add(name, uuid, address)
            here.clients[name] = await client(address)
        caged.allowed[WORK, "vault"] = VAULT
        await caged.appear()
        stager = Stager(here.staging, copier=copier, sniffer=sniffer(), nameable=True)
        serving = asyncio.ensure_future(serve_until_bus_ends(stager))
        try:
            for connection in here.clients.values():
                await present(connection, protocol.BUS_NAME)
            yield here
        finally:
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)
            for bus in (caged.bus, *here.clients.values()):
                bus.disconnect()

    def run(test: Callable[[World], Coroutine[Any, Any, None]], *, copier: Copy = copy) -> None:
        async def whole() -> None:
            async with world(copier) as here:
                await test(here)

        asyncio.run(whole())

    return run


def plays(world: Callable[[], contextlib.AbstractAsyncContextManager[Any]]) -> Callable[[Callable[[Any], Any]], None]:
    """What runs a test's coroutine, each in a world of its own."""

    def run(test: Callable[[Any], Any]) -> None:
        async def whole() -> None:
            async with world() as here:
                await test(here)

        asyncio.run(whole())

    return run


@pytest.fixture
def kit() -> type:
    """The helpers above, for tests that import nothing from one another."""

    class Kit:
        caged = StandInCaged
        mediators = MEDIATORS
        client = staticmethod(client)
        plays = staticmethod(plays)
        present = staticmethod(present)
        until = staticmethod(until)

    return Kit
