# SPDX-License-Identifier: LGPL-2.1-or-later
"""All that the spawner does for a cage, without one of its capabilities: its service without its socket, run by
test_powers.py.

Run as root by the installed runtime's interpreter: powers.py RUNTIME CONFIG [CAPABILITY | init:CAPABILITY].  It is
confined as the spawner is, gives the named capability up for good, or has its cage-init do without, and does one thing
after the other until one fails; it prints one JSON object: which that was, what was said, and what it holds.
"""

from __future__ import annotations

import json
import logging
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

RUNTIME, CONFIG, *NAMES = sys.argv[1:]
sys.path[:0] = [f"{RUNTIME}/lib", "/usr/lib/python3/dist-packages"]

from cage_runtime import folders, manifest  # noqa: E402
from cage_runtime.config import RuntimeConfig, load_runtime  # noqa: E402
from cage_runtime.daemon.gateway import write_configuration  # noqa: E402
from cage_runtime.errors import CageError, RuntimeFailure  # noqa: E402
from cage_runtime.spawner import capability, cgroup, main, wire  # noqa: E402
from cage_runtime.spawner.loop import Loop  # noqa: E402
from cage_runtime.spawner.service import Service  # noqa: E402
from cage_runtime.spawner.spec import (  # noqa: E402
    AnyRequest,
    Birth,
    Conceal,
    Condemn,
    Event,
    Expose,
    Freeze,
    Keep,
    Limits,
    Logs,
    MakeStorage,
    OpenGateway,
    Remove,
    Reply,
    Spawn,
    Stop,
    Welcome,
)
from cage_runtime.spawner.walls import ALL  # noqa: E402

UUID = "0123456789abcdef" * 2
TREE = "app/org.example.Sample"
PERSON = 1000
USER = """
import os, stat
os.mkdir("Documents/sticky")
os.mkdir("Documents/sticky/inner")
os.chmod("Documents/sticky", 0o1700)
os.chmod("Documents", 0o700)
"""


