# SPDX-License-Identifier: LGPL-2.1-or-later
"""The program cage-apps: the applications' installation on the system bus, for caged alone.

It runs as an unprivileged user of its own, so that whoever defeats flatpak or ostree through what they download has
that user's files and nothing else.  What changes the installation goes one at a time through one thread; what only
reads it does not wait for that.
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

from cage_runtime import folders, log, watchdog
from cage_runtime.arguments import Parser
from cage_runtime.bus import Answer, Bus, Call, Service, Value, described
from cage_runtime.config import RuntimeConfig, load_runtime, uid_of
from cage_runtime.confine import confine
from cage_runtime.errors import CageError, NotAuthorized, RuntimeFailure
from cage_runtime.flatpak.installation import Installation
from cage_runtime.notify import notify

NAME, PATH = "org.cageruntime.Apps1", "/org/cageruntime/Apps1"
WAITING_MAX = 64
"""Calls that change the installation and are under way or waiting."""
PR_SET_CHILD_SUBREAPER = 36

EXECUTED = ("/usr", "/bin", "/lib", "/lib64")
"""flatpak, ostree, gpg and what these run; nothing that was fetched."""
LOG = logging.getLogger(__name__)
_Result = TypeVar("_Result")


@dataclass(kw_only=True, slots=True, eq=False)
class Work:
    """One call that changes the installation, from its arrival to its answer."""

    sender: str
    cancelled: bool = False


class Apps:
    """The handlers of the interface."""

    def __init__(self, installation: Installation, bus: Bus, allowed: frozenset[int]) -> None:
        self._installation = installation
        self._bus = bus
        self._allowed = allowed
        self._turn = asyncio.Lock()
        self._works: set[Work] = set()
        self._running: Work | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="installation")

    def service(self) -> Service:
        handlers = {
            "AddRemote": self.add_remote, "RemoveRemote": self.remove_remote, "ListRemotes": self.list_remotes,
            "Install": self.install, "Update": self.update, "Remove": self.remove, "List": self.list,
            "Trees": self.trees, "MenuEntry": self.menu_entry, "Cancel": self.cancel,
        }  # fmt: skip
        return Service(interface=described(f"{NAME}.xml", NAME), handlers=handlers)

    async def add_remote(self, call: Call) -> Answer:
        name, url, key = call.arguments
        return Answer(values=(await self._change(call, lambda: self._installation.add_remote(name, url, bytes(key))),))

    async def remove_remote(self, call: Call) -> Answer:
        await self._change(call, lambda: self._installation.remove_remote(call.arguments[0]))
        return Answer()

    async def list_remotes(self, call: Call) -> Answer:
        remotes = await self._read(call, self._installation.remotes)
        return Answer(values=([(remote.name, remote.url, remote.fingerprint) for remote in remotes],))

    async def install(self, call: Call) -> Answer:
        application, remote = call.arguments
        installed = await self._change(call, lambda: self._installation.install(application, remote))
        return Answer(values=(asdict(installed),))

    async def update(self, call: Call) -> Answer:
        installed = await self._change(call, lambda: self._installation.update(call.arguments[0]))
        return Answer(values=(asdict(installed),))

    async def remove(self, call: Call) -> Answer:
        await self._change(call, lambda: self._installation.remove(call.arguments[0]))
        return Answer()

    async def list(self, call: Call) -> Answer:
        installed = await self._read(call, self._installation.installed)
        return Answer(values=([asdict(one) for one in installed],))

    async def trees(self, call: Call) -> Answer:
        return Answer(values=(await self._read(call, lambda: self._installation.trees(call.arguments[0])),))

    async def menu_entry(self, call: Call) -> Answer:
        return Answer(values=(await self._read(call, lambda: self._installation.menu_entry(call.arguments[0])),))

    async def cancel(self, call: Call) -> Answer:
        await self._authorise(call)
        self.abandon(call.sender)
        return Answer()

    def on_signal(self, message: Value) -> None:
        """The bus says that a name changed hands: whoever lost a unique name has left."""
        if message.sender != "org.freedesktop.DBus" or message.member != "NameOwnerChanged":
            return
        name, _, owner = message.body
        if not owner:
            self.abandon(name)

    def abandon(self, sender: str | None) -> None:
        """End what `sender` asked for, or everything."""
        for work in self._works:
            if sender in (None, work.sender):
                work.cancelled = True
                if work is self._running:
                    self._installation.cancel()

    def close(self) -> None:
        """End what is under way and wait for it to have cleaned up."""
        self.abandon(None)
        self._thread.shutdown(wait=True, cancel_futures=True)

    async def _authorise(self, call: Call) -> None:
        if await self._bus.uid_of(call.sender) not in self._allowed:
            raise NotAuthorized("only caged may use the applications' installation; use cagectl app")

    async def _read(self, call: Call, reader: Callable[[], _Result]) -> _Result:
        await self._authorise(call)
        return await asyncio.to_thread(reader)

    async def _change(self, call: Call, operation: Callable[[], _Result]) -> _Result:
        await self._authorise(call)
        if len(self._works) >= WAITING_MAX:
            raise RuntimeFailure(f"{WAITING_MAX} operations on applications are waiting already; try again later")
        work = Work(sender=call.sender)
        self._works.add(work)
        try:
            async with self._turn:
                return await self._take_turn(work, operation)
        finally:
            self._works.discard(work)

    async def _take_turn(self, work: Work, operation: Callable[[], _Result]) -> _Result:
        self._installation.begin()
        if work.cancelled:
            raise CageError("cancelled before it was begun")
        self._running = work
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, _whole, operation)
        finally:
            self._running = None


def _whole(operation: Callable[[], _Result]) -> _Result:
    """`operation`, and afterwards the end of what its programs left behind: gpgme's helpers outlive their parents."""
    try:
        return operation()
    except OSError as error:
        raise RuntimeFailure(f"the applications' installation cannot be changed: {error.strerror}") from error
    finally:
        _end_orphans()


