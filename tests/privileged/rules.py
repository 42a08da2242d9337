# SPDX-License-Identifier: LGPL-2.1-or-later
"""Policy for the time of a test, and waiting for what says nothing when it has happened."""

from __future__ import annotations

import select
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tests.privileged.runtime import SECONDS, Runtime


@contextmanager
def policy(runtime: Runtime, text: str) -> Iterator[None]:
    """These rules go before all others, and take the place of those of a `policy` around this one."""
    file = runtime.top / "etc/policy.d/10-tests.policy"
    file.parent.mkdir(parents=True, exist_ok=True)
    before = file.read_text() if file.exists() else ""
    file.write_text(text)
    runtime.ok("policy", "reload")
    try:
        yield
    finally:
        file.write_text(before)
        runtime.ok("policy", "reload")


def until(condition: Callable[[], object], what: str) -> None:
    """Until another process has done something; it is looked at often, and not for longer than SECONDS."""
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, what
        select.select([], [], [], 0.05)
