# SPDX-License-Identifier: LGPL-2.1-or-later
"""A runtime of the tests' own: a private bus, `caged --standalone` from .build/runtime, and handles to drive both.

Law of this room: everything waits for an event (a bus name, the end of a process, a change in a directory), never
for a time; every wait has a bound.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import pwd
import select
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from jeepney import DBusAddress, HeaderFields, MatchRule, message_bus, new_method_call
from jeepney.io.blocking import DBusConnection, open_dbus_connection

from cage_runtime.scopes.spec import runtime_of, slice_of
from tests import system_bus

TOP = Path(__file__).parents[2]
PREFIX = Path(os.environ.get("CAGE_TEST_RUNTIME", TOP / ".build/runtime"))
"""The installed programs; scripts/test installs them there first."""
SECONDS = 30.0
"""No single wait of these tests takes longer."""
CORE, APPS = "org.cageruntime.Core1", "org.cageruntime.Apps1"
USERS = {"caged": "caged", "cage-spawner": "root", "cage-mediator": "cage-files", "cage-apps": "cage-apps"}
"""The processes of the core and whom they run as."""

CAGED_CONFIGURATION = """[paths]
state = "{top}/state"
run = "{top}/run"
shipped = "{prefix}"
administrator = "{top}/etc"
runtime = "{prefix}"
cgroup = "{cgroup}"
"""

Ended = subprocess.CompletedProcess[bytes]


# --- waiting -----------------------------------------------------------------------------------------------------
def wait_readable(descriptor: int, what: str, seconds: float = SECONDS, events: int = select.POLLIN) -> None:
    """Until `descriptor` has something to say; TimeoutError names `what`."""
    poll = select.poll()
    poll.register(descriptor, events)
    if not poll.poll(seconds * 1000):
        raise TimeoutError(f"{what}: not after {seconds:.0f} s")


def wait_gone(pid: int) -> None:
    """Until the process has ended."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        wait_readable(pidfd, f"the end of process {pid}")
    finally:
        os.close(pidfd)


class Changes:
    """inotify(7) on directories: `until` looks at a condition again whenever an entry of one has changed."""

    _EVENTS = 0x002 | 0x008 | 0x040 | 0x080 | 0x100 | 0x200  # MODIFY, CLOSE_WRITE, MOVED_*, CREATE, DELETE

    def __init__(self, *directories: Path) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self._inotify = libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
        for directory in directories:
            if libc.inotify_add_watch(self._inotify, os.fsencode(directory), self._EVENTS) < 0:
                raise OSError(ctypes.get_errno(), "inotify_add_watch", str(directory))

    def __enter__(self) -> Changes:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._inotify)

    def until(self, condition: Callable[[], bool], what: str, seconds: float = SECONDS) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            wait_readable(self._inotify, what, max(0.0, deadline - time.monotonic()))
            os.read(self._inotify, 65536)


class Arrivals:
    """NameOwnerChanged of the private bus from construction on."""

    _RULE = MatchRule(type="signal", interface="org.freedesktop.DBus", member="NameOwnerChanged")

    def __init__(self, address: str) -> None:
        self._connection = open_dbus_connection(address)
        self._connection.send_and_get_reply(message_bus.AddMatch(self._RULE))

    def __enter__(self) -> Arrivals:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def until(self, fits: Callable[[DBusConnection, str, str], bool], what: str, seconds: float = SECONDS) -> None:
        """Until a name gets a new owner and `fits(connection, name, owner)`."""
        deadline = time.monotonic() + seconds
        with self._connection.filter(self._RULE) as queue:
            while True:
                left = deadline - time.monotonic()
                if left <= 0:
                    raise TimeoutError(f"{what}: not after {seconds:.0f} s")
                message = self._connection.recv_until_filtered(queue, timeout=left)
                name, _, owner = message.body
                if owner and fits(self._connection, name, owner):
                    return


def uid_of(connection: DBusConnection, name: str) -> int:
    reply = connection.send_and_get_reply(message_bus.GetConnectionUnixUser(name))
    return int(reply.body[0]) if HeaderFields.error_name not in reply.header.fields else -1


