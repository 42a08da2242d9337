# SPDX-License-Identifier: LGPL-2.1-or-later
"""The security contexts of cages as the spawner keeps them, with contexts that no kernel enforces."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import cast

import pytest

from cage_runtime.errors import HostUnsupported
from cage_runtime.spawner import record, security
from cage_runtime.spawner.loop import Loop
from cage_runtime.spawner.lsm.contexts import CORE, FIRST, Context, Contexts
from cage_runtime.spawner.lsm.operations import Operation
from cage_runtime.spawner.security import Security


class FakeContexts:
    """Remembers what it was told; `deny` is what a kernel would do when something is tried."""

    def __init__(self) -> None:
        self.made: dict[int, Context] = {}
        self.said: list[tuple[str, int]] = []
        self._counts: dict[int, dict[Operation, int]] = {}
        self._read, self._write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self.looks = 0

    def new(self, context: Context) -> int:
        xid = FIRST + len(self.said)
        self.said.append(("new", xid))
        self.made[xid] = context
        return xid

    def enter(self, pidfd: int, xid: int) -> None:
        self.said.append((f"enter {os.readlink(f'/proc/self/fd/{pidfd}')}", xid))

    def tag_socket(self, descriptor: int, xid: int) -> None:
        self.said.append((f"socket {descriptor}", xid))

    def tag_superblock(self, path_descriptor: int, xid: int) -> None:
        self.said.append((f"superblock {os.readlink(f'/proc/self/fd/{path_descriptor}')}", xid))

    def forget(self, xid: int) -> None:
        self.made.pop(xid, None)
        self._counts.pop(xid, None)

    def denials(self) -> dict[int, dict[Operation, int]]:
        self.looks += 1
        return {xid: dict(counts) for xid, counts in self._counts.items()}

    def denied(self, xid: int) -> dict[Operation, int]:
        return dict(self._counts.get(xid, {}))

    def events(self) -> int:
        return self._read

    def read_events(self) -> list[object]:
        return [*os.read(self._read, 65536)]

    def hooks(self) -> tuple[str, ...]:
        return ("task_kill", "ptrace_access_check")

    def deny(self, xid: int, operation: Operation, times: int = 1) -> None:
        counts = self._counts.setdefault(xid, {})
        counts[operation] = counts.get(operation, 0) + times
        os.write(self._write, b"!")

    def close(self) -> None:
        os.close(self._read)
        os.close(self._write)


class World:
    def __init__(self, contexts: FakeContexts) -> None:
        self.loop, self.contexts = Loop(), contexts
        self.told: list[tuple[int, dict[str, int]]] = []
        self.security = Security(self.loop, self._denied, cast(Contexts, contexts), "")

    def _denied(self, xid: int, counts: Mapping[str, int]) -> None:
        self.told.append((xid, dict(counts)))

    def turn_until_told(self, number: int) -> None:
        while len(self.told) < number:
            self.loop.turn()


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setattr(security, "LOOK_SECONDS", 0.01)
    contexts = FakeContexts()
    yield World(contexts)
    contexts.close()


def test_a_cage_has_a_context_as_its_definition_wants_it(world: World) -> None:
    plain = world.security.new(exec_home=False, private=False)
    special = world.security.new(exec_home=True, private=True)
    assert plain.xid != special.xid
    assert not world.contexts.made[plain.xid].execute_writable
    assert not world.contexts.made[plain.xid].private
    assert world.contexts.made[special.xid].execute_writable
    assert world.contexts.made[special.xid].private


def test_what_a_cage_owns_is_labelled(world: World, tmp_path: Path) -> None:
    label = world.security.new(exec_home=False, private=False)
    label.enter(pidfd := os.pidfd_open(os.getpid()))
    os.close(pidfd)
    label.admit(7)
    label.own(home := os.open(tmp_path, os.O_PATH))
    os.close(home)
    assert world.contexts.said[1:] == [
        ("enter anon_inode:[pidfd]", label.xid), ("socket 7", label.xid), (f"superblock {tmp_path}", label.xid)]


def test_a_host_without_contexts_says_why_and_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    why = "libbpf.so.1 is not on this host; install libbpf1"

    def refuse() -> Contexts:
        raise HostUnsupported(why)

    monkeypatch.setattr(Contexts, "open", refuse)
    absent = Security.open(Loop(), lambda _xid, _counts: None)
    label = absent.new(exec_home=False, private=True)
    label.enter(-1)
    label.admit(-1)
    label.own(-1)
    absent.forget(label.xid)
    absent.tell_all()
    assert (absent.why, absent.hooks, label.xid, absent.why_not(label.xid)) == (why, 0, CORE, why)
    assert absent.denials(17) == {}


def test_a_kernel_that_refuses_to_load_is_a_host_without_contexts(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> Contexts:
        raise PermissionError(1, "Operation not permitted", "bpf")

    monkeypatch.setattr(Contexts, "open", refuse)
    assert "Operation not permitted" in Security.open(Loop(), lambda _xid, _counts: None).why


def test_a_cage_that_was_started_before_there_were_contexts_is_in_none(world: World) -> None:
    assert "stop it and start it again" in world.security.why_not(CORE)
    assert world.security.why_not(FIRST) == ""


def test_a_flood_is_looked_at_once(world: World) -> None:
    one, two = (world.security.new(exec_home=False, private=False).xid for _ in range(2))
    for _ in range(1000):
        world.contexts.deny(one, Operation.KILL)
    world.contexts.deny(two, Operation.CONNECT, 3)
    world.turn_until_told(2)
    assert sorted(world.told) == [(one, {"kill": 1000}), (two, {"connect": 3})]
    assert world.contexts.looks == 1
    world.contexts.deny(one, Operation.PTRACE)
    world.turn_until_told(3)
    assert world.told[2] == (one, {"kill": 1000, "ptrace": 1})
    assert world.security.denials(one) == {"kill": 1000, "ptrace": 1}


def test_who_listens_anew_is_told_all_there_is(world: World) -> None:
    xid = world.security.new(exec_home=False, private=False).xid
    world.contexts.deny(xid, Operation.KILL)
    world.turn_until_told(1)
    world.security.tell_all()
    world.security.tell_all()
    world.contexts.deny(xid, Operation.KILL)  # nothing else would wake a pipe that is empty, as a ring buffer may be
    world.turn_until_told(2)
    assert world.told[1] == (xid, {"kill": 2})


def test_what_a_cage_was_refused_at_last_is_told_when_it_is_forgotten(world: World) -> None:
    xid = world.security.new(exec_home=False, private=False).xid
    world.contexts.deny(xid, Operation.KILL, 5)
    world.security.forget(xid)
    assert world.told == [(xid, {"kill": 5})]
    assert world.contexts.made == {}
    world.security.forget(xid)
    world.security.forget(CORE)
    assert world.told == [(xid, {"kill": 5})]


# --- the record of a running cage ----------------------------------------------------------------------------------
def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    assert record.read(tmp_path) == record.UNKNOWN
    written = record.Record(xid=4711, private=True)
    record.write(tmp_path, written)
    assert record.read(tmp_path) == written


@pytest.mark.parametrize("content", [b"", b"{", b'{"xid":-1}', b'{"xid":1,"owner":0}', b"null"])
def test_a_record_that_is_none_of_ours_is_an_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / record.FILE).write_bytes(content)
    with pytest.raises(ValueError, match=r"."):
        record.read(tmp_path)
