# SPDX-License-Identifier: LGPL-2.1-or-later
"""The bus of a cage's gateway: a dbus-daemon of caged's user, on the host's side of the wall, beside the cage.

Its cgroup is the cage's sibling: the cage's limits and its pause are not its own, it goes on whatever becomes of caged
and of the spawner, and it is found again and ended after the cage.  What it reads comes from a cage, and to others it
would be caged: so it has no capability, can write nothing and read little (Landlock), and makes no socket, no
connection and no other process (seccomp.d/gateway.toml).  It has a line to say of each call that it refuses, of which a
cage can make as many as it likes: of what it says, some is kept, and told once it has ended.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import resource
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cage_runtime.spawner import capability, landlock, syscall
from cage_runtime.spawner.cgroup import Cgroup, is_populated
from cage_runtime.spawner.child import ACTIVATION_DESCRIPTOR, DESCRIPTORS, DESCRIPTORS_END
from cage_runtime.spawner.filters import Filter
from cage_runtime.spawner.loop import PRIORITY, Loop
from cage_runtime.text import escape

PROGRAM = "/usr/bin/dbus-daemon"
"""The one program that it can execute, which is itself."""

KEPT_BYTES = 16 * 1024
"""Of what it says, as the kernel counts the memory of that: its first lines."""
SAID_MAX = 1000
"""Bytes of each line."""
REAP_SECONDS = 0.1
"""Before a bus that is ending is looked at again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """What the buses of all gateways have in common."""

    configuration: Path
    """caged's, and written by it."""
    uid: int
    gid: int
    filter: Filter


class Gateway:
    def __init__(self, loop: Loop, cgroup: Cgroup, ended: Callable[[], None]) -> None:
        """`ended` is called each time that the bus has ended."""
        self._loop, self._cgroup, self._ended = loop, cgroup, ended
        self._pid, self._events = 0, -1
        self._said: socket.socket | None = None
        """What it says on its standard error, where we have started it."""

    @property
    def runs(self) -> bool:
        return self._events >= 0

    def adopt(self) -> None:
        """Follow the bus that an earlier spawner has started, if there is one."""
        self._watch()
        if self.runs and not is_populated(self._events):
            self._forget()

    def _watch(self) -> None:
        events = self._cgroup.open_events()
        if events < 0:
            return
        try:
            self._loop.watch(events, self._emptied, PRIORITY)
        except OSError:
            os.close(events)
            raise
        self._events = events

    def start(self, listener: int, recipe: Recipe) -> None:
        """Start the bus on `listener`, unless it runs; OSError where the host has no room for it."""
        if self.runs:
            return
        self._cgroup.path.mkdir(exist_ok=True)
        directory = self._cgroup.open()
        # Messages, not a stream: whoever writes is neither held up nor ended, whether they are read or not.
        self._said, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        far.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, KEPT_BYTES)
        try:
            # First: a bus that nobody watches would run, and nobody would see to its end.
            self._watch()
            self._pid, pidfd = syscall.clone3(syscall.CLONE_CLEAR_SIGHAND, cgroup=directory)
            if self._pid == 0:
                os.dup2(far.fileno(), 2)
                _become(listener, recipe)
            os.close(pidfd)
        except OSError:
            if self.runs:
                self._forget()
            self._tell()
            raise
        finally:
            far.close()
            os.close(directory)

    def end(self) -> bool:
        """Kill what is left; True where nothing is, its cgroup included.

        Where not, `ended` says when to ask again, but for what systemd has removed before the kernel told of it.
        """
        if self.runs:
            self._cgroup.kill()
            if is_populated(self._events):
                return False
            self._forget()
        self._cgroup.remove()
        return True

    def _emptied(self) -> None:
        if self.runs and not is_populated(self._events):
            self._forget()
            self._ended()

    def _forget(self) -> None:
        self._loop.forget(self._events)
        os.close(self._events)
        self._events = -1
        self._tell()
        if self._pid:
            self._reap(self._pid)
            self._pid = 0

    def _tell(self) -> None:
        """What it has said, as far as it was kept."""
        if self._said is None:
            return
        with self._said as said, contextlib.suppress(BlockingIOError):
            while untrusted_said := said.recv(SAID_MAX):
                if shown := escape(untrusted_said.strip()):  # the C library writes the end of a line by itself
                    os.write(2, f"the bus of a gateway: {shown}\n".encode())
        self._said = None

    def _reap(self, pid: int) -> None:
        """It is ending, as nothing of it is left in its cgroup; waited for it is not, because a process of its user's
        that traces it keeps its end from us (ptrace(2))."""
        if not os.waitpid(pid, os.WNOHANG)[0]:
            self._loop.after(REAP_SECONDS, lambda: self._reap(pid))


def _become(listener: int, recipe: Recipe) -> None:
    """In the child: never returns; what fails is said on standard error."""
    try:
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        signal.set_wakeup_fd(-1)
        os.setsid()
        capability.one_way()
        _restrict(recipe)
        _place(listener)
        capability.drop_bounding_set()
        os.setgroups([])
        os.setresgid(recipe.gid, recipe.gid, recipe.gid)
        os.setresuid(recipe.uid, recipe.uid, recipe.uid)
        capability.hold(frozenset())
        os.umask(0o077)
        _limit_descriptors()
        recipe.filter.load()
        # systemd's protocol wants the daemon's own pid in its environment (sd_listen_fds(3)).
        environment = {"PATH": "/usr/bin:/bin", "LISTEN_FDS": "1", "LISTEN_PID": str(os.getpid())}
        command = _command(recipe)
        os.execve(command[0], command, environment)  # noqa: S606 - a shell is what we do not want
    except OSError as error:
        os.write(2, f"the bus of a gateway cannot be started: {error}\n".encode())
    finally:
        os._exit(127)


def _limit_descriptors() -> None:
    """To DESCRIPTORS, or to what the host lets the spawner have, where that is less."""
    soft, hard = (min(limit, resource.getrlimit(resource.RLIMIT_NOFILE)[1]) for limit in DESCRIPTORS)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def _command(recipe: Recipe) -> list[str]:
    return [PROGRAM, "--nofork", "--nopidfile", "--nosyslog", "--address=systemd:",
            f"--config-file={recipe.configuration}"]


def _restrict(recipe: Recipe) -> None:
    """One program, its libraries and its configuration."""
    landlock.Reach(
        executable=(*landlock.LINKER, PROGRAM),
        readable=(*landlock.LIBRARIES, *landlock.NAMES, str(recipe.configuration)),
    ).restrict(logged=True)


def _place(listener: int) -> None:
    """Nothing to read, our standard error to write to, the listener where it is looked for, and nothing else."""
    null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    kept = fcntl.fcntl(listener, fcntl.F_DUPFD_CLOEXEC, 16)
    os.dup2(null, 0, inheritable=True)
    os.dup2(2, 1, inheritable=True)
    os.dup2(kept, ACTIVATION_DESCRIPTOR, inheritable=True)
    os.closerange(ACTIVATION_DESCRIPTOR + 1, DESCRIPTORS_END)
