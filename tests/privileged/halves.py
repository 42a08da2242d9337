# SPDX-License-Identifier: LGPL-2.1-or-later
"""A probe in a real cage, started as what mediates there is: a spawner's service without its socket, run by
test_halves.py.

Run as root by the installed runtime's interpreter: halves.py RUNTIME CONFIG PROBE.  It bears one cage and runs PROBE in
it three times, as the cage's bus and its halves are started, as the delivery half is and as a session is; it prints one
JSON object, by profile.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

RUNTIME, CONFIG, PROBE = sys.argv[1:]
sys.path[:0] = [f"{RUNTIME}/lib", "/usr/lib/python3/dist-packages"]

from cage_runtime.config import load_runtime  # noqa: E402
from cage_runtime.model import MEDIATOR_UID  # noqa: E402
from cage_runtime.spawner import cgroup, child, main, wire  # noqa: E402
from cage_runtime.spawner.filters import Filter  # noqa: E402
from cage_runtime.spawner.loop import Loop  # noqa: E402
from cage_runtime.spawner.profile import ProfileName  # noqa: E402
from cage_runtime.spawner.service import Service  # noqa: E402
from cage_runtime.spawner.spec import AnyRequest, Birth, Limits, MakeStorage, Remove, Reply, Spawn, Stop  # noqa: E402
from cage_runtime.spawner.walls import ALL  # noqa: E402

UUID = "0123456789abcdef" * 2
AS_MEDIATOR = "--as-mediator"
"""The first word of a command that cage-init is to start as it starts the bus."""
_of = child.Command.of
LISTENER = """
import signal, socket, sys
with socket.socket(socket.AF_UNIX) as listener:
    listener.bind("\\0" + sys.argv[1])
    listener.listen(16)
    print(flush=True)
    signal.pause()
"""
ABSTRACT = "of-the-session"


def _command(request: Spawn) -> child.Command:
    """As cage-init makes it, but for those that no request can ask for."""
    command = _of(request)
    if command.argv[0] != AS_MEDIATOR:
        return command
    return replace(command, argv=command.argv[1:], uid=MEDIATOR_UID, profile=ProfileName.MEDIATOR, cwd="/")


class Nursery:
    def __init__(self) -> None:
        config = load_runtime(Path(CONFIG))
        main._prepare(config, ALL)
        cgroup.is_systemds = lambda _hierarchy: False
        self._loop = Loop()
        self._channels: list[socket.socket] = []
        self.service = Service(config, self._loop, main.uid_of(config.users.caged), lambda _ended: None)

    def ask(self, request: AnyRequest, *descriptors: int) -> None:
        replies: list[Reply] = []
        self.service.obey(request, list(descriptors), replies.append)
        while not replies:
            self._loop.turn()
        if replies[0].fault is not None:
            raise RuntimeError(replies[0].fault.sentence)

    def start(self, *argv: str, profile: Any = "session") -> tuple[int, int]:
        """A command in the cage; what it prints and complains of can be read from these."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self.ask(Spawn(id=1, uuid=UUID, argv=list(argv), profile=profile), theirs.fileno())
        ours.settimeout(30)
        received = wire.receive(ours)
        assert received is not None
        message, descriptors = received
        assert json.loads(message).get("event") == "started", message
        self._channels.append(ours)  # a command whose channel is closed is ended
        given, output, errors = descriptors
        os.close(given)
        return output, errors

    def output(self, *argv: str, profile: Any = "session") -> str:
        """What a command in the cage prints."""
        output, errors = self.start(*argv, profile=profile)
        with open(output, encoding="utf-8") as said, open(errors, encoding="utf-8") as complaints:
            text = said.read()
            sys.stderr.write(complaints.read())
        return text


def run() -> None:
    child.Command.of = staticmethod(_command)
    # Nobody turns this spawner's loop while a command runs, and so nobody would answer its calls.
    Filter.listen = lambda _filter: None
    nursery = Nursery()
    nursery.ask(MakeStorage(id=1, uuid=UUID, ephemeral=True))
    nursery.ask(Birth(id=1, uuid=UUID, name="child", level="public", compartments=[], exec_home=False, limits=Limits(),
                      processes=64, home_bytes=1 << 20, home_files=64))
    listening, _ = nursery.start("/usr/bin/python3", "-IS", "-c", LISTENER, ABSTRACT)
    os.read(listening, 1)
    words = ("/usr/bin/python3", "-IS", "-c", PROBE, ABSTRACT)
    answers = {
        "mediator": nursery.output(AS_MEDIATOR, *words),
        "delivery": nursery.output(*words, profile="delivery"),
        "session": nursery.output(*words),
    }
    nursery.ask(Stop(id=1, uuid=UUID, seconds=0))
    nursery.ask(Remove(id=1, uuid=UUID))
    nursery.service.close()
    sys.stdout.write(json.dumps({name: json.loads(text) for name, text in answers.items()}) + "\n")


if __name__ == "__main__":
    signal.alarm(100)
    logging.disable(logging.WARNING)  # whether there are security contexts is not asked here
    run()