# --- processes ---------------------------------------------------------------------------------------------------
def arguments_of(pid: int) -> list[str]:
    """The command line of a process, empty for one that is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
    except (FileNotFoundError, ProcessLookupError):
        return []


def processes() -> list[int]:
    return [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]


def _status_of(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the state on (proc(5)), as of an ended process where there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return ["Z", "0"]


def parent_of(pid: int) -> int:
    return int(_status_of(pid)[1])


def is_zombie(pid: int) -> bool:
    """Has it ended, so that nothing of it is left but its status for whoever is its parent?"""
    return _status_of(pid)[0] == "Z"


class Runtime:
    """One private bus and one core; `start` and `stop` may alternate, cages outlive `kill`."""

    def __init__(self, *through: str, prefix: Path = PREFIX) -> None:
        """`through` is a command that executes the words after it, such as unshare(1)."""
        self._through, self.prefix = through, prefix
        # Short, because the addresses of sockets below it may have 107 bytes.
        self.top = Path(tempfile.mkdtemp(prefix="cages-"))
        self.top.chmod(0o755)
        self.state, self.run = self.top / "state", self.top / "run"
        self.storage = self.state / "storage"
        self.services = self.top / "services"
        """What the private bus can start, which is nothing but within `bus_waits_for`."""
        self.cgroup = f"cage-runtime-{self.top.name}"
        self.address = f"unix:path={self.top}/bus"
        self.config = self.top / "caged.conf"
        self.config.write_text(CAGED_CONFIGURATION.format(top=self.top, prefix=prefix, cgroup=self.cgroup))
        self._log: IO[bytes] = (self.top / "log").open("ab")
        self._bus = self._start_bus()
        self.supervisor: subprocess.Popen[bytes] | None = None
        self._hierarchy = -1

    # --- coming and going ------------------------------------------------------------------------------------
    def _start_bus(self) -> subprocess.Popen[bytes]:
        file = self.top / "bus.conf"
        self.services.mkdir()
        file.write_text(system_bus.configuration(self.top / "bus", services=self.services))
        read, write = os.pipe()
        process = subprocess.Popen(
            ["dbus-daemon", f"--config-file={file}", "--nofork", "--nopidfile", f"--print-address={write}"],
            pass_fds=(write,), stdout=self._log, stderr=self._log)
        os.close(write)
        wait_readable(read, "the private bus")
        assert os.read(read, 4096), f"the private bus did not start:\n{self.log()}"
        os.close(read)
        return process

    def start(self) -> None:
        """Start the core and wait until all of it is ready."""
        read, write = os.pipe()
        self.supervisor = subprocess.Popen(
            [*self._through, self.prefix / "bin/caged", "--standalone", "--config", self.config,
             "--ready-fd", str(write)],
            pass_fds=(write,), env=self.environment(), stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log)
        os.close(write)
        wait_readable(read, "the core", 2 * SECONDS)
        said = os.read(read, 16)
        os.close(read)
        assert said == b"ready\n", f"caged did not start:\n{self.log()}"
        self._open_hierarchy()

    @contextlib.contextmanager
    def bus_waits_for_caged(self) -> Iterator[None]:
        """In the block, the bus keeps calls of caged while there is none, as where systemd starts it: it has a program
        for that name, which is none but takes its time."""
        service = self.services / f"{CORE}.service"
        service.write_text(f"[D-BUS Service]\nName={CORE}\nExec=/bin/sleep 15\n")
        self._reload_bus()
        try:
            yield
        finally:
            service.unlink()
            self._reload_bus()

    def _reload_bus(self) -> None:
        with contextlib.closing(open_dbus_connection(self.address)) as connection:
            connection.send_and_get_reply(new_method_call(message_bus, "ReloadConfig"), timeout=SECONDS)

    def stop(self) -> None:
        """End the core as a person would; its cages go on."""
        if self.supervisor is not None:
            self.supervisor.terminate()
            self.supervisor.wait(SECONDS)
            self.supervisor = None

    def restart(self) -> None:
        self.stop()
        self.start()

    def remove(self) -> None:
        """End all that is left, bus and directory included; nothing of the runtime's may be left by then."""
        self.stop()
        self._bus.terminate()
        self._bus.wait(SECONDS)
        self._log.close()
        assert not self.subtree().exists(), "the spawner takes its empty cgroup along"
        os.close(self._hierarchy)
        shutil.rmtree(self.top)

    def _open_hierarchy(self) -> None:
        """Hold the cgroup hierarchy, which the spawner has mounted where nobody else sees it."""
        if self._hierarchy < 0:
            mounted = f"/proc/{self.process('cage-spawner')}/root{self.run}/cgroup"
            self._hierarchy = os.open(mounted, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    # --- what there is ---------------------------------------------------------------------------------------
    def environment(self) -> dict[str, str]:
        return {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", "HOME": "/root",
                "DBUS_SYSTEM_BUS_ADDRESS": self.address}

    def log(self) -> str:
        return (self.top / "log").read_text(errors="replace")

    def subtree(self) -> Path:
        """What the cages' cgroups are in where no systemd manages them."""
        return Path(f"/proc/self/fd/{self._hierarchy}", self.cgroup)

    def cgroups(self) -> dict[str, Path]:
        """The cgroup of each cage that has one, by uuid."""
        top = Path(f"/proc/self/fd/{self._hierarchy}")
        entries = [*self.subtree().glob("*/"), *top.joinpath(*slice_of(runtime_of(self.cgroup))).glob("*.scope/*/")]
        return {entry.name: entry for entry in entries if not entry.suffix}  # else one beside a cage's

    def process(self, program: str) -> int:
        """The pid of one of our processes, one of the supervisor's children; of mediators, the one of files, unless
        its name goes after a space."""
        assert self.supervisor is not None
        name, _, mediator = program.partition(" ")
        for pid in processes():
            words = arguments_of(pid)
            if parent_of(pid) == self.supervisor.pid and any(word.endswith(f"/bin/{name}") for word in words[:4]) \
                    and (name != "cage-mediator" or (mediator or "files") in words):
                return pid
        raise LookupError(f"{program} does not run")

    def cage_processes(self, uuid: str) -> list[int]:
        """Every process of a cage, also of those that its programs moved into cgroups below its own."""
        pids: list[int] = []
        for directory, _, _ in os.walk(self.cgroups()[uuid]):
            pids += map(int, Path(directory, "cgroup.procs").read_text().split())
        return pids

    def ranges(self) -> dict[str, int]:
        """The recorded id range of every cage, by uuid; storage that comes or goes has a prefix."""
        entries = [*self.storage.iterdir(), *(self.run / "storage").iterdir()]
        return {entry.name: _range_of(entry) for entry in entries}

    # --- driving ---------------------------------------------------------------------------------------------
    def popen(self, *words: str, **options: Any) -> subprocess.Popen[bytes]:
        command = [str(self.prefix / "bin/cagectl"), *words]
        return subprocess.Popen(command, **{"env": self.environment(), "stdin": subprocess.DEVNULL, **options})

    def cagectl(self, *words: str, input: bytes | None = None, seconds: float = SECONDS) -> Ended:  # noqa: A002
        """Run cagectl to its end, with `input` or nothing on its standard input."""
        stdin = subprocess.DEVNULL if input is None else subprocess.PIPE
        with self.popen(*words, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            try:
                output, errors = process.communicate(input, timeout=seconds)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
        return subprocess.CompletedProcess(words, process.returncode, output, errors)

    def ok(self, *words: str, input: bytes | None = None) -> str:  # noqa: A002
        """As `cagectl`, and it has to succeed; its output."""
        ended = self.cagectl(*words, input=input)
        assert ended.returncode == 0, f"{words}: {ended.returncode}: {ended.stderr.decode()}"
        return ended.stdout.decode()

    def json(self, *words: str) -> Any:
        return json.loads(self.ok("--json=short", *words))

    def call(self, member: str, signature: str, *arguments: Any) -> Any:
        """A call of the manager's interface without cagectl; the body of the answer."""
        with contextlib.closing(open_dbus_connection(self.address)) as connection:
            manager = DBusAddress("/org/cageruntime/Core1", CORE, f"{CORE}.Manager")
            return connection.send_and_get_reply(new_method_call(manager, member, signature, arguments),
                                                 timeout=SECONDS).body

    def events(self, kind: str = "") -> list[dict[str, Any]]:
        """The fields of all events of that kind, or of all, in the chain as it is on disk: of what TailAudit gives, one
        is lost at the other end with each that is new."""
        lines = [line for file in sorted((self.state / "audit").glob("*.jsonl"))
                 for line in file.read_bytes().split(b"\n")[:-1] if kind.encode() in line]
        return [event["fields"] for event in map(json.loads, lines) if kind in ("", event["kind"])]

    def state_of(self, name: str) -> str | None:
        states = {cage["name"]: cage["state"] for cage in self.json("list")}
        return states.get(name)

    # --- killing ---------------------------------------------------------------------------------------------
    def kill(self, program: str, number: signal.Signals = signal.SIGKILL) -> None:
        """Signal one of our processes; returns when it is gone, which is before it has been started again."""
        pid = self.process(program)
        pidfd = os.pidfd_open(pid)
        try:
            signal.pidfd_send_signal(pidfd, number)
            wait_readable(pidfd, f"the end of {program}")
        finally:
            os.close(pidfd)

    @contextlib.contextmanager
    def coming_back(self, program: str) -> Iterator[None]:
        """Leaves the block when `program`, which is killed in it, serves again."""
        if program == "cage-spawner":
            before = _made(self.run / "spawner.sock")
            with Changes(self.run) as changes:
                yield
                changes.until(lambda: _made(self.run / "spawner.sock") > before, "the spawner's return")
            self.ok("doctor")
            return
        uid = pwd.getpwnam(USERS[program]).pw_uid
        name = {"caged": CORE, "cage-apps": APPS}.get(program)
        with Arrivals(self.address) as arrivals:
            yield
            arrivals.until(lambda bus, new, owner: new == (name or owner) and uid_of(bus, owner) == uid,
                           f"the return of {program}")

    def kill_and_wait(self, program: str, number: signal.Signals = signal.SIGKILL) -> None:
        """Signal one of our processes, which ends by it, and wait until it serves again."""
        with self.coming_back(program):
            self.kill(program, number)

    def gateway_bus(self, uuid: str) -> list[int]:
        """The processes of the cage's gateway, on the host's side of the wall."""
        group = self.cgroups()[uuid].with_name(f"{uuid}.gateway") / "cgroup.procs"
        return [int(pid) for pid in group.read_text().split()] if group.exists() else []


def _range_of(entry: Path) -> int:
    """-1 while it is being made or deleted."""
    try:
        return int((entry / "range").read_text())
    except (FileNotFoundError, ValueError):
        return -1


def _made(path: Path) -> int:
    """When the file was made or given to somebody else, in nanoseconds; 0 where it is not there."""
    try:
        return path.stat().st_ctime_ns
    except FileNotFoundError:
        return 0


class Cage:
    """A cage of the tests, by its name."""

    def __init__(self, runtime: Runtime, name: str) -> None:
        self.runtime, self.name = runtime, name

    @property
    def status(self) -> Mapping[str, Any]:
        status: Mapping[str, Any] = self.runtime.json("status", self.name)
        return status

    @property
    def uuid(self) -> str:
        return str(self.status["uuid"])

    @property
    def base(self) -> int:
        """The first of its host uids."""
        return self.runtime.ranges()[self.uuid] << 16

    def enter(self, *words: str, input: bytes | None = None, root: bool = False,  # noqa: A002
              seconds: float = SECONDS) -> Ended:
        as_root = ["--root"] if root else []
        return self.runtime.cagectl("enter", self.name, *as_root, "--", *words, input=input, seconds=seconds)

    def sh(self, script: str, input: bytes | None = None) -> str:  # noqa: A002
        """The output of a shell script that has to succeed."""
        ended = self.enter("/bin/sh", "-c", script, input=input)
        assert ended.returncode == 0, f"{script}: {ended.returncode}: {ended.stderr.decode()}"
        return ended.stdout.decode()

    def popen(self, *words: str, **options: Any) -> subprocess.Popen[bytes]:
        return self.runtime.popen("enter", self.name, "--", *words, **options)

    def destroy(self) -> None:
        self.runtime.ok("destroy", self.name, "--yes")
