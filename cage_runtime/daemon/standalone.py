# SPDX-License-Identifier: LGPL-2.1-or-later
"""`caged --standalone`: the processes of the core as children, where there is no systemd to run its units.

The same programs with the same users; one that ends is started again.  Cages are nobody's children here: they go
on when this process or any of its children is killed, and are adopted when it is started again.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import shutil
import signal
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from cage_runtime import folders, manifest
from cage_runtime.bus import Bus
from cage_runtime.config import RuntimeConfig, gid_of, uid_of
from cage_runtime.confine import bound_supervisor
from cage_runtime.errors import HostUnsupported, RuntimeFailure

LOG = logging.getLogger("caged")
READY_SECONDS = 30.0
STOP_SECONDS = 30.0
"""Longer than what caged and the spawner give what is in hand (ENDING_SECONDS)."""
RESTART_SECONDS_MAX = 5.0
"""A child that ends at once again and again is started this seldom."""
SETTLED_SECONDS = 10.0
"""A child that has run this long has started well."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Child:
    program: str
    arguments: tuple[str, ...] = ()
    user: str | None = None
    """None for root."""

    @property
    def name(self) -> str:
        """What people call it."""
        return " ".join((self.program, *self.arguments))


def children(config: RuntimeConfig) -> list[Child]:
    """The spawner first: it makes the directories of the others."""
    users = config.users
    return [
        Child(program="cage-spawner"),
        Child(program="cage-apps", user=users.apps),
        Child(program="caged", user=users.caged),
        *(Child(program="cage-mediator", arguments=(mediator.name,), user=users.mediator(mediator.name))
          for mediator in manifest.load(config.paths)),
    ]


class Supervisor:
    def __init__(self, config: RuntimeConfig, config_file: Path | None) -> None:
        self._programs = Path(config.paths.runtime, "bin")
        self._config_file = config_file
        self._environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}
        for name in ("DBUS_SYSTEM_BUS_ADDRESS", "JOURNAL_STREAM"):
            if value := os.environ.get(name):
                self._environment[name] = value
        self._running: dict[Child, asyncio.subprocess.Process] = {}

    def _command(self, child: Child) -> list[str]:
        """`child` as its user, dying with us: setpriv(1) does both between fork and exec."""
        command = ["/usr/bin/setpriv", "--pdeathsig", "KILL"]
        if child.user is not None:
            command += [f"--reuid={child.user}", f"--regid={child.user}", "--init-groups", "--no-new-privs",
                        "--inh-caps=-all", "--bounding-set=-all"]
        command += ["--", str(self._programs / child.program), *child.arguments]
        return command if self._config_file is None else [*command, "--config", str(self._config_file.absolute())]

    async def keep(self, child: Child, notify_socket: str) -> None:
        """Start `child`, and again when it ends, for ever; it says on `notify_socket` when it is ready."""
        loop, pause = asyncio.get_running_loop(), 0.1
        environment = {**self._environment, "NOTIFY_SOCKET": notify_socket}
        while True:
            began = loop.time()
            try:
                # A session each, as daemons have: by sessions the kernel shares out the processors where nothing else
                # does (sched(7), autogroups), and those in cages have theirs.
                process = await asyncio.create_subprocess_exec(
                    *self._command(child), env=environment, stdin=asyncio.subprocess.DEVNULL, start_new_session=True)
            except OSError as error:
                LOG.warning("%s could not be started and is tried again: %s", child.name, error)
            else:
                self._running[child] = process
                status = await process.wait()
                LOG.warning("%s ended with status %d and is started again", child.name, status)
            pause = 0.1 if loop.time() - began > SETTLED_SECONDS else min(pause * 2, RESTART_SECONDS_MAX)
            await asyncio.sleep(pause)

    async def stop(self) -> None:
        """The others first, the spawner last."""
        for child in reversed(self._running):
            process = self._running[child]
            if process.returncode is not None:
                continue
            process.send_signal(signal.SIGTERM)
            try:
                async with asyncio.timeout(STOP_SECONDS):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()


async def supervise(config: RuntimeConfig, config_file: Path | None, ready_fd: int | None) -> int:
    """Run the core until SIGTERM; RuntimeFailure where it does not come up."""
    await _check_host(config)
    bound_supervisor()
    run = Path(config.paths.run)
    loop = asyncio.get_running_loop()
    told = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told.set)
    with contextlib.ExitStack() as held:
        held.enter_context(_alone(run))
        supervisor = Supervisor(config, config_file)
        tasks: list[asyncio.Task[None]] = []
        try:
            await _bring_up(supervisor, config, held, tasks, told)
            if not told.is_set():
                LOG.info("ready")
                if ready_fd is not None:
                    os.write(ready_fd, b"ready\n")
                    os.close(ready_fd)
            await told.wait()
        finally:
            for task in tasks:
                task.cancel()
            await supervisor.stop()
    return 0


