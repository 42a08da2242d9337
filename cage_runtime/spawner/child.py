# SPDX-License-Identifier: LGPL-2.1-or-later
"""From cage-init to a running command: streams, the fork, the last rights dropped, exec.

Law of this room: between fork and exec the process is not dumpable, holds no descriptor but its own streams, and
nothing that the cage controls has run; afterwards it has no capability, no way to gain one, and the session's filter.
"""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import signal
import stat
import termios
from collections.abc import Mapping
from dataclasses import dataclass, field

from cage_runtime.model import MEDIATOR_UID, USER_UID
from cage_runtime.spawner import syscall
from cage_runtime.spawner.profile import Profile, ProfileName
from cage_runtime.spawner.spec import Spawn, Terminal
from cage_runtime.text import escape

HOME = "/home/user"
PATH = "/opt/cage-runtime/bin:/usr/local/bin:/usr/bin:/bin:/usr/games"
DATA_DIRECTORIES = ":".join((
    f"{HOME}/.local/share/flatpak/exports/share", "/var/lib/flatpak/exports/share", "/usr/local/share", "/usr/share"))
"""XDG_DATA_DIRS (XDG base directory specification), as flatpak wants to find its exports in it."""
OF_THE_HOST = ("/usr/", "/bin/", "/sbin/", "/opt/cage-runtime/")
"""Where programs are that no cage can have made."""
LAUNCHER = ("/usr/bin/nice", "-n", "0", "--")
"""Executes a program and changes nothing, its environment neither, whatever its name looks like (nice(1))."""
PEOPLE = {0: ("root", "/root"), USER_UID: ("user", HOME), MEDIATOR_UID: ("mediator", "/nonexistent")}
"""Name and home of each uid that has processes in a cage, as in its /etc/passwd."""
DESCRIPTORS = 1024, 16384
"""Open files of a command, and how far it may raise that itself: the first as everywhere, because of select(2)."""
DESCRIPTORS_END = 1 << 20
"""No process here has a descriptor of this number or above, whatever its limit is by now."""
ACTIVATION_DESCRIPTOR = 3
"""Where a socket-activated program finds its socket (sd_listen_fds(3))."""


