# SPDX-License-Identifier: LGPL-2.1-or-later
"""One cage as the spawner makes it, in a context; what is run in it, and what its context was refused meanwhile.

Run by test_cage.py as root, with the installed runtime's modules: it prints a JSON object for each command.
"""

from __future__ import annotations

import json
import os
import pwd
import socket
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from cage_runtime.config import load_runtime
from cage_runtime.spawner import syscall
from cage_runtime.spawner.loop import Loop
from cage_runtime.spawner.lsm.contexts import Contexts
from cage_runtime.spawner.service import Service
from cage_runtime.spawner.spec import Birth, Enforced, Limits, MakeStorage, Reply, Spawn, Stop

UUID = "0123456789abcdef" * 2
PREFIX = "/usr/lib/cage-runtime"
CONFIGURATION = """[paths]
state = "{top}/state"
run = "{top}/run"
shipped = "{prefix}"
administrator = "{top}/etc"
runtime = "{prefix}"
cgroup = "cages-of-a-test"
"""


class Nursery:
    def __init__(self, top: Path) -> None:
        file = top / "caged.conf"
        file.write_text(CONFIGURATION.format(top=top, prefix=PREFIX), encoding="utf-8")
        config = load_runtime(file)
        Path(config.paths.run).mkdir(parents=True)
        syscall.unshare(syscall.CLONE_NEWNS)
        syscall.mount(None, "/", None, syscall.MS_REC | syscall.MS_SLAVE)
        self._loop = Loop()
        self._service = Service(config, self._loop, pwd.getpwnam("caged").pw_uid, lambda _: None)

    def ask(self, request: Any, *descriptors: int) -> Reply:
        replies: list[Reply] = []

        def respond(reply: Reply) -> None:
            replies.append(reply)
            self._loop.running = False

        self._loop.running = True
        self._service.obey(request, list(descriptors), respond)
        if not replies:
            self._loop.run()
        if replies[0].fault is not None:
            raise SystemExit(replies[0].fault.sentence)
        return replies[0]

    def run(self, *words: str) -> dict[str, Any]:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.ask(Spawn(id=1, uuid=UUID, argv=list(words)), theirs.fileno())
        theirs.close()
        events: list[dict[str, Any]] = []
        said, outputs = bytearray(), set[int]()

        def hear() -> None:
            message, descriptors, _, _ = socket.recv_fds(ours, 4096, 4)
            events.append(json.loads(message) if message else {"status": "none", "sentence": "cage-init has ended"})
            if "status" in events[-1]:
                self._loop.forget(ours.fileno())
            for number, descriptor in enumerate(descriptors):
                if number == 0:
                    os.close(descriptor)  # its input
                else:
                    outputs.add(descriptor)
                    self._loop.watch(descriptor, partial(read, descriptor))

        def read(descriptor: int) -> None:
            part = os.read(descriptor, 65536)
            said.extend(part)
            if not part:
                self._loop.forget(descriptor)
                os.close(descriptor)
                outputs.remove(descriptor)

        # The spawner is who answers what the command asks of the kernel.
        self._loop.watch(ours.fileno(), hear)
        while outputs or not events or "status" not in events[-1]:
            self._loop.turn()
        ours.close()
        event = events[-1]
        text = said.decode(errors="replace")
        return {"argv": words, "status": event["status"], "said": text + event.get("sentence", "")}


def main() -> None:
    contexts = Contexts.open()
    directory = tempfile.mkdtemp(prefix="nursery-")  # the guest ends soon, and what is mounted in it too
    os.chmod(directory, 0o755)
    nursery = Nursery(Path(directory))
    nursery.ask(MakeStorage(id=1, uuid=UUID, ephemeral=True))
    nursery.ask(Birth(id=1, uuid=UUID, name="child", level="public", compartments=[], exec_home=False,
                      limits=Limits(), processes=64, home_bytes=1 << 24, home_files=4096))
    enforcement = nursery.ask(Enforced(id=1, uuid=UUID)).enforcement
    assert enforcement is not None
    xid = enforcement.xid
    for line in sys.stdin:
        before = contexts.denials().get(xid, {})
        came = nursery.run(*json.loads(line))
        now = contexts.denials().get(xid, {})
        came["denied"] = {name: count - before.get(name, 0) for name, count in now.items()
                          if count != before.get(name, 0)}
        came["born"] = before
        came["events"] = [str(event) for event in contexts.read_events() if event.xid == xid]
        sys.stdout.write(json.dumps(came) + "\n")
        sys.stdout.flush()
    nursery.ask(Stop(id=1, uuid=UUID, seconds=0))


if __name__ == "__main__":
    main()
