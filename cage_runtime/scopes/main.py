# SPDX-License-Identifier: LGPL-2.1-or-later
"""cage-scopes: started by cage-spawner, with the one socket over which it is asked; it ends with the spawner.

systemd takes such requests from uid 0, which this process is, with nothing of what that can do: no capability, no file
that it could write, none that it could execute.
"""

from __future__ import annotations

import gc
import logging
import select
import socket
import sys
import time
from pathlib import Path

from cage_runtime import log
from cage_runtime.arguments import Parser
from cage_runtime.config import load_runtime, profiles_of
from cage_runtime.scopes.spec import decode_asked, encode
from cage_runtime.scopes.systemd import Systemd
from cage_runtime.spawner import capability, landlock, wire
from cage_runtime.spawner.filters import FILTERS, Filter, Store
from cage_runtime.spawner.helper import exit_status, given_socket

LOG = logging.getLogger("cage-scopes")
OURS = str(Path(__file__).parents[2])
"""What the runtime's own modules are in."""


def seal(filter_: Filter) -> None:
    """Only lose rights from here on."""
    capability.drop_bounding_set()
    capability.lock_securebits()
    capability.hold(frozenset())
    capability.one_way()
    landlock.Reach(readable=(*landlock.LIBRARIES, *landlock.NAMES, OURS)).restrict()
    filter_.load()


def serve(spawner: socket.socket) -> None:
    """Until the spawner ends."""
    systemd = Systemd(lambda told: wire.send(spawner, encode(told)))
    systemd.begin()
    while True:
        poll = select.poll()
        poll.register(spawner, select.POLLIN)
        if systemd.connection is not None:
            poll.register(systemd.connection.fileno(), systemd.connection.waits_for()[0])
        until = systemd.waits_until()
        ready = poll.poll(None if until is None else max(0, int((until - time.monotonic()) * 1000) + 1))
        if any(descriptor == spawner.fileno() for descriptor, _ in ready):
            received = wire.receive(spawner)
            if received is None:
                return
            message, descriptors = received
            wire.close_all(descriptors)
            systemd.ask(decode_asked(message))
        # Also what came while a call was waited for.
        systemd.turn()


def _ask_systemd(file: Path | None) -> None:
    """Until the spawner ends."""
    spawner = given_socket("cage-scopes")
    paths = load_runtime(file).paths
    seal(Store(Path(paths.run, FILTERS)).build(profiles_of(paths), "scopes"))
    gc.collect()
    gc.freeze()
    serve(spawner)


def main() -> int:
    options = Parser("cage-scopes", "asks systemd for cages' scopes, for cage-spawner alone").parse_args()
    log.set_up("%(name)s: %(message)s")
    return exit_status(lambda: _ask_systemd(options.config), LOG)


if __name__ == "__main__":
    sys.exit(main())