class Whole:
    """The spawner from its start to the end of its one cage."""

    def __init__(self, config: RuntimeConfig) -> None:
        self._config, self._run = config, Path(config.paths.run)
        self._loop = Loop()
        self._ended: list[Event] = []
        self._service: Service

    def steps(self) -> list[Callable[[], None]]:
        return [self.begin, self.make_storage, self.bear, self.spawn, self.signal, self.mediate, self.open_gateway,
                self.expose, self.welcome, self.freeze, self.stop, self.remove]

    def begin(self) -> None:
        # Also where systemd makes the cgroups of cages: this is no unit of its.
        cgroup.is_systemds = lambda _hierarchy: False
        syscalls = (str(Path(RUNTIME, "bin/cage-syscalls")), "--config", CONFIG)
        self._service = Service(self._config, self._loop, main.uid_of(self._config.users.caged), self._ended.append,
                                syscalls=syscalls)

    def ask(self, request: AnyRequest, *descriptors: int) -> Reply:
        """Until the answer is there; its fault is raised."""
        replies: list[Reply] = []

        def respond(reply: Reply) -> None:
            replies.append(reply)
            self._loop.running = False

        self._loop.running = True
        self._service.obey(request, list(descriptors), respond)
        while not replies:
            self._loop.turn()
        if replies[0].fault is not None:
            raise RuntimeFailure(replies[0].fault.sentence)
        return replies[0]

    def make_storage(self) -> None:
        self.ask(MakeStorage(id=1, uuid=UUID, ephemeral=False))
        self.ask(Keep(id=1, uuid=UUID))

    def bear(self) -> None:
        self.ask(Birth(id=1, uuid=UUID, name="child", level="public", compartments=[], exec_home=False,
                       limits=Limits(), processes=64, home_bytes=1 << 20, home_files=64))

    def spawn(self) -> None:
        """A command that leaves something that the host's root has to be able to delete."""
        self._run_in_it(USER)

    def mediate(self) -> None:
        """A call that is answered in the kernel's stead."""
        self._run_in_it("import ctypes; exit(ctypes.CDLL(None).sysinfo(ctypes.create_string_buffer(128)) != 0)")

    def _run_in_it(self, program: str) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        statuses: list[object] = []

        def hear() -> None:
            received = wire.receive(ours)
            if received is None:
                statuses.append("no status")
                return
            wire.close_all(received[1])
            event = json.loads(received[0])
            if event["event"] == "refused":
                statuses.append(f"nothing, it did not start: {event['sentence']}")
            elif "status" in event:
                statuses.append(event["status"])

        with ours, theirs:
            self.ask(Spawn(id=1, uuid=UUID, argv=["/usr/bin/python3", "-c", program]), theirs.fileno())
            theirs.close()
            self._loop.watch(ours.fileno(), hear)
            while not statuses:
                self._loop.turn()
            self._loop.forget(ours.fileno())
        if statuses != [0]:
            raise RuntimeFailure(f"the command ended with {statuses[0]}")

    def signal(self) -> None:
        """A command of the user's is told to end, and ends."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours:
            with theirs:
                self.ask(Spawn(id=1, uuid=UUID, argv=["/usr/bin/sleep", "1000"]), theirs.fileno())
            ours.settimeout(2)
            started = wire.receive(ours)
            if started is not None:
                wire.close_all(started[1])
            wire.send(ours, json.dumps({"signal": int(signal.SIGTERM)}).encode())
            try:
                ended = wire.receive(ours)
            except TimeoutError:
                raise RuntimeFailure("the command that was told to end goes on") from None
        if ended is None or json.loads(ended[0]).get("status") != 128 + signal.SIGTERM:
            raise RuntimeFailure(f"the command ended otherwise: {ended}")

    def open_gateway(self) -> None:
        """And ask its bus something: it has to be there and to read what it is given."""
        template = Path(self._config.paths.shipped, "gateway", "bus.conf.in")
        mediators = manifest.load(self._config.paths)
        write_configuration(template, self._run / "caged/gateway.conf", mediators, self._config.users)
        path = str(self._run / "gateway-of-the-test")
        with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as client:
            listener.bind(path)
            listener.listen()
            client.connect(path)
            self.ask(OpenGateway(id=1, uuid=UUID), listener.fileno())
            client.send(b"\0AUTH\r\n")
            answers: list[bytes] = []
            self._loop.watch(client.fileno(), lambda: answers.append(client.recv(64)))
            while not answers and not self._ended:
                self._loop.turn()
            self._loop.forget(client.fileno())
            if not answers:
                raise RuntimeFailure("the bus of the gateway ended")

    def expose(self) -> None:
        self.ask(Expose(id=1, uuid=UUID, trees=[TREE]))
        self.ask(Conceal(id=1, uuid=UUID, trees=[TREE]))

    def welcome(self) -> None:
        self.ask(Welcome(id=1, uids=[PERSON]))

    def freeze(self) -> None:
        self.ask(Freeze(id=1, uuid=UUID, frozen=True))
        self.ask(Freeze(id=1, uuid=UUID, frozen=False))
        self.ask(Logs(id=1, uuid=UUID))

    def stop(self) -> None:
        self.ask(Stop(id=1, uuid=UUID, seconds=5))

    def remove(self) -> None:
        self.ask(Condemn(id=1, uuid=UUID))
        self.ask(Remove(id=1, uuid=UUID))
        self._service.close()


def drop(names: list[str]) -> None:
    """For good, also for what is started."""
    rest = capability.permitted() - {capability.NAMES.index(name) for name in names}
    capability.bound(frozenset(rest))


def all_of_it(whole: Whole) -> dict[str, Any]:
    done: list[str] = []
    for step in whole.steps():
        try:
            step()
        except (CageError, OSError) as error:
            said = error.sentence if isinstance(error, CageError) else str(error)
            return {"done": done, "failed": step.__name__, "said": said}
        done.append(step.__name__)
    return {"done": done, "failed": None, "said": ""}


def run() -> None:
    config = load_runtime(Path(CONFIG))
    folders.prepare(folders.of_state(config))
    Path(config.paths.state, "flatpak", TREE).mkdir(parents=True)  # as cage-apps does
    main._prepare(config, ALL)
    of_init = {capability.NAMES.index(name.removeprefix("init:")) for name in NAMES if name.startswith("init:")}
    capability.INIT_CEILING -= of_init
    capability.INIT_USUAL -= of_init
    if NAMES and not of_init:
        drop(NAMES)
    outcome = all_of_it(Whole(config))
    held = [capability.NAMES[number] for number in sorted(capability.permitted())]
    sys.stdout.write(json.dumps({**outcome, "held": held}) + "\n")


if __name__ == "__main__":
    signal.alarm(100)
    logging.disable(logging.WARNING)  # whether there are security contexts is not asked here
    run()
