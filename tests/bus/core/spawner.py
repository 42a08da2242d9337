# SPDX-License-Identifier: LGPL-2.1-or-later
"""A spawner that makes nothing: it speaks cage_runtime.spawner.spec over the socket and keeps what would stand.

`faults` says which requests fail; `silent` which are never answered, as by a spawner that is killed meanwhile, and
`mute` which are carried out and not answered.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from cage_runtime.spawner import spec, wire

KERNEL = spec.Host(
    kernel="6.12.0", cgroup="/sys/fs/cgroup/cage-runtime", controllers=["cpu", "memory", "pids"], landlock_abi=6,
    user_namespaces=1000, memfd_noexec=True, lsm="", lsm_hooks=40, proc_mem="never", ranges=4094, ranges_free=4000,
)


BORN = 1764140000.0
"""When every cage began, in seconds of the epoch."""


class FakeSpawner:
    """Serves in a thread of its own; one connection at a time, as the real one."""

    def __init__(self, run: Path) -> None:
        self._run = run
        self._exports = run.parent / "state/exports"
        self.requests: list[spec.AnyRequest] = []
        """What was asked, but for what caged asks beside the rest."""
        self.host = KERNEL
        self.enforcement = spec.Enforcement(xid=16, lsm="", denials={})
        """What is enforced for each cage."""
        self.new: set[str] = set()
        self.stored: set[str] = set()
        self.ephemeral: set[str] = set()
        self.condemned: set[str] = set()
        self.running: set[str] = set()
        self.welcome: list[int] = []
        """Persons who have a folder for menu entries."""
        self.paused: set[str] = set()
        self.gateways: dict[str, int] = {}
        """The socket of each gateway's bus that would run; connections wait in it."""
        self.faults: dict[type[spec.Request], spec.Fault] = {}
        self.silent: set[type[spec.Request]] = set()
        self.mute: set[type[spec.Request]] = set()
        self._listener: socket.socket | None = None
        self._peer: socket.socket | None = None
        self._wake, self._woken = os.pipe2(os.O_CLOEXEC)
        self._thread: threading.Thread | None = None
        self.asked = threading.Condition()
        """Notified after each request."""

    def tell(self, event: spec.Event) -> None:
        """Of its own accord, to the caged that is connected."""
        with self.asked:
            assert self._peer is not None
            wire.send(self._peer, spec.encode(event))

    # --- coming and going ------------------------------------------------------------------------------------
    def start(self) -> None:
        path = self._run / "spawner.sock"
        path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        self._listener.bind(str(path))
        path.chmod(0o666)
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def stop(self) -> None:
        """As by SIGKILL: nobody listens any more, and whoever waits for an answer sees the connection end."""
        if self._thread is not None and self._listener is not None:
            os.write(self._woken, b"!")
            self._thread.join()
            os.read(self._wake, 1)
            self._listener.close()
            (self._run / "spawner.sock").unlink()
            self._thread = None

    def close(self) -> None:
        self.stop()
        for uuid in list(self.gateways):
            self.drop_gateway(uuid)
        os.close(self._wake)
        os.close(self._woken)

    def wait_for(self, kind: type[spec.Request], seconds: float = 10.0) -> None:
        """Until a request of that kind has come."""
        self.wait_until(lambda: any(isinstance(asked, kind) for asked in self.requests), seconds)

    def wait_until(self, condition: Callable[[], bool], seconds: float = 10.0) -> None:
        """Until a request has made `condition` true."""
        with self.asked:
            if not self.asked.wait_for(condition, seconds):
                raise TimeoutError(f"not within {seconds:.0f} s; asked for: {', '.join(self.kinds())}")

    def end(self, uuid: str) -> None:
        """The cage ends by itself."""
        self.running.discard(uuid)
        if self._peer is not None:
            wire.send(self._peer, spec.encode(spec.Ended(uuid=uuid)))

    def end_gateway(self, uuid: str) -> None:
        """The bus of the cage's gateway ends, and caged is told."""
        self.drop_gateway(uuid)
        if self._peer is not None:
            wire.send(self._peer, spec.encode(spec.GatewayEnded(uuid=uuid)))

    def drop_gateway(self, uuid: str) -> None:
        if uuid in self.gateways:
            os.close(self.gateways.pop(uuid))

    @property
    def anything(self) -> set[str]:
        """All that stands."""
        return self.running | self.new | self.stored | self.ephemeral | self.condemned

    def kinds(self) -> list[str]:
        return [type(request).__name__ for request in self.requests]

    # --- serving ---------------------------------------------------------------------------------------------
    def _serve(self) -> None:
        with contextlib.ExitStack() as held:
            while self._readable(self._listener):
                if self._listener is None:
                    return
                self._peer, _ = self._listener.accept()
                held.callback(self._peer.close)
                self._attend(self._peer)

    def _readable(self, connection: socket.socket | None) -> bool:
        """Waits for `connection`; False where it is time to stop."""
        ready, _, _ = select.select([connection, self._wake], [], [])
        return self._wake not in ready

    def _attend(self, peer: socket.socket) -> None:
        while self._readable(peer):
            try:
                received = wire.receive(peer)
            except ConnectionResetError:  # caged was killed, and had an answer to read
                return
            if received is None:
                return
            message, descriptors = received
            request = spec.decode_request(message)
            with self._noticed(request):
                if type(request) not in self.silent:
                    answer = spec.encode(self._answer(request, descriptors))
                    if type(request) not in self.mute:
                        wire.send(peer, answer)
            wire.close_all(descriptors)

    @contextlib.contextmanager
    def _noticed(self, request: spec.AnyRequest) -> Iterator[None]:
        with self.asked:
            if not isinstance(request, spec.Welcome | spec.AdmitGateway):
                self.requests.append(request)
            yield
            self.asked.notify_all()

    def _answer(self, request: spec.AnyRequest, descriptors: list[int]) -> spec.Reply:
        fault = self.faults.get(type(request))
        if fault is not None:
            return spec.Reply(id=request.id, fault=fault)
        match request:
            case spec.Describe():
                return spec.Reply(id=request.id, host=self.host)
            case spec.Standing():
                return spec.Reply(id=request.id, standings=spec.Standings(
                    running=dict.fromkeys(sorted(self.running), BORN), paused=sorted(self.paused),
                    gateways=sorted(self.gateways), new=sorted(self.new),
                    stored=sorted(self.stored), ephemeral=sorted(self.ephemeral), condemned=sorted(self.condemned)))
            case spec.MakeStorage():
                (self.ephemeral if request.ephemeral else self.new).add(request.uuid)
            case spec.Keep():
                self.new.discard(request.uuid)
                self.stored.add(request.uuid)
            case spec.Condemn():
                if request.uuid in self.new | self.stored:
                    self.new.discard(request.uuid)
                    self.stored.discard(request.uuid)
                    self.condemned.add(request.uuid)
            case spec.Birth():
                self._gateway(request.uuid).mkdir(mode=0o777)
                self._gateway(request.uuid).chmod(0o777)
                self.running.add(request.uuid)
                return spec.Reply(id=request.id, since=BORN)
            case spec.OpenGateway():
                if request.uuid not in self.gateways:
                    self.gateways[request.uuid] = os.dup(descriptors[0])
            case spec.Stop():
                self._stop(request.uuid)
            case spec.Remove():
                if request.uuid in self.stored:
                    fault = spec.Fault(kind="WrongState", sentence="the storage is kept")
                    return spec.Reply(id=request.id, fault=fault)
                for storage in (self.new, self.ephemeral, self.condemned):
                    storage.discard(request.uuid)
            case spec.Freeze():
                (self.paused.add if request.frozen else self.paused.discard)(request.uuid)
            case spec.Spawn():
                run_echo(descriptors[0], request.argv)
            case spec.Inspect():
                insight = spec.Insight(processes=2 if request.uuid in self.running else 0, documents=True)
                return spec.Reply(id=request.id, insight=insight)
            case spec.Enforced():
                return spec.Reply(id=request.id, enforcement=self.enforcement)
            case spec.Welcome():
                self._welcome(request.uids)
            case spec.Logs():
                return spec.Reply(id=request.id, log=b"hello\n")
        return spec.Reply(id=request.id)

    def _welcome(self, uids: list[int]) -> None:
        """All is caged's there, who is us or nobody."""
        self.welcome = list(uids)
        for uid in uids:
            directory = self._exports
            for name in (str(uid), "share", "applications"):
                directory = directory / name
                directory.mkdir(exist_ok=True)
                directory.chmod(0o777)

    def _gateway(self, uuid: str) -> Path:
        return self._run / "gateways" / uuid

    def _stop(self, uuid: str) -> None:
        self.running.discard(uuid)
        self.paused.discard(uuid)
        self.drop_gateway(uuid)
        if self._gateway(uuid).is_dir():
            (self._gateway(uuid) / "bus").unlink(missing_ok=True)
            self._gateway(uuid).rmdir()


def run_echo(channel: int, argv: list[str]) -> None:
    """What cage-init would do for a command that prints its arguments and exits with 7."""
    inner_in, outer_in = os.pipe2(os.O_CLOEXEC)
    outer_out, inner_out = os.pipe2(os.O_CLOEXEC)
    outer_err, inner_err = os.pipe2(os.O_CLOEXEC)
    with socket.socket(fileno=os.dup(channel)) as end:
        wire.send(end, json.dumps({"event": "started"}).encode(), [outer_in, outer_out, outer_err])
        os.write(inner_out, (" ".join(argv) + "\n").encode())
        wire.send(end, json.dumps({"event": "exit", "status": 7}).encode())
    wire.close_all([inner_in, outer_in, outer_out, inner_out, outer_err, inner_err])
