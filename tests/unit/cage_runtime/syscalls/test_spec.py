# SPDX-License-Identifier: LGPL-2.1-or-later
"""What cage-syscalls may say: no more than caged takes, whatever has become of it."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from cage_runtime.spawner import spec as spawner
from cage_runtime.syscalls.spec import COUNT_MAX, Counted, decode_told, encode

UUID = "1" * 32


def told(calls: Any) -> bytes:
    return json.dumps({"type": "counted", "uuid": UUID, "calls": calls}).encode()


def test_what_it_may_say_is_taken() -> None:
    counted = Counted(uuid=UUID, calls={"sysinfo": COUNT_MAX, "other": 0})
    assert decode_told(encode(counted)) == counted
    ended = spawner.Ended(uuid=UUID, answered={**counted.calls})
    assert spawner.decode_reply(spawner.encode(ended)) == ended


@pytest.mark.parametrize("calls", [
    {"getpid": 1}, {"": 1}, {"sysinfo": -1}, {"sysinfo": COUNT_MAX + 1}, {"sysinfo": 1.5}, {"sysinfo": "1"},
    {f"sysinfo{number}": 1 for number in range(100)}, ["sysinfo"],
])
def test_anything_else_is_a_fault_of_the_one_that_says_it(calls: Any) -> None:
    with pytest.raises(msgspec.ValidationError):
        decode_told(told(calls))
