# SPDX-License-Identifier: LGPL-2.1-or-later
"""How cages' units are called, and what the two processes that speak of them take from each other."""

from __future__ import annotations

import msgspec
import pytest

from cage_runtime.config import Paths
from cage_runtime.scopes.spec import (
    Open,
    Opened,
    decode_asked,
    decode_told,
    encode,
    is_scope,
    runtime_of,
    scope_of,
    slice_of,
)


def test_the_system_s_runtime_has_the_plain_names() -> None:
    runtime = runtime_of(Paths().cgroup)
    assert (scope_of(runtime, "work"), slice_of(runtime)) == ("cage-work.scope", ("cages.slice",))


def test_another_runtime_s_cages_of_the_same_names_are_other_units_in_another_slice() -> None:
    runtime = runtime_of("cage-runtime-of/tests")
    assert scope_of(runtime, "work") == "cage-work.cage_runtime_of_tests.scope"
    # A dash in a slice's name says which one it is in (systemd.slice(5)).
    assert slice_of(runtime) == ("cages.slice", "cages-cage_runtime_of_tests.slice")


@pytest.mark.parametrize(("unit", "is_one"), [
    ("cage-work.scope", True), ("cage-work.cage_runtime_x.scope", True), ("session-1.scope", False),
    ("cage-spawner.service", False), ("cages.slice", False),
])
def test_what_is_a_cage_s_unit(unit: str, is_one: bool) -> None:
    assert is_scope(unit) is is_one


@pytest.mark.parametrize("message", [
    b"", b"{}", b'{"op":"open","number":0,"name":"work","runtime":""}',
    b'{"op":"open","number":1,"name":"work.service","runtime":""}',
    b'{"op":"open","number":1,"name":"work\\n","runtime":""}', b'{"op":"open","number":1,"name":"a","runtime":"-"}',
    b'{"op":"register","name":"a","uuid":"' + b"a" * 32 + b'","leader":1}', b'{"op":"opened","number":1}',
])
def test_what_is_no_request_is_none(message: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        decode_asked(message)


def test_what_is_said_arrives() -> None:
    request = Open(number=3, name="work", runtime="")
    assert decode_asked(encode(request)) == request
    answer = Opened(number=3, fault="no")
    assert decode_told(encode(answer)) == answer