async def _check_host(config: RuntimeConfig) -> None:
    """HostUnsupported or NoSystemBus for what no child could do anything about, before there is any."""
    if os.geteuid() != 0:
        raise HostUnsupported("caged --standalone starts a process that makes namespaces: run it as root")
    if shutil.which("setpriv", path="/usr/bin") is None:
        raise HostUnsupported("setpriv is missing; install util-linux")
    gid_of(config.users.gateways)
    # Users that are missing are told of first; what is missing of the folders the spawner makes.
    folders.check_present(folders.of_state(config))
    for child in children(config):
        program = Path(config.paths.runtime, "bin", child.program)
        if not os.access(program, os.X_OK):
            raise HostUnsupported(f"{program} is not there; install the runtime, or name its place in caged.conf")
    (await Bus.connect()).disconnect()


@contextlib.contextmanager
def _alone(run: Path) -> Iterator[None]:
    """HostUnsupported where another core has `run`: a supervisor, or a spawner that systemd has started."""
    run.mkdir(mode=0o755, parents=True, exist_ok=True)
    # Root's alone: with a lock of its own on it, anybody else who can open it could keep us from ours.
    with open(run / "standalone.lock", "ab", opener=lambda path, flags: os.open(path, flags, 0o600)) as lock:
        _lock(lock, fcntl.LOCK_EX, run)
        with contextlib.suppress(FileNotFoundError), (run / "spawner.lock").open("rb") as spawner:
            _lock(spawner, fcntl.LOCK_SH, run)
        yield


def _lock(file: BinaryIO, how: int, run: Path) -> None:
    try:
        fcntl.flock(file, how | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise HostUnsupported(f"a core runs already with {run}; end it first") from error


async def _bring_up(supervisor: Supervisor, config: RuntimeConfig, held: contextlib.ExitStack,
                    tasks: list[asyncio.Task[None]], told: asyncio.Event) -> None:
    """Start the spawner, then the others, each group when the one before it is ready, or we are told to end."""
    spawner, *others = children(config)
    directory = Path(config.paths.run, "standalone")
    directory.mkdir(mode=0o711, exist_ok=True)
    for group in ([spawner], others):
        readiness = {child: held.enter_context(Readiness(directory, child)) for child in group}
        loop = asyncio.get_running_loop()
        tasks += [loop.create_task(supervisor.keep(child, ready.address)) for child, ready in readiness.items()]
        late = await _wait({child.name: ready.said for child, ready in readiness.items()}, told)
        if late:
            names = ", ".join(late)
            raise RuntimeFailure(f"not ready after {READY_SECONDS:.0f} s: {names}; their messages are above")


async def _wait(events: dict[str, asyncio.Event], told: asyncio.Event) -> list[str]:
    """The names of those that have not happened in time; none where we are told to end."""
    loop = asyncio.get_running_loop()
    all_, ending = loop.create_task(_happen(*events.values())), loop.create_task(_happen(told))
    await asyncio.wait({all_, ending}, timeout=READY_SECONDS, return_when=asyncio.FIRST_COMPLETED)
    for task in (all_, ending):
        task.cancel()
    return [] if told.is_set() else [name for name, event in events.items() if not event.is_set()]


async def _happen(*events: asyncio.Event) -> None:
    for event in events:
        await event.wait()


class Readiness:
    """The socket on which one child, and nobody else, says READY=1 (sd_notify(3)), each time that it is started.

    It is read for as long as there are children: their datagrams wait in a queue of some ten, and whoever finds that
    full waits too, for ever.
    """

    def __init__(self, directory: Path, child: Child) -> None:
        path = directory / "-".join((child.program, *child.arguments))
        path.unlink(missing_ok=True)  # of a core that was killed
        self.address = str(path)
        self.said = asyncio.Event()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        self._socket.bind(self.address)
        path.chmod(0o600)
        owner = 0 if child.user is None else uid_of(child.user)
        os.chown(path, owner, -1)

    def __enter__(self) -> Readiness:
        asyncio.get_running_loop().add_reader(self._socket, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.get_running_loop().remove_reader(self._socket)
        self._socket.close()
        Path(self.address).unlink(missing_ok=True)

    def _receive(self) -> None:
        if b"READY=1" in self._socket.recv(4096).split(b"\n"):
            self.said.set()