def _end_orphans() -> None:
    """Kill and reap what has become our child: a gpg-agent waits for ever for a directory that is gone.

    Called between operations, when nothing that we started ourselves runs.
    """
    while pids := _children():
        for pid in pids:
            # Not waited for yet, so the pid is still its own, dead or alive; its children are ours next.
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def _children() -> list[int]:
    lists = (listed.read_text(encoding="ascii") for listed in Path("/proc/self/task").glob("*/children"))
    return [int(pid) for pids in lists for pid in pids.split()]


async def serve(config: RuntimeConfig) -> None:
    """Serve until the bus goes away or a signal asks to end."""
    allowed = frozenset({0, uid_of(config.users.caged)})
    folders.check_present(folders.of_state(config, "flatpak"))
    bus = await Bus.connect()
    apps = Apps(Installation(Path(config.paths.state, "flatpak")), bus, allowed)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, bus.disconnect)
    try:
        bus.listen(apps.on_signal)
        await bus.match("type='signal',sender='org.freedesktop.DBus',member='NameOwnerChanged',arg2=''")
        bus.serve(PATH, apps.service())
        await bus.own(NAME)
        notify("READY=1")
        feeding = loop.create_task(watchdog.feed(bus))
        await bus.closed()
        feeding.cancel()
    finally:
        apps.close()


def _adopt_orphans() -> None:
    """Become the parent of what our programs leave behind, so that it can be waited for."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise RuntimeFailure(f"prctl(PR_SET_CHILD_SUBREAPER): {os.strerror(ctypes.get_errno())}")


def _confine(config: RuntimeConfig) -> None:
    """What it installs from may be a folder anywhere; what it writes is the installation, and it runs none of that."""
    confine(config, "apps", readable=("/",), executable=EXECUTED, tcp=True,
            special=(Path(config.paths.state, "flatpak"), "/tmp", "/var/tmp"))  # noqa: S108


def main(arguments: Sequence[str] | None = None) -> int:
    options = Parser("cage-apps", "keeps the applications of all cages, for caged alone").parse_args(arguments)
    log.set_up("cage-apps: %(levelname)s: %(message)s")
    try:
        if os.geteuid() == 0:
            raise RuntimeFailure("refusing to run as root: downloads are handled here; run as the user cage-apps")
        config = load_runtime(options.config)
        _adopt_orphans()
        _confine(config)
        asyncio.run(serve(config))
    except CageError as error:
        LOG.error("%s", error.sentence)
        return error.exit_status
    except OSError as error:
        LOG.error("%s", error)
        return RuntimeFailure.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())
