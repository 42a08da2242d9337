# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the spawner does for caged: one handler a request, and the state that a restart finds again.

State is what is there: a directory under RUN/cages for every cage that runs, a directory under storage for every
cage that exists.  Nothing else is remembered, so nothing can disagree with the kernel.
"""

from __future__ import annotations

import logging
import os
import pwd
import socket
import stat
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import msgspec

from cage_runtime import folders
from cage_runtime.config import RuntimeConfig, gid_of, profiles_of, uid_of
from cage_runtime.errors import CageError, HostUnsupported, NoSuchApplication, NoSuchCage, RuntimeFailure, WrongState
from cage_runtime.model import Wall
from cage_runtime.spawner import birth, cgroup, host, landlock, private, record, root, syscall, wire
from cage_runtime.spawner.cage import Cage, remove_cradle
from cage_runtime.spawner.calls import Calls
from cage_runtime.spawner.cgroup import Cgroup, Cgroups, Subtree
from cage_runtime.spawner.exports import Exports
from cage_runtime.spawner.filters import FILTERS, Store
from cage_runtime.spawner.gateway import Recipe
from cage_runtime.spawner.loop import Loop
from cage_runtime.spawner.mount import PROGRAMS, Source, opened, tree_of
from cage_runtime.spawner.profile import Filters
from cage_runtime.spawner.record import Record
from cage_runtime.spawner.scopes import Scopes
from cage_runtime.spawner.security import Security
from cage_runtime.spawner.slice import Slice
from cage_runtime.spawner.spec import (
    AdmitGateway,
    AnyRequest,
    Birth,
    Conceal,
    Condemn,
    Denied,
    Describe,
    Ended,
    Enforced,
    Enforcement,
    Event,
    Expose,
    Fault,
    Freeze,
    GatewayEnded,
    Host,
    Insight,
    Inspect,
    Keep,
    Logs,
    MakeStorage,
    OpenGateway,
    Remove,
    Reply,
    Spawn,
    Standing,
    Standings,
    Stop,
    Welcome,
)
from cage_runtime.spawner.storage import Stage, Storage, holds_documents
from cage_runtime.spawner.walls import ALL, Walls

LOG = logging.getLogger(__name__)

Respond = Callable[[Reply], None]


class Service:
    def __init__(self, config: RuntimeConfig, loop: Loop, caged_uid: int, tell: Callable[[Event], None],
                 scopes: tuple[str, ...] = (), walls: Walls = ALL, syscalls: tuple[str, ...] = ()) -> None:
        """`scopes` starts cage-scopes, where systemd has to be asked for cgroups; `syscalls` starts cage-syscalls;
        `walls` is all but in tests.
        """
        paths = config.paths
        self._loop, self._tell, self._caged = loop, tell, caged_uid
        run = Path(paths.run)
        self._cradles, self._gateways = run / "cages", run / "gateways"
        empty = run / "empty"
        _make_directories(config)
        self.security = (Security.open if walls.lsm else Security.absent)(loop, self._denied)
        self._installation = Path(paths.state, "flatpak")
        self._exports = Exports(Path(paths.state, "exports"), caged_uid, loop)
        self._storage = Storage(Path(paths.state, "storage"), run / "storage", config.ids.numbers())
        self.faults, self._ranges = self._storage.faults, len(config.ids.numbers())
        self._cgroups = _cgroups(cgroup.mounted(run / "cgroup"), paths.cgroup, Scopes(loop, scopes, self._leaving))
        profiles, filters = profiles_of(paths), Store(run / FILTERS)
        self._place = birth.Place(
            programs=paths.runtime, empty=str(empty), proc=_own_proc(run / "proc"), etc=root.SharedEtc(run / "etc"),
            filters=Filters(init=filters.build(profiles, "init"), session=filters.without_own(profiles, "init"),
                            mediator=filters.build(profiles, "mediator")),
            walls=walls,
        )
        caged = pwd.getpwuid(caged_uid)
        self._gateway = Recipe(configuration=run / "caged" / "gateway.conf", uid=caged_uid, gid=caged.pw_gid,
                               filter=filters.build(profiles, "gateway"))
        self._calls = Calls(loop, syscalls, self.security.answers)
        self._cages: dict[str, Cage] = {}
        self._births: dict[str, list[Callable[[], None]]] = {}
        """Cages whose cgroup is being made, and what waits for the outcome of their birth."""
        self._adopt()

    # --- finding again ---------------------------------------------------------------------------------------
    def _adopt(self) -> None:
        """Take over what an earlier spawner left: running cages are adopted, half-dead ones ended."""
        found = {entry.name for place in (self._cradles, self._gateways) for entry in place.iterdir()}
        cgroups = self._cgroups.existing()
        for uuid in sorted(found | cgroups.keys()):
            # One without a cgroup has nothing left in it: a path that is not there stands for that.
            cgroup_ = cgroups.get(uuid, Cgroup(self._cgroups.path / uuid))
            try:
                known = record.read(self._cradle(uuid).directory)
            except (OSError, ValueError) as error:  # it was cut off before there was a cage
                LOG.warning("the cage %s has no record that can be read: %s", uuid, error)
                known = None
            cage = self._cages[uuid] = self._cage(uuid, cgroup_, known or record.UNKNOWN)
            cage.gateway.adopt()
            try:
                if known is None:
                    cage.end()
                else:
                    cage.adopt()
            except OSError:
                cage.end()

    def _cradle(self, uuid: str) -> birth.Cradle:
        return birth.Cradle(directory=self._cradles / uuid, gateway=self._gateways / uuid)

    def _cage(self, uuid: str, cgroup: Cgroup, known: Record) -> Cage:
        return Cage(uuid, self._loop, self._cradle(uuid), cgroup, self._gone,
                    lambda cage: self._tell(GatewayEnded(uuid=cage.uuid)), record=known,
                    forget=lambda cage: self.security.forget(cage.record.xid), listening=self._listening)

    def _listening(self, cage: Cage, listener: int, born: float) -> None:
        self._calls.add(cage.uuid, listener, born, cage.cgroup.path)

    def _denied(self, xid: int, counts: Mapping[str, int]) -> None:
        for cage in self._cages.values():
            if cage.record.xid == xid:
                self._tell(Denied(uuid=cage.uuid, xid=xid, denials=dict(counts)))

    def _gone(self, cage: Cage) -> None:
        self._cages.pop(cage.uuid, None)
        answered = self._calls.counts(cage.uuid)
        self._calls.forget(cage.uuid)
        self._cgroups.ended(cage.cgroup)
        for tell in cage.waiting:
            tell()
        # Whoever asked for it may be gone: it is told as an end by itself too, after the answer.
        self._tell(Ended(uuid=cage.uuid, answered=answered))

    def _leaving(self, unit: str) -> None:
        """systemd stops a scope: a paused cage is let go on, or it would not hear of it before it is killed."""
        for cage in self._cages.values():
            if cage.cgroup.path.parent.name == unit and not cage.ending:
                try:
                    cage.cgroup.freeze(frozen=False)
                except OSError as error:
                    LOG.warning("the cage %s is not told that it is to end: %s", cage.uuid, error)

    def _open_gateway(self, uuid: str, descriptors: list[int]) -> None:
        cage = self._running(uuid)
        if len(descriptors) != 1 or not _listens(descriptors[0]):
            raise RuntimeFailure("the bus of a gateway takes one listening socket")
        cage.gateway.start(descriptors[0], self._gateway)

    def _admit_gateway(self, uuid: str, descriptors: list[int]) -> None:
        cage = self._running(uuid)
        if len(descriptors) != 1 or not _listens(descriptors[0]):
            raise RuntimeFailure("a cage is admitted to one listening socket")
        self.security.of(cage.record.xid).admit(descriptors[0])

    def _running(self, uuid: str) -> Cage:
        cage = self._cages.get(uuid)
        if cage is None or cage.ending:
            raise WrongState("the cage does not run; start it first")
        return cage

    def close(self) -> None:
        """Leave nothing of our own behind; what cages need stays while they run."""
        self._calls.end()
        self._cgroups.close()

    # --- requests --------------------------------------------------------------------------------------------
    def obey(self, request: AnyRequest, descriptors: list[int], respond: Respond) -> None:
        """Do as asked and `respond`, now or when it is done; a CageError is the caller's to answer."""
        match request:
            case Describe():
                respond(Reply(id=request.id, host=self._describe()))
            case Standing():
                self._after_births(self._births, lambda: respond(Reply(id=request.id, standings=self._standing())))
            case MakeStorage():
                self._storage.make(request.uuid, ephemeral=request.ephemeral, private=request.private)
                respond(Reply(id=request.id))
            case Keep():
                self._storage.keep(request.uuid)
                respond(Reply(id=request.id))
            case Condemn():
                self._storage.condemn(request.uuid)
                respond(Reply(id=request.id))
            case Birth():
                self._bear(request, respond)
            case Expose():
                self._expose(request, respond)
            case OpenGateway():
                self._open_gateway(request.uuid, descriptors)
                respond(Reply(id=request.id))
            case AdmitGateway():
                self._admit_gateway(request.uuid, descriptors)
                respond(Reply(id=request.id))
            case Enforced():
                respond(Reply(id=request.id, enforcement=self._enforced(request.uuid)))
            case Inspect():
                respond(Reply(id=request.id, insight=self._inspect(request.uuid)))
            case Spawn() | Conceal() | Logs():
                cage = self._running(request.uuid)
                if cage.record.private:
                    private.check(request)
                cage.ask(request, descriptors, respond)
            case Freeze():
                self._running(request.uuid).cgroup.freeze(frozen=request.frozen)
                respond(Reply(id=request.id))
            case Stop():
                self._after_births([request.uuid], lambda: self._stop(request, respond))
            case Remove():
                self._remove(request, respond)
            case Welcome():
                self._exports.welcome(request.uids, lambda error: respond(
                    Reply(id=request.id) if error is None else failed(request, error)))

    def _describe(self) -> Host:
        return Host(
            kernel=os.uname().release, cgroup=str(self._cgroups.path), controllers=sorted(self._cgroups.controllers),
            landlock_abi=syscall.landlock_abi(),
            user_namespaces=birth.user_namespaces(),
            memfd_noexec=Path("/proc/sys/vm/memfd_noexec").exists(),
            lsm=self.security.why, lsm_hooks=self.security.hooks, proc_mem=host.proc_mem(),
            ranges=self._ranges, ranges_free=self._storage.free,
        )

    def _standing(self) -> Standings:
        running = [cage for cage in self._cages.values() if not cage.ending]
        paused = [cage.uuid for cage in running if cage.cgroup.frozen()]
        return Standings(
            running={cage.uuid: cage.since for cage in running}, paused=paused,
            gateways=[cage.uuid for cage in running if cage.gateway.runs], new=self._storage.listed(Stage.NEW),
            stored=self._storage.listed(Stage.KEPT), ephemeral=self._storage.listed(Stage.KEPT, ephemeral=True),
            condemned=self._storage.listed(Stage.GONE),
        )

    def _inspect(self, uuid: str) -> Insight:
        cage = self._cages.get(uuid)
        try:
            home = self._storage.home(uuid)
        except KeyError:
            home = None
        try:
            # Into a home in memory nobody looks from outside: what it holds is as good as documents while it is there.
            documents = cage is not None if home is None else holds_documents(home)
        except OSError:  # its user moves things about while we look, or it is not there
            documents = True
        return Insight(processes=cage.cgroup.processes() if cage is not None else 0, documents=documents,
                       mediated=self._calls.counts(uuid))

    def _enforced(self, uuid: str) -> Enforcement:
        xid = self._running(uuid).record.xid
        return Enforcement(xid=xid, lsm=self.security.why_not(xid), denials=self.security.denials(xid))

    def _require(self, walls: Collection[Wall]) -> None:
        """HostUnsupported where one of them is not enforced, whatever caged has been told before."""
        if Wall.LSM in walls and self.security.why:
            raise HostUnsupported(self.security.why)
        if Wall.LANDLOCK in walls and syscall.landlock_abi() < landlock.SCOPE_ABI:
            raise HostUnsupported("this kernel's Landlock has no rules about signals and abstract sockets (Linux 6.12)")

    def _after_births(self, uuids: Collection[str], do: Callable[[], None]) -> None:
        """`do` when none of those cages is being born any more: what stands is known then, and can be stopped."""
        pending = next((self._births[uuid] for uuid in uuids if uuid in self._births), None)
        if pending is None:
            do()
        else:
            pending.append(lambda: self._after_births(list(uuids), do))

    def _bear(self, request: Birth, respond: Respond) -> None:
        if request.uuid in self._cages or request.uuid in self._births:
            raise WrongState(f"the cage {request.name} runs already or is still stopping")
        try:
            base = self._storage.base(request.uuid)
        except KeyError as error:
            raise NoSuchCage(f"the cage {request.name} has no storage") from error
        _close(self._storage.open_home(request.uuid))  # before anything is made for it
        birth.check_namespaces()
        self._require(request.require)
        if self._storage.private(request.uuid):
            request = msgspec.structs.replace(request, private=True)
        cradle = self._cradle(request.uuid)
        cradle.directory.mkdir(mode=0o700)
        try:
            cradle.gateway.mkdir(mode=0o755)
            os.chown(cradle.gateway, self._caged, self._caged)
        except (OSError, CageError):
            remove_cradle(cradle)
            raise
        self._births[request.uuid] = []

        def made(outcome: Cgroup | CageError) -> None:
            try:
                cage = self._bear_in(request, base, cradle, outcome)
            except (OSError, CageError) as error:
                respond(failed(request, error))
            else:
                respond(Reply(id=request.id, since=cage.since))
            for do in self._births.pop(request.uuid):
                do()

        self._cgroups.make(request.name, request.uuid, request.limits, made)

    def _bear_in(self, request: Birth, base: int, cradle: birth.Cradle, outcome: Cgroup | CageError) -> Cage:
        if isinstance(outcome, CageError):
            remove_cradle(cradle)
            raise outcome
        home, gateway, label = None, None, self.security.none
        try:
            label = self.security.new(exec_home=request.exec_home, private=request.private)
            known = Record(xid=label.xid, private=request.private)
            record.write(cradle.directory, known)
            home = self._storage.open_home(request.uuid)
            gateway = Source.of(cradle.gateway)
            spec = birth.root_spec(request, base, home, gateway, self._place)
            pid, pidfd = birth.bear(request, spec, self._place, cradle, outcome, label)
        except (OSError, CageError):
            self._cgroups.unmake(request.uuid)
            self.security.forget(label.xid)
            remove_cradle(cradle)
            raise
        finally:
            _close(home)
            _close(gateway)
        self._cgroups.born(request.name, request.uuid, pid)
        cage = self._cages[request.uuid] = self._cage(request.uuid, outcome, known)
        try:
            cage.born(pid, pidfd)
        except OSError as error:
            cage.end()
            raise RuntimeFailure(f"the cage {request.name} could not be reached: {error}") from error
        return cage

    def _expose(self, request: Expose, respond: Respond) -> None:
        cage = self._running(request.uuid)
        mounts: list[int] = []
        try:
            for tree in request.trees:
                mounts.append(_detached(self._installation, tree))
            cage.ask(request, mounts, respond)
        finally:
            for mount in mounts:
                os.close(mount)

    def _stop(self, request: Stop, respond: Respond) -> None:
        cage = self._cages.get(request.uuid)
        if cage is None:
            respond(Reply(id=request.id))
            return
        cage.waiting.append(lambda: respond(Reply(id=request.id)))
        cage.stop(request.seconds)

    def _remove(self, request: Remove, respond: Respond) -> None:
        if request.uuid in self._cages or request.uuid in self._births:
            raise WrongState("the cage still runs")
        deleting = self._storage.remove(request.uuid)
        if deleting is None:
            respond(Reply(id=request.id))
            return
        pidfd = os.pidfd_open(deleting.pid)

        def deleted() -> None:
            self._loop.forget(pidfd)
            os.close(pidfd)
            fault = None
            if deleting.wait():
                fault = Fault(kind="RuntimeFailure", sentence=f"the storage of {request.uuid} could not be deleted")
            else:
                self._storage.removed(request.uuid)
            respond(Reply(id=request.id, fault=fault))

        self._loop.watch(pidfd, deleted)