class NotStarted(Exception):
    """The command did not start; `status` as a shell has it: 126 not executable, 127 not found, 125 otherwise."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status
        self.sentence = sentence


@dataclass(frozen=True, kw_only=True, slots=True)
class Command:
    argv: tuple[str, ...]
    uid: int
    cwd: str
    terminal: Terminal | None = None
    profile: ProfileName = ProfileName.SESSION
    activation: int | None = None
    """A listening socket for it, as systemd hands one over."""

    @staticmethod
    def of(request: Spawn) -> Command:
        uid = 0 if request.user == "root" else USER_UID
        return Command(argv=tuple(request.argv), uid=uid, cwd=request.cwd or PEOPLE[uid][1], terminal=request.terminal,
                       profile=ProfileName(request.profile))

    def environment(self) -> Mapping[str, str]:
        name, home = PEOPLE[self.uid]
        environment = {
            "HOME": home, "USER": name, "LOGNAME": name, "SHELL": "/bin/bash", "PATH": PATH, "LANG": "C.UTF-8",
        }
        if self.uid == USER_UID:
            environment["XDG_RUNTIME_DIR"] = f"/run/user/{USER_UID}"
            environment["DBUS_SESSION_BUS_ADDRESS"] = f"unix:path=/run/user/{USER_UID}/bus"
            environment["XDG_DATA_DIRS"] = DATA_DIRECTORIES
        if self.terminal is not None:
            environment["TERM"] = self.terminal.term
        if self.activation is not None:
            environment["LISTEN_FDS"] = "1"
        return environment


@dataclass(kw_only=True, slots=True)
class Streams:
    """A command's three standard streams: `inner` ends for it, `outer` ends for whoever asked."""

    inner: tuple[int, int, int]
    outer: list[int] = field(default_factory=list)
    owned: list[int] = field(default_factory=list)
    """Inner ends that are closed once the command has them."""

    @staticmethod
    def open(request: Spawn, given: int | None, log: int) -> Streams:
        """As `request` wants them: a terminal of the cage, the log, or pipes; `given` is its standard input."""
        owner = 0 if request.user == "root" else USER_UID
        if request.terminal is not None:
            return Streams._terminal(request.terminal, owner)
        if request.detached:
            return Streams.to_log(log)
        if given is not None and request.serves:
            return Streams._serving(given, log, owner)
        output_pipes = [os.pipe2(os.O_CLOEXEC), os.pipe2(os.O_CLOEXEC)]
        inner, outer = [write for _, write in output_pipes], [read for read, _ in output_pipes]
        if given is None:
            read, write = os.pipe2(os.O_CLOEXEC)
            inner.insert(0, read)
            outer.insert(0, write)
        for descriptor in inner:
            os.fchown(descriptor, owner, owner)
        first = [given] if given is not None else []
        zero, one, two = [*first, *inner]
        return Streams(inner=(zero, one, two), outer=outer, owned=inner)

    @staticmethod
    def _serving(given: int, log: int, owner: int) -> Streams:
        read, write = os.pipe2(os.O_CLOEXEC)
        os.fchown(write, owner, owner)
        return Streams(inner=(given, write, log), outer=[read], owned=[write])

    @staticmethod
    def _terminal(terminal: Terminal, owner: int) -> Streams:
        master = os.open("/dev/ptmx", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
        fcntl.ioctl(master, _TIOCSPTLCK, b"\0\0\0\0")
        slave = fcntl.ioctl(master, _TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
        termios.tcsetwinsize(slave, (terminal.rows, terminal.columns))
        os.fchown(slave, owner, owner)
        return Streams(inner=(slave, slave, slave), outer=[master], owned=[slave])

    @staticmethod
    def to_log(log: int) -> Streams:
        null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        return Streams(inner=(null, log, log), owned=[null])

    def close_inner(self) -> None:
        while self.owned:
            os.close(self.owned.pop())

    def close_outer(self) -> None:
        while self.outer:
            os.close(self.outer.pop())


_TIOCSPTLCK = 0x40045431
_TIOCGPTPEER = 0x5441
"""Opens the other end of a pty without a path that could be swapped (ioctl_tty(2), Linux 4.13)."""


def _is_of_the_host(program: str) -> bool:
    """Is it where no cage can have made it?  Where a path goes up, links decide where that is."""
    return program.startswith(OF_THE_HOST) and ".." not in program.split("/")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Image:
    """What execve(2) takes, for each place where the program may be."""

    programs: tuple[str, ...]
    argv: list[str]
    environment: dict[str, str]

    @staticmethod
    def of(command: Command) -> _Image:
        name = command.argv[0]
        programs = (name,) if "/" in name else tuple(f"{directory}/{name}" for directory in PATH.split(":"))
        return _Image(programs=programs, argv=list(command.argv), environment=dict(command.environment()))

    def execute(self) -> None:
        """Becomes the first of the programs that is there; OSError says why none could be, as a shell has it."""
        if "/" in self.argv[0] and not _is_of_the_host(self.argv[0]):
            self._execute_what_the_cage_made()
        if "LISTEN_FDS" in self.environment:
            self.environment["LISTEN_PID"] = str(os.getpid())
        refused: OSError = FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        for program in self.programs:
            try:
                os.execve(program, self.argv, self.environment)  # noqa: S606 - a shell is what we do not want
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as error:
                refused = error
        raise refused


    def _execute_what_the_cage_made(self) -> None:
        """By a program of the cage's: until it executes, this process is the host's interpreter, and a script that has
        /proc/self/exe for its own would be run by that, on the host's mount, where cages could meet (CVE-2019-5736)."""
        found = os.stat(self.argv[0])
        if not stat.S_ISREG(found.st_mode) or not os.access(self.argv[0], os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        os.execve(LAUNCHER[0], [*LAUNCHER, *self.argv], self.environment)  # noqa: S606


@dataclass(frozen=True, kw_only=True, slots=True)
class Forked:
    """A command on its way: `trouble` is readable once it has executed, or will not."""

    pid: int
    trouble: int
    command: Command

    def outcome(self) -> NotStarted | None:
        """None where it runs, or has run; `trouble` is closed.  To be asked when `trouble` is readable."""
        try:
            told = os.read(self.trouble, 4096)
        finally:
            os.close(self.trouble)
        if not told:
            return None
        number, _, subject = told.decode("utf-8", "backslashreplace").partition(" ")
        return _not_started(int(number), subject, self.command)


def fork(command: Command, streams: Streams, profile: Profile, processes: int) -> Forked:
    """Set out to run `command`; NotStarted where that is known to fail already.

    Nobody may wait for what comes of it: before it executes it is the cage's user's already, who can stop it.
    """
    if not command.argv[0]:
        raise NotStarted(127, 'there is no command "" in the cage')
    # All that can be made before the fork is: each page that the child writes first has to be copied.
    image = _Image.of(command)
    trouble_read, trouble_write = os.pipe2(os.O_CLOEXEC)
    try:
        pid = syscall.fork()
    except OSError as error:
        os.close(trouble_read)
        os.close(trouble_write)
        raise NotStarted(125, f"the cage has no room for another process: {error.strerror}") from error
    if pid == 0:
        _become(command, image, streams, profile, processes, trouble_write)
    os.close(trouble_write)
    return Forked(pid=pid, trouble=trouble_read, command=command)


def _not_started(number: int, subject: str, command: Command) -> NotStarted:
    shown, why = escape(command.argv[0], limit=200), os.strerror(number)
    if subject == "exec" and number in (errno.ENOENT, errno.ENOTDIR):
        return NotStarted(127, f'there is no command "{shown}" in the cage')
    if subject == "exec":
        return NotStarted(126, f'"{shown}" in the cage cannot be executed: {why}')
    if subject == "cwd":
        return NotStarted(1, f'the directory "{escape(command.cwd, limit=200)}" cannot be entered in the cage: {why}')
    return NotStarted(125, f"the command could not be started: {subject}: {why}")


def _become(command: Command, image: _Image, streams: Streams, profile: Profile, processes: int, trouble: int) -> None:
    """In the child: never returns; tells `trouble` the errno and the step that failed."""
    step = "set-up"
    try:
        # Signals need no more: cage-init ignores none, and what it handles exec makes default again.
        signal.set_wakeup_fd(-1)
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        os.setsid()
        profile.restrict_files()
        trouble = _place(streams.inner, command.activation, trouble)
        if command.terminal is not None:
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        _limit(resource.RLIMIT_NPROC, processes, processes)
        _limit(resource.RLIMIT_NOFILE, *DESCRIPTORS)
        os.setgroups([])
        os.setresgid(command.uid, command.uid, command.uid)
        os.setresuid(command.uid, command.uid, command.uid)
        profile.drop_capabilities()
        os.umask(0o022)
        step = "cwd"
        os.chdir(os.path.join(PEOPLE[command.uid][1], command.cwd))
        step = "filter"
        profile.restrict_calls()
        step = "exec"
        image.execute()
    except OSError as error:
        os.write(trouble, f"{error.errno} {step}".encode())
    finally:
        # Whatever else is raised is our own fault, and must not go on as a second cage-init.
        os._exit(127)


def _place(inner: tuple[int, int, int], activation: int | None, trouble: int) -> int:
    """Put the streams at 0 to 2 and the activation socket at 3, close everything else but `trouble`, which moves."""
    # First out of the way of the numbers that are about to be taken.
    high = [fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 16) for descriptor in inner]
    listener = fcntl.fcntl(activation, fcntl.F_DUPFD_CLOEXEC, 16) if activation is not None else None
    told = fcntl.fcntl(trouble, fcntl.F_DUPFD_CLOEXEC, 16)
    for number in range(3):
        os.dup2(high[number], number, inheritable=True)
    if listener is not None:
        os.dup2(listener, ACTIVATION_DESCRIPTOR, inheritable=True)
    os.closerange(3 if listener is None else ACTIVATION_DESCRIPTOR + 1, told)
    os.closerange(told + 1, DESCRIPTORS_END)
    return told


def _limit(kind: int, soft: int, hard: int) -> None:
    """A limit of the command and of all that it starts, no higher than the host's own.

    That of processes is on the user's in this cage, and holds without a pids controller too (RLIMIT_NPROC).
    """
    _, most = resource.getrlimit(kind)
    hard = hard if most == resource.RLIM_INFINITY else min(hard, most)
    resource.setrlimit(kind, (min(soft, hard), hard))
