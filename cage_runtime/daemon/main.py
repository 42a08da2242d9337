# SPDX-License-Identifier: LGPL-2.1-or-later
"""caged: decides, asks, records.  No capability, no root; `--standalone` watches over all the core's processes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
from contextlib import closing
from pathlib import Path

from cage_runtime import folders, log, manifest, watchdog
from cage_runtime.arguments import Parser
from cage_runtime.audit.chain import Chain
from cage_runtime.audit.event import Kind
from cage_runtime.audit.journal import Journal
from cage_runtime.bus import Bus
from cage_runtime.config import RuntimeConfig, gid_of, load_levels, load_runtime
from cage_runtime.confine import confine
from cage_runtime.daemon import standalone
from cage_runtime.daemon.access import Access
from cage_runtime.daemon.agents import Agents
from cage_runtime.daemon.applications import Applications
from cage_runtime.daemon.asking import Asking
from cage_runtime.daemon.asking_service import AskingService, Shown
from cage_runtime.daemon.authorization import Authorization
from cage_runtime.daemon.autostart import Autostart
from cage_runtime.daemon.cage import Cage
from cage_runtime.daemon.connections import Connections
from cage_runtime.daemon.copies import Copies
from cage_runtime.daemon.denials import Denials
from cage_runtime.daemon.exports import Exports
from cage_runtime.daemon.gateway import Gateways, write_configuration
from cage_runtime.daemon.grants import Grants
from cage_runtime.daemon.halves import Halves
from cage_runtime.daemon.jobs import Jobs
from cage_runtime.daemon.lives import BOOT_ID, Lives, boot
from cage_runtime.daemon.manager import Manager
from cage_runtime.daemon.mediation import Mediation
from cage_runtime.daemon.mediation_service import MediationService
from cage_runtime.daemon.notifications import Notifications
from cage_runtime.daemon.prompts import Waiter
from cage_runtime.daemon.proof_service import ProofService
from cage_runtime.daemon.proofs import Proofs
from cage_runtime.daemon.recovery import Recovery
from cage_runtime.daemon.service import CoreService, Parts
from cage_runtime.daemon.sessions import Sessions
from cage_runtime.daemon.spawner import SpawnerClient
from cage_runtime.daemon.state import Registry
from cage_runtime.daemon.tickets import Tickets
from cage_runtime.errors import CageError, CutOff, HostUnsupported, RuntimeFailure
from cage_runtime.model import CORE_BUS_NAME, ENDING_SECONDS, GIVING_UP_SECONDS, CageState
from cage_runtime.notify import notify
from cage_runtime.spawner import spec

LOG = logging.getLogger("caged")


class Daemon:
    """The parts of caged, put together; what each tells the others goes through here."""

    def __init__(self, config: RuntimeConfig, bus: Bus, chain: Chain) -> None:
        paths, run = config.paths, Path(config.paths.run)
        self._core: CoreService | None = None
        self._mediators: MediationService | None = None
        self._spawner = SpawnerClient(run / "spawner.sock", self._happened, self._look)
        own = run / "caged"
        mediators = manifest.load(paths)
        write_configuration(Path(paths.shipped, "gateway/bus.conf.in"), own / "gateway.conf", mediators, config.users)
        self._gateways = gateways = Gateways(run / "gateways", self._start_gateway, self._gateway_up,
                                             self._gateway_down, admit=self._admit_gateway)
        registry, lives = Registry(Path(paths.state, "cages"), own / "cages"), Lives(own / "running")
        self._manager = Manager(
            paths=paths, levels=load_levels(paths), registry=registry, spawner=self._spawner, chain=chain,
            gateways=gateways, lives=lives, changed=self._changed,
        )
        self._recovery = Recovery(self._manager, registry, gateways, lives)
        self._denials = Denials(self._manager, own / "denials")
        self._autostart = Autostart(self._manager, own / "autostart.json")
        sessions = Sessions(self._manager, {mediator.name: mediator.delivery for mediator in mediators})
        authorization = Authorization(bus, config.users, [mediator.name for mediator in mediators])
        self._exports = Exports(Path(paths.state, "exports"), str(Path(paths.runtime, "bin/cagectl")), self._welcome)
        self._applications = Applications(bus, self._manager, self._exports)
        jobs = Jobs(bus)
        connections, access = Connections(bus), Access(authorization, self._manager)
        agents = Agents(bus, connections)
        self._asking = Asking(self._manager, agents, connections, Grants(own / "grants.json", boot()),
                              tell=self._answered, show=Shown(self._manager.levels))
        kinds = manifest.kinds_of(mediators)
        mediation = Mediation(self._manager, sessions, paths, self._asking, kinds=kinds,
                              tickets=Tickets(own / "tickets.json", boot()))
        self._notifications = Notifications(agents, self._manager.levels, self._acted)
        parts = Parts(
            bus=bus, authorization=authorization, access=access, manager=self._manager, sessions=sessions,
            copies=Copies(self._manager, sessions, jobs), applications=self._applications, mediation=mediation,
            asking=AskingService(access, self._asking, agents, self._notifications),
            proofs=ProofService(access, Proofs(self._manager, mediation, paths, kinds=kinds), self._manager.levels),
            notifications=self._notifications, recovery=self._recovery, jobs=jobs,
            halves=Halves([mediator.name for mediator in mediators], connections),
        )
        self._bus, self._jobs = bus, parts.jobs
        self._mediation = parts.mediation
        self._core = CoreService(parts)
        self._mediators = MediationService(parts, gateways.standing)

    async def start(self) -> None:
        await self._spawner.start()
        await self._recovery.recover()
        self._mediation.receipts.prepare()
        self._asking.begin()
        self._denials.begin()
        self._autostart.begin()
        # Of itself: cage-apps, which is asked for it, may take its time.
        self._offering = asyncio.get_running_loop().create_task(self._applications.offer_all())

    async def start_enabled(self) -> None:
        """Start the cages that are started with the host; the host does not wait for them."""
        await self._autostart.run()

    async def end(self) -> None:
        """Leave new calls to whoever owns the name next, and do what is in hand, as far as it can be done in time."""
        with contextlib.suppress(CutOff):  # of the bus, with which all who wait are gone
            await self._bus.release(CORE_BUS_NAME)
            # A job that is given up has somebody who waits for it, and is to be told.
            await asyncio.gather(self._jobs.end(ENDING_SECONDS), self._bus.finish(ENDING_SECONDS + GIVING_UP_SECONDS))
        try:
            async with asyncio.timeout(GIVING_UP_SECONDS):
                await self._recovery.last_look()
        except (CageError, TimeoutError) as error:
            LOG.warning("cages that have just ended are recorded by the next core: %s", error or "nobody answers")

    def reload(self) -> None:
        """What SIGHUP asks for, as cagectl policy reload does, but that nobody hears of a bad policy but the log."""
        try:
            self._mediation.reload()
        except CageError as error:
            LOG.error("%s", error.sentence)

    def _happened(self, event: spec.Event) -> None:
        match event:
            case spec.Ended():
                self._denials.ended(event.uuid)
                self._record_answered(event)
                self._manager.on_ended(event.uuid)
            case spec.GatewayEnded():
                self._gateways.ended(event.uuid)
            case spec.Denied():
                self._denials.heard(event)

    def _record_answered(self, event: spec.Ended) -> None:
        cage = self._manager.by_uuid(event.uuid)
        if cage is None:
            return
        for call, count in sorted(event.answered.items()):
            fields = {"cage": cage.name, "uuid": event.uuid, "operation": call, "count": str(count)}
            try:
                self._manager.record(Kind.CALLS_ANSWERED, None, fields)
            except CageError as error:
                LOG.error("not recorded: %s of %s was answered: %s", call, cage.name, error.sentence)

    async def _start_gateway(self, uuid: str, listener: int) -> None:
        await self._spawner.ask(spec.OpenGateway(id=self._spawner.number(), uuid=uuid), (listener,))

    async def _admit_gateway(self, uuid: str, listener: int) -> None:
        await self._spawner.ask(spec.AdmitGateway(id=self._spawner.number(), uuid=uuid), (listener,))

    async def _look(self) -> None:
        await self._recovery.look()

    def _changed(self, cage: Cage, present: bool) -> None:
        if self._core is not None:
            self._core.changed(cage, present)
            self._mediation.cage_changed(cage, present)
            self._notifications.cage_changed(cage, present)
        if self._mediators is not None and (cage.state is CageState.RUNNING or not present):
            self._mediators.changed(cage.uuid, runs=present)
        if not present:
            self._exports.forget(cage.record)
        self._applications.see_persons()

    async def _welcome(self, uids: list[int]) -> None:
        await self._spawner.ask(spec.Welcome(id=self._spawner.number(), uids=uids))

    def _gateway_up(self, name: str, uuid: str, address: str) -> None:
        if self._mediators is not None:
            self._mediators.up(name, uuid, address)

    def _answered(self, waiter: Waiter) -> None:
        if self._mediators is not None:
            self._mediators.answered(waiter)

    def _acted(self, sender: str, number: int, action: str) -> None:
        if self._mediators is not None:
            self._mediators.acted(sender, number, action)

    def _gateway_down(self, uuid: str) -> None:
        if self._mediators is not None:
            self._mediators.down(uuid)


async def serve(config: RuntimeConfig) -> None:
    """Until told to end; RuntimeFailure where it cannot go on, or begin."""
    bus = await Bus.connect()
    with closing(Journal()) as journal, Chain.open(Path(config.paths.state, "audit"), tell=journal.tell) as chain:
        chain.append(Kind.CORE_STARTED, {"pid": str(os.getpid()), "boot": boot()})
        daemon = Daemon(config, bus, chain)
        await daemon.start()
        told = _listen_for_signals(daemon)
        await bus.own(CORE_BUS_NAME)
        notify("READY=1")
        starting = asyncio.ensure_future(daemon.start_enabled())
        try:
            await _until(told, bus)
        finally:
            starting.cancel()  # the next caged goes on with the rest
            await asyncio.gather(starting, return_exceptions=True)
        # First, so that a supervisor that is asked for the name starts the next one, and does not take us for it.
        notify("STOPPING=1")
        await daemon.end()
        chain.append(Kind.CORE_STOPPED, {"pid": str(os.getpid())})


def _check_host(config: RuntimeConfig) -> None:
    """HostUnsupported unless caged is who it has to be, and what it needs is there and is its own."""
    if os.geteuid() == 0:
        raise HostUnsupported(f"caged does not run as root: start it as the user {config.users.caged}, "
                              "or use --standalone")
    _check_group(config)
    folders.check(folders.of_state(config, "cages", "audit"))


def _check_group(config: RuntimeConfig) -> None:
    """HostUnsupported where the gateways are out of our reach: every cage would look as if it had ended."""
    users = config.users
    if gid_of(users.gateways) not in (os.getegid(), *os.getgroups()):
        raise HostUnsupported(f"{users.caged} is not in the group {users.gateways}, which reaches the cages; "
                              "reinstalling the runtime puts it there")


def _confine(config: RuntimeConfig) -> None:
    """To what is caged's own: its folders, and the sockets of the gateways.

    What an administrator writes may be made, or made anew, while caged runs, so that what it is in has to be readable.
    """
    state, run = Path(config.paths.state), Path(config.paths.run)
    confine(config, "core", readable=(BOOT_ID, Path(config.paths.administrator).parent),
            writable=(state / "cages", state / "audit", state / "exports"), special=(run / "caged", run / "gateways"))


def _listen_for_signals(daemon: Daemon) -> asyncio.Event:
    """What is set when we are told to end."""
    loop, told = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told.set)
    loop.add_signal_handler(signal.SIGHUP, daemon.reload)
    return told


async def _until(told: asyncio.Event, bus: Bus) -> None:
    """Until told; HostUnsupported where the bus ends before that."""
    loop = asyncio.get_running_loop()
    tasks = [loop.create_task(work) for work in (bus.closed(), told.wait(), watchdog.feed(bus))]
    ended, waiting, _feeding = tasks
    try:
        await asyncio.wait({ended, waiting}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
    if ended.done():
        raise HostUnsupported("the system bus ended; caged ends with it and is started again")


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
        try:
            _check_host(config)
        except HostUnsupported as error:
            LOG.critical("%s", error.sentence)
            return os.EX_CONFIG  # somebody has to see to it first: the unit does not try again
        os.umask(0o077)
        _confine(config)
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
