# SPDX-License-Identifier: LGPL-2.1-or-later
"""A one-way call whose core half has nothing left: whoever called hears so, and nothing is kept."""

from __future__ import annotations

import asyncio
import errno
import json
import os
from typing import Any

import pytest

from cage_runtime.bus import Call, Variant
from mediators.call import core
from mediators.call.core import CallCore
from mediators.wire import Asked, Gateway, Permission

WORK = Gateway(name="work", uuid="11111111-work", address="")
WORDS = {"action": "allow", "target": "vault", "target-uuid": "2", "source-name": "work", "flow": "up",
         "transform": "", "require": "", "log": "", "user": "", "ticket": ""}


class Caged:
    """Permits everything, one way."""

    def __init__(self) -> None:
        self.recorded: list[dict[str, str]] = []
        self.delivered = 0

    async def decide(self, source: str, service: str, argument: str, target: str, request: str) -> Permission:
        asked = Asked(source=source, service=service, argument=argument, target=target, request=request)
        return Permission.read(asked, {
            **{key: Variant("s", value) for key, value in WORDS.items()},
            **{key: Variant("b", key == "one-way") for key in ("two-way", "one-way", "notify", "autostart")},
            "max-size": Variant("t", 0), "max-files": Variant("u", 0), "types": Variant("as", []),
            "choices": Variant("as", []),
        })

    async def confirm(self, permission: Permission, _what: object) -> Permission:
        return permission

    async def deliver(self, *_: object, **__: object) -> int:
        self.delivered += 1
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    async def record(self, _source: Gateway, _target: str, _service: str, details: dict[str, str]) -> None:
        self.recorded.append(details)


def play(content: bytes) -> tuple[dict[str, Any], Caged]:
    """What whoever sends `content` hears, and what came of it."""

    async def whole() -> tuple[dict[str, Any], Caged]:
        caged = Caged()
        half = CallCore(caged)  # type: ignore[arg-type]
        answer = await half.call(WORK, Call(sender=":1.1", path="/", member="Call", descriptors=(),
                                            arguments=["Backup", "", "vault", {}]))
        stdin, stdout, status = answer.descriptors
        os.write(stdin, content)
        os.close(stdin)
        told = await asyncio.wait_for(asyncio.to_thread(os.read, status, 4096), 20)
        await asyncio.wait_for(asyncio.gather(*half._tasks), 20)
        assert os.read(status, 1) == b""
        for descriptor in (stdout, status):
            os.close(descriptor)
        return json.loads(told), caged

    before = os.listdir("/proc/self/fd")
    found = asyncio.run(whole())
    assert os.listdir("/proc/self/fd") == before
    return found


def test_a_full_memory_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    async def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(core, "_copied", full)
    told, caged = play(b"figures")
    assert told["status"] == 125
    assert "nothing left" in told["sentence"]
    assert caged.delivered == 0
    assert [details["outcome"] for details in caged.recorded] == [told["sentence"]]


def test_what_cannot_be_sent_on_is_in_the_record_and_nowhere_else() -> None:
    """By then it was accepted, and whoever called hears no more."""
    told, caged = play(b"figures")
    assert told == {"status": 0}
    assert [details["outcome"] for details in caged.recorded] == ["[Errno 24] Too many open files"]
