# SPDX-License-Identifier: LGPL-2.1-or-later
"""caged: decides, asks, records.  No capability, no root; `--standalone` watches over all the core's processes."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from contextlib import closing
from pathlib import Path

from cage_runtime import folders, log
from cage_runtime.arguments import Parser
from cage_runtime.audit.chain import Chain
from cage_runtime.audit.event import Kind
from cage_runtime.audit.journal import Journal
from cage_runtime.bus import Bus
from cage_runtime.config import RuntimeConfig, load_levels, load_runtime
from cage_runtime.daemon import standalone
from cage_runtime.daemon.applications import Applications
from cage_runtime.daemon.authorization import Authorization
from cage_runtime.daemon.autostart import Autostart
from cage_runtime.daemon.cage import Cage
from cage_runtime.daemon.exports import Exports
from cage_runtime.daemon.gateway import Gateways
from cage_runtime.daemon.jobs import Jobs
from cage_runtime.daemon.manager import Manager
from cage_runtime.daemon.mediation import Mediation
from cage_runtime.daemon.service import CoreService, MediationService, Parts
from cage_runtime.daemon.sessions import Sessions
from cage_runtime.daemon.spawner import SpawnerClient
from cage_runtime.daemon.state import Registry
from cage_runtime.errors import CageError, HostUnsupported, RuntimeFailure
from cage_runtime.model import CORE_BUS_NAME
from cage_runtime.notify import notify

LOG = logging.getLogger("caged")


class Daemon:
    """The parts of caged, put together; what each tells the others goes through here."""

    def __init__(self, config: RuntimeConfig, bus: Bus, chain: Chain) -> None:
        paths, run = config.paths, Path(config.paths.run)
        self._core: CoreService | None = None
        self._mediators: MediationService | None = None
        self._spawner = SpawnerClient(run / "spawner.sock", self._ended, self._look)
        own = run / "caged"
        gateways = Gateways(
            run / "gateways", Path(paths.shipped, "gateway", "bus.conf.in"), config.users.files, own / "gateway.conf",
            self._gateway_up, self._gateway_down,
        )
        registry = Registry(Path(paths.state, "cages"), own / "cages")
        self._manager = Manager(
            paths=paths, levels=load_levels(paths), registry=registry, spawner=self._spawner, chain=chain,
            gateways=gateways, changed=self._changed,
        )
        self._autostart = Autostart(self._manager, own / "autostart.json")
        sessions = Sessions(self._manager)
        authorization = Authorization(bus, config.users)
        self._exports = Exports(Path(paths.state, "exports"), str(Path(paths.runtime, "bin/cagectl")))
        self._applications = Applications(bus, self._manager, self._exports)
        parts = Parts(
            bus=bus, authorization=authorization, manager=self._manager, sessions=sessions,
            applications=self._applications, mediation=Mediation(self._manager, sessions, paths),
            jobs=Jobs(bus, authorization),
        )
        self._core = CoreService(parts)
        self._mediators = MediationService(parts, gateways.standing)

    async def start(self) -> None:
        await self._spawner.start()
        await self._manager.recover()
        self._autostart.begin()
        # Of itself: cage-apps, which is asked for it, may take its time.
        self._offering = asyncio.get_running_loop().create_task(self._applications.offer_all())

    async def start_enabled(self) -> None:
        """Start the cages that are started with the host; the host does not wait for them."""
        await self._autostart.run()

    def _ended(self, uuid: str) -> None:
        self._manager.on_ended(uuid)

    async def _look(self) -> None:
        await self._manager.look()

    def _changed(self, cage: Cage, present: bool) -> None:
        if self._core is not None:
            self._core.changed(cage, present)
        if present:
            self._exports.welcome(cage.record)
        else:
            self._exports.forget(cage.record, (other.record for other in self._manager.cages()))

    def _gateway_up(self, name: str, uuid: str, address: str) -> None:
        if self._mediators is not None:
            self._mediators.up(name, uuid, address)

    def _gateway_down(self, uuid: str) -> None:
        if self._mediators is not None:
            self._mediators.down(uuid)


async def serve(config: RuntimeConfig) -> None:
    """Until told to end; RuntimeFailure where the bus ends before that."""
    bus = await Bus.connect()
    with closing(Journal()) as journal, Chain.open(Path(config.paths.state, "audit"), tell=journal.tell) as chain:
        chain.append(Kind.CORE_STARTED, {"pid": str(os.getpid())})
        daemon = Daemon(config, bus, chain)
        await daemon.start()
        await bus.own(CORE_BUS_NAME)
        notify("READY=1")
        starting = asyncio.ensure_future(daemon.start_enabled())
        told = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, told.set)
        bus_ended = asyncio.ensure_future(bus.closed())
        waiting = asyncio.ensure_future(told.wait())
        await asyncio.wait({bus_ended, waiting}, return_when=asyncio.FIRST_COMPLETED)
        if bus_ended.done():
            raise HostUnsupported("the system bus ended; caged ends with it and is started again")
        waiting.cancel()
        starting.cancel()  # the next caged goes on with the rest
        await asyncio.gather(starting, return_exceptions=True)
        chain.append(Kind.CORE_STOPPED, {"pid": str(os.getpid())})


def main() -> int:
    parser = Parser("caged", "the core of the cage runtime")
    parser.add_argument("--standalone", action="store_true",
                        help="start and watch over the other processes of the core too; needs root")
    parser.add_argument("--ready-fd", type=int, metavar="N",
                        help='with --standalone: write "ready" to descriptor N when all is up')
    options = parser.parse_args()
    log.set_up("%(name)s: %(message)s")
    try:
        config = load_runtime(options.config)
        if options.standalone:
            return asyncio.run(standalone.supervise(config, options.config, options.ready_fd))
        if os.geteuid() == 0:
            raise HostUnsupported(f"caged does not run as root: start it as the user {config.users.caged}, "
                                  "or use --standalone")
        folders.check(folders.of_state(config, "cages", "audit"))
        os.umask(0o077)
        asyncio.run(serve(config))
    except CageError as error:
        LOG.critical("%s", error.sentence)
        return error.exit_status
    except OSError as error:
        LOG.critical("%s", error)
        return RuntimeFailure.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())
