# SPDX-License-Identifier: LGPL-2.1-or-later
"""The runtime under measure: installed programs on a bus, a state and a cgroup of their own, and a client of it.

Law of this room: whatever it starts or makes is gone when the context ends, also after an error or Ctrl-C.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cage_runtime.cli.client import Peer, core
from cage_runtime.scopes.spec import runtime_of, slice_of
from tests import system_bus

TOP = Path(__file__).parents[2]
READY_SECONDS = 60
@dataclass(frozen=True, kw_only=True)
class Runtime:
    prefix: Path
    supervisor: int
    """The pid of caged --standalone, the parent of every core process."""
    bus: int
    cgroup: Path
    administrator: Path
    """What stands for /etc/cage-runtime."""
    sockets: Path
    """What stands for /run/cage-runtime."""

    @property
    def cagectl(self) -> str:
        return str(self.prefix / "bin" / "cagectl")

    def processes(self) -> dict[int, str]:
        """Every process that is there because of the runtime, but its bus: pid and name."""
        names = {int(entry): _name(int(entry)) for entry in os.listdir("/proc") if entry.isdigit()}
        parents = {pid: _parent(pid) for pid in names}
        ours = {self.supervisor, *_members(self.cgroup)}
        grown = True
        while grown:
            children = {pid for pid, parent in parents.items() if parent in ours} - ours
            ours |= children
            grown = bool(children)
        return {pid: names[pid] for pid in sorted(ours) if names.get(pid)}


@contextlib.contextmanager
def running(prefix: Path, name: str) -> Iterator[Runtime]:
    """A runtime whose files are on the disk, where a host has them, and whose sockets are in /run."""
    state = Path(tempfile.mkdtemp(prefix="cage-bench-", dir="/var/tmp"))
    run = Path(tempfile.mkdtemp(prefix="cage-bench-", dir="/run"))
    cgroup = _cgroup(name)
    try:
        for folder in (state, run):
            folder.chmod(0o755)
        with _bus(run) as bus, _caged(prefix, name, state, run) as supervisor:
            yield Runtime(prefix=prefix, supervisor=supervisor, bus=bus, cgroup=cgroup,
                          administrator=state / "etc", sockets=run / "core")
    finally:
        remove_cgroup(cgroup)
        for folder in (state, run):
            shutil.rmtree(folder)


def _cgroup(name: str) -> Path:
    """Where the spawner makes cages' cgroups, as this mount namespace shows it."""
    parts = slice_of(runtime_of(name)) if Path("/run/systemd/system").is_dir() else (name,)
    return Path("/sys/fs/cgroup").joinpath(*parts)


@contextlib.contextmanager
def _bus(run: Path) -> Iterator[int]:
    configuration = run / "bus.conf"
    configuration.write_text(system_bus.configuration(run / "bus"), encoding="utf-8")
    command = ["dbus-daemon", "--nofork", "--nopidfile", f"--config-file={configuration}", "--print-address"]
    daemon = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                              start_new_session=True)
    with ended(daemon):
        assert daemon.stdout is not None
        before = os.environ.get("DBUS_SYSTEM_BUS_ADDRESS", "")
        os.environ["DBUS_SYSTEM_BUS_ADDRESS"] = daemon.stdout.readline().strip()
        try:
            yield daemon.pid
        finally:  # there may be a runtime around this one
            os.environ["DBUS_SYSTEM_BUS_ADDRESS"] = before


@contextlib.contextmanager
def _caged(prefix: Path, name: str, state: Path, run: Path) -> Iterator[int]:
    paths = {"state": state, "run": run / "core", "shipped": prefix, "administrator": state / "etc",
             "runtime": prefix, "cgroup": name}
    configuration = run / "caged.conf"
    configuration.write_text("[paths]\n" + "".join(f'{key} = "{value}"\n' for key, value in paths.items()),
                             encoding="utf-8")
    ready, told = os.pipe()
    log = state / "caged.log"
    with log.open("wb") as output:
        program = str(prefix / "bin" / "caged")
        command = [program, "--standalone", "--config", str(configuration), "--ready-fd", str(told)]
        daemon = subprocess.Popen(command, pass_fds=[told], stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                                  start_new_session=True)
    os.close(told)
    with ended(daemon), open(ready, "rb") as answer:
        if answer.read() != b"ready\n":
            raise RuntimeError(f"caged does not come up:\n{log.read_text(encoding='utf-8', errors='replace')}")
        with _emptied():
            yield daemon.pid


@contextlib.contextmanager
def _emptied() -> Iterator[None]:
    """Destroy, at the end, the cages that are left: they would outlive caged."""
    try:
        yield
    finally:
        peer = core("bench")
        for cage in peer.call("List", "a{sv}", {}, returns="aa{sv}"):
            peer.call("Destroy", "sa{sv}", cage["name"], {})
        peer.close()


@contextlib.contextmanager
def ended(process: subprocess.Popen[bytes] | subprocess.Popen[str]) -> Iterator[None]:
    """End `process` with the context."""
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(READY_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def remove_cgroup(path: Path) -> None:
    """Kill whatever is left in a cgroup of ours, and remove it when the kernel says that it is empty."""
    if not path.is_dir():
        return
    with (path / "cgroup.events").open("rb", buffering=0) as events:
        poll = select.poll()
        poll.register(events, select.POLLPRI)
        (path / "cgroup.kill").write_text("1", encoding="ascii")
        while b"populated 1" in os.pread(events.fileno(), 4096, 0):
            poll.poll(READY_SECONDS * 1000)
    for directory, _, _ in os.walk(path, topdown=False):
        os.rmdir(directory)


# --- the client -----------------------------------------------------------------------------------------------------
class Client:
    """A connected client of the bus, as a desktop's panel or an agent would be one."""

    def __init__(self) -> None:
        self._peer: Peer = core("bench")

    def create(self, name: str, *, ephemeral: bool) -> None:
        self._peer.call("Create", "sa{sv}", name, {"ephemeral": ephemeral}, returns="o")

    def destroy(self, name: str) -> None:
        self._peer.call("Destroy", "sa{sv}", name, {})

    def enter(self, name: str, *command: str) -> int:
        """Run `command` in the cage until it has ended; its exit status."""
        descriptor = self._peer.call("Enter", "sasa{sv}", name, list(command), {}, returns="h")
        given: list[int] = []
        try:
            with socket.socket(fileno=descriptor) as channel:
                while True:
                    message, descriptors, _, _ = socket.recv_fds(channel, 4096, 3)
                    given += descriptors
                    event = json.loads(message or b"{}")
                    if event.get("event") != "started":
                        return int(event.get("status", 255))
        finally:
            for descriptor in given:
                os.close(descriptor)

    def close(self) -> None:
        self._peer.close()


# --- /proc ------------------------------------------------------------------------------------------------------------
def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text(encoding="utf-8").strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def _parent(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return int(status.rpartition(")")[2].split()[1])


def _members(cgroup: Path) -> set[int]:
    files = cgroup.rglob("cgroup.procs") if cgroup.is_dir() else ()
    return {int(pid) for file in files for pid in file.read_text(encoding="ascii").split()}
