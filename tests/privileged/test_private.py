# SPDX-License-Identifier: LGPL-2.1-or-later
"""Nobody looks into a private cage: not by cagectl, whoever it is, and not by a caged that is in somebody's hands."""

from __future__ import annotations

import json
import shutil
import socket
import tempfile
import uuid as uuids
from collections.abc import Iterator
from pathlib import Path

import pytest

from cage_runtime.spawner import wire
from cage_runtime.spawner.spec import (
    AnyRequest,
    Birth,
    Enforced,
    Inspect,
    Limits,
    Logs,
    MakeStorage,
    Remove,
    Reply,
    Spawn,
    Stop,
    decode_from_init,
    encode,
)
from tests.privileged.runtime import Runtime
from tests.privileged.test_init import Spawner, event

pytestmark = pytest.mark.privileged

SHELL = ("/bin/sh", "-c", "cat /etc/hostname")
RUN = ("/usr/bin/flatpak", "run", "--no-documents-portal")
CLOSED, NOTHING_ELSE = "nobody reads its log", "nothing is started in it but its own applications"


@pytest.fixture
def top() -> Iterator[Path]:
    top = Path(tempfile.mkdtemp(prefix="private-"))
    top.chmod(0o755)
    yield top
    shutil.rmtree(top)


@pytest.fixture
def spawner(top: Path) -> Iterator[Spawner]:
    """Asked by this test, which is what a caged in somebody's hands could ask."""
    spawner = Spawner(top)
    yield spawner
    spawner.stop()


class Cage:
    def __init__(self, spawner: Spawner, *, stored: bool, born: bool) -> None:
        """What caged says of its being private, when storage is made and when it is born."""
        self.spawner, self.uuid = spawner, uuids.uuid4().hex
        done(spawner.ask(MakeStorage(id=0, uuid=self.uuid, ephemeral=True, private=stored)))
        self.bear(private=born)

    def bear(self, *, private: bool) -> None:
        done(self.spawner.ask(Birth(
            id=0, uuid=self.uuid, name="quiet", level="public", compartments=[], exec_home=False, limits=Limits(),
            processes=256, home_bytes=1 << 22, home_files=256, private=private)))

    def spawn(self, *argv: str, delivery: int | None = None, **change: object) -> tuple[Reply, socket.socket]:
        near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        near.settimeout(30)
        own = [] if delivery is None else [delivery]
        with far:
            return self.spawner.ask(spawned(self.uuid, *argv, own_input=bool(own), **change), far.fileno(), *own), near

    def end(self) -> None:
        done(self.spawner.ask(Stop(id=0, uuid=self.uuid, seconds=0)))


def spawned(uuid: str, *argv: str, **change: object) -> Spawn:
    profile = "delivery" if change.get("own_input") else "session"
    return Spawn(id=0, uuid=uuid, argv=list(argv), **{"profile": profile, **change})  # type: ignore[arg-type]


def done(reply: Reply) -> Reply:
    assert reply.fault is None, reply.fault
    return reply


def closed(reply: Reply, why: str) -> None:
    assert reply.fault is not None
    assert (reply.fault.kind, reply.fault.sentence) == ("PrivateCage", f"the cage is private: {why}")


