# SPDX-License-Identifier: LGPL-2.1-or-later
"""The words between caged, the spawner and cage-init: what does not fit them to the letter is not read at all."""

from __future__ import annotations

import json
from collections.abc import Callable

import msgspec
import pytest

from cage_runtime.model import ARGV_MAX
from cage_runtime.spawner.cgroup import settings
from cage_runtime.spawner.spec import (
    Ended,
    Expose,
    Fault,
    Limits,
    Reply,
    Spawn,
    Terminal,
    decode_from_init,
    decode_reply,
    decode_request,
    encode,
)

UUID = "0123456789abcdef" * 2
SPAWN = {"op": "spawn", "id": 1, "uuid": UUID, "argv": ["true"]}
BIRTH = {
    "op": "birth", "id": 1, "uuid": UUID, "name": "work", "level": "internal", "compartments": [], "exec_home": False,
    "limits": {}, "processes": 4096, "home_bytes": 4096, "home_files": 16,
}


def test_what_is_sent_is_what_arrives() -> None:
    request = Spawn(id=7, uuid=UUID, argv=["sh", "-c", "true"], terminal=Terminal(term="xterm", rows=24, columns=80))
    assert decode_request(encode(request)) == request
    for reply in (Reply(id=7, fault=Fault(kind="Failed", sentence="no")), Ended(uuid=UUID)):
        assert decode_reply(encode(reply)) == reply


@pytest.mark.parametrize(
    ("base", "change"),
    [
        (SPAWN, {"op": "format-disk"}),
        (SPAWN, {"unknown": 1}),
        (SPAWN, {"id": -1}),
        (SPAWN, {"uuid": UUID.upper()}),
        (SPAWN, {"uuid": "../../etc"}),
        (SPAWN, {"uuid": UUID + "\n"}),
        (SPAWN, {"argv": []}),
        (SPAWN, {"argv": ["x"] * (ARGV_MAX + 1)}),
        (SPAWN, {"argv": ["a\0b"]}),
        (SPAWN, {"argv": "true"}),
        (SPAWN, {"cwd": "/home\0/x"}),
        (SPAWN, {"user": "mediator"}),
        (SPAWN, {"profile": "none"}),
        (SPAWN, {"terminal": {"term": "xterm\n", "rows": 24, "columns": 80}}),
        (SPAWN, {"terminal": {"term": "xterm", "rows": 0, "columns": 80}}),
        (SPAWN, {"terminal": {"term": "xterm", "rows": 24, "columns": 10000}}),
        (BIRTH, {"name": "Work"}),
        (BIRTH, {"name": "a/b"}),
        (BIRTH, {"name": "a" * 32}),
        (BIRTH, {"limits": {"memory": 0}}),
        (BIRTH, {"limits": {"tasks": "512"}}),
        (BIRTH, {"limits": {"swap": 1}}),
        (BIRTH, {"processes": 1}),
        (BIRTH, {"home_bytes": -4096}),
    ],
)
def test_what_does_not_fit_is_not_read(base: dict[str, object], change: dict[str, object]) -> None:
    decode_request(json.dumps(base).encode())
    with pytest.raises(msgspec.DecodeError):
        decode_request(json.dumps({**base, **change}).encode())


@pytest.mark.parametrize("tree", ["app/../runtime", "/app/x", "app/", "app/x/y", "apps/x", "app/.x", "app/x\n", "app"])
def test_a_tree_is_one_directory_of_the_installation(tree: str) -> None:
    with pytest.raises(msgspec.DecodeError):
        decode_request(json.dumps({"op": "expose", "id": 1, "uuid": UUID, "trees": [tree]}).encode())


def test_a_tree_may_be_named_as_applications_are() -> None:
    trees = ["app/org.cageruntime.Notes", "runtime/org.freedesktop.Platform.GL.default"]
    request = Expose(id=1, uuid=UUID, trees=trees)
    assert decode_request(encode(request)) == request


@pytest.mark.parametrize("message", [
    b"", b"\xff", b"{", b"[]", b"null", b'{"op":"spawn"}', b'"x"' * 10, b'{"op":"\x80"', b'{"x":' + b"[" * 3000])
@pytest.mark.parametrize("read", [decode_request, decode_reply, decode_from_init])
def test_noise_is_nothing_that_is_said(read: Callable[[bytes], object], message: bytes) -> None:
    """Of a compromised cage-init or caged: root reads it, and must not end by it."""
    with pytest.raises(msgspec.DecodeError):
        read(message)


def test_limits_become_the_files_of_a_cgroup() -> None:
    limits = Limits(memory=1 << 30, memory_guarantee=1 << 20, cpus=1.5, cpu_weight=200, tasks=512, io_weight=50)
    assert dict(settings(limits)) == {
        "memory.max": "1073741824", "memory.min": "1048576", "cpu.max": "150000 100000", "cpu.weight": "200",
        "pids.max": "512", "io.weight": "50",
    }
    assert settings(Limits()) == []
