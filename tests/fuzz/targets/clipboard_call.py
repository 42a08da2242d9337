# SPDX-License-Identifier: LGPL-2.1-or-later
"""The calls of the clipboard's interface, as its cage half and its core half check them."""

from __future__ import annotations

from cage_runtime.errors import UsageError
from cage_runtime.model import CLIP_PASTES_MAX, CLIP_SECONDS_MAX
from mediators.clipboard import protocol
from tests.fuzz.values import Taken

MAY_RAISE = (UsageError,)


def run(untrusted: bytes) -> None:
    call = Taken(untrusted).call("Copy", "a{sv}s")
    options = protocol.copy_options(call.arguments[0])
    assert 1 <= options.pastes <= CLIP_PASTES_MAX
    assert 1 <= options.seconds <= CLIP_SECONDS_MAX
    protocol.check_type(call.arguments[1])