def to_init(top: Path, uuid: str, request: AnyRequest, *descriptors: int) -> Reply:
    """Asked of cage-init itself, by who has even become of the spawner."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.settimeout(30)
        connection.connect(str(top / "run/cages" / uuid / "init.sock"))
        wire.send(connection, encode(request), descriptors)
        while True:
            received = wire.receive(connection)
            assert received is not None
            wire.close_all(received[1])  # the listener of the cage's calls, which comes first
            reply = decode_from_init(received[0])
            if isinstance(reply, Reply):
                return reply


@pytest.mark.parametrize(("stored", "born"), [(True, True), (True, False), (False, True)])
def test_a_caged_in_somebodys_hands_does_not_get_in(spawner: Spawner, stored: bool, born: bool) -> None:
    """That storage is private stays with it, whatever a birth says."""
    cage = Cage(spawner, stored=stored, born=born)
    try:
        for user in ("user", "root"):
            reply, near = cage.spawn(*SHELL, user=user)
            near.close()
            closed(reply, NOTHING_ELSE)
        closed(spawner.ask(Logs(id=0, uuid=cage.uuid)), CLOSED)
        assert done(spawner.ask(Inspect(id=0, uuid=cage.uuid))).insight is not None
        enforcement = done(spawner.ask(Enforced(id=0, uuid=cage.uuid))).enforcement
        assert enforcement is not None
        assert (enforcement.xid, enforcement.denials) == (0, {})
        assert enforcement.lsm
    finally:
        cage.end()
        done(spawner.ask(Remove(id=0, uuid=cage.uuid)))


def test_a_cage_with_private_storage_is_private_in_its_next_life_too(spawner: Spawner) -> None:
    cage = Cage(spawner, stored=True, born=True)
    cage.end()
    cage.bear(private=False)
    reply, near = cage.spawn(*SHELL)
    near.close()
    closed(reply, NOTHING_ELSE)
    cage.end()
    done(spawner.ask(Remove(id=0, uuid=cage.uuid)))


def test_its_applications_and_deliveries_go_on(spawner: Spawner, tmp_path: Path) -> None:
    cage = Cage(spawner, stored=True, born=True)
    try:
        reply, near = cage.spawn(*RUN, "org.example.NotThere")
        done(reply)
        assert event(near)["event"] == "started"
        assert event(near)["status"] == 1  # flatpak's, which does not find it
        near.close()
        file = tmp_path / "figures"
        file.write_bytes(b"figures")
        with file.open("rb") as staged:
            reply, near = cage.spawn("/opt/cage-runtime/bin/cage-mediator", "files", "--deliver", "work", "no size",
                                     delivery=staged.fileno())
        done(reply)
        assert event(near)["event"] == "started"
        near.close()
    finally:
        cage.end()
        done(spawner.ask(Remove(id=0, uuid=cage.uuid)))


def test_cage_init_refuses_it_too_and_the_next_spawner(top: Path) -> None:
    first = Spawner(top)
    cage = Cage(first, stored=False, born=True)
    first.stop()  # or it would take the cage for ended when cage-init hears somebody else
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with near, far:
        closed(to_init(top, cage.uuid, spawned(cage.uuid, *SHELL, user="root"), far.fileno()), NOTHING_ELSE)
    closed(to_init(top, cage.uuid, Logs(id=1, uuid=cage.uuid)), CLOSED)
    record = json.loads((top / "run/cages" / cage.uuid / "record.json").read_bytes())
    assert record["private"] is True
    (top / "ready").unlink()
    second = cage.spawner = Spawner(top)
    try:
        reply, near = cage.spawn(*SHELL)
        near.close()
        closed(reply, NOTHING_ELSE)
    finally:
        cage.end()
        done(second.ask(Remove(id=0, uuid=cage.uuid)))
        second.stop()


def lsm(runtime: Runtime) -> tuple[bool, str]:
    """Whether security contexts are enforced here, and what doctor says of them."""
    (check,) = (check for check in runtime.json("doctor") if check["check"] == "security context")
    return check["state"] == "ok", check["detail"]


def test_root_and_the_owner_are_refused_by_cagectl(runtime: Runtime) -> None:
    runtime.ok("create", "quiet", "--private", "--ephemeral")
    try:
        for line in (("enter", "quiet", "--", "true"), ("enter", "quiet", "--root", "--", "true"), ("logs", "quiet")):
            ended = runtime.cagectl(*line)
            assert ended.returncode == 126, ended
            assert b"quiet is private; nobody enters it or reads its log, also not who runs this host" in ended.stderr
        status, (enforced, why) = runtime.json("status", "quiet"), lsm(runtime)
        assert (status["private"], status["state"], status["denials"]) == (True, "running", {})
        assert status["walls"]["namespaces"] == {"enforced": True, "detail": "of its own"}
        assert status["walls"]["lsm"]["enforced"] is enforced
        shown = runtime.ok("status", "quiet")
        assert "namespaces: of its own" in shown
        assert enforced or f"lsm: not enforced: {why}" in shown
        for verb in ("pause", "resume", "stop", "start", "kill", "show"):
            runtime.ok(verb, "quiet")
    finally:
        runtime.ok("destroy", "quiet", "--yes")


def test_what_requires_the_lsm_does_not_run_without(runtime: Runtime) -> None:
    enforced, why = lsm(runtime)
    ended = runtime.cagectl("create", "strict", "--require", "lsm", "--ephemeral")
    if enforced:
        runtime.ok("destroy", "strict", "--yes")
    said = "" if enforced else f'cagectl: the definition requires "lsm", which is not enforced here: {why}\n'
    assert (ended.returncode, ended.stderr.decode()) == (0 if enforced else 125, said)
    assert runtime.json("list") == []