def _close(source: Source | None) -> None:
    if source is not None:
        os.close(source.descriptor)


def failed(request: AnyRequest, error: OSError | CageError) -> Reply:
    """The answer to what could not be done."""
    if isinstance(error, CageError):
        return Reply(id=request.id, fault=Fault(kind=error.bus_name, sentence=error.sentence))
    sentence = f"the spawner failed in {type(request).__name__}: {error}"
    return Reply(id=request.id, fault=Fault(kind="RuntimeFailure", sentence=sentence))


def _cgroups(hierarchy: Path, name: str, scopes: Scopes) -> Cgroups:
    return Slice(hierarchy, name, scopes) if cgroup.is_systemds(hierarchy) else Subtree(hierarchy, name)


def _own_proc(directory: Path) -> str:
    """Mount a procfs; it also shows the kernel one in full, without which a cage could mount none of its own.

    The host's where that is not permitted, in a container that is not the root of its pid namespace.
    """
    directory.mkdir(mode=0o555, exist_ok=True)
    try:
        syscall.mount("proc", str(directory), "proc", syscall.MS_NOSUID | syscall.MS_NODEV | syscall.MS_NOEXEC)
    except PermissionError:
        return "/proc"
    return str(directory)


def _make_directories(config: RuntimeConfig) -> None:
    """Every directory of the core, each for the one process that writes it; theirs are below ones that are root's.

    HostUnsupported, before anything is made, where one below STATE is not as it has to be.
    """
    run, users = Path(config.paths.run), config.users
    # Gateways can be reached by caged and the mediators' core halves, and by nobody else of the host.
    group = gid_of(config.users.gateways)
    folders.prepare(folders.of_state(config))
    for path, mode, owner in (
        (run, 0o755, "root"), (run / "cages", 0o700, "root"), (run / "empty", 0o555, "root"),
        (run / FILTERS, 0o700, "root"), (run / "caged", 0o700, users.caged),
    ):
        uid = uid_of(owner)
        path.mkdir(mode=mode, parents=True, exist_ok=True)
        path.chmod(mode)
        os.chown(path, uid, pwd.getpwuid(uid).pw_gid)
    gateways = run / "gateways"
    gateways.mkdir(mode=0o710, exist_ok=True)
    gateways.chmod(0o710)
    os.chown(gateways, 0, group)


def _listens(descriptor: int) -> bool:
    if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
        return False
    with socket.socket(fileno=os.dup(descriptor)) as listener:
        return wire.listens(listener, socket.SOCK_STREAM)


def _detached(installation: Path, tree: str) -> int:
    """The directory `tree` of the applications as a read-only mount of its own, not attached anywhere.

    The installation belongs to an unprivileged user, so no link in it is followed.
    """
    resolve = syscall.RESOLVE_BENEATH | syscall.RESOLVE_NO_SYMLINKS | syscall.RESOLVE_NO_XDEV
    top = os.open(installation, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        directory = syscall.openat2(top, tree, os.O_PATH | os.O_DIRECTORY, resolve)
    except OSError as error:
        raise NoSuchApplication(f"{tree} is not installed: {error.strerror}") from error
    finally:
        os.close(top)
    with opened(directory):
        return tree_of(directory, PROGRAMS)
