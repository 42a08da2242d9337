# SPDX-License-Identifier: LGPL-2.1-or-later
"""Two processes in contexts, `a` and `b`, and one in none, `host`: root all three, with every capability, in the same
namespaces.  What divides them is the contexts alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cage_runtime.spawner.lsm.contexts import ALL_FAMILIES, Context, Contexts
from cage_runtime.spawner.lsm.operations import Operation
from tests.kernels.lsm.party import Party, started

WIDE = Context(families=ALL_FAMILIES, execute_writable=True)
"""The root disk can be written, and programs are on it."""


@pytest.fixture(scope="session")
def contexts() -> Iterator[Contexts]:
    # These would answer before our programs are asked.
    for name, value in (("yama/ptrace_scope", "0"), ("perf_event_paranoid", "-1"), ("unprivileged_bpf_disabled", "0")):
        Path("/proc/sys/kernel", name).write_text(value, encoding="ascii")
    opened = Contexts.open()
    yield opened
    opened.close()


@pytest.fixture(autouse=True)
def refusals(contexts: Contexts) -> Iterator[None]:
    """What was refused meanwhile is told with a test that fails."""
    while contexts.read_events():
        pass
    yield
    for event in contexts.read_events():
        print(event)  # noqa: T201


@pytest.fixture(scope="session")
def host() -> Iterator[Party]:
    with started() as party:
        yield party


@pytest.fixture(scope="module")
def a(contexts: Contexts) -> Iterator[Party]:
    xid = contexts.new(WIDE)
    with started(contexts, xid) as party:
        yield party
    contexts.forget(xid)


@pytest.fixture(scope="module")
def b(contexts: Contexts) -> Iterator[Party]:
    xid = contexts.new(WIDE)
    with started(contexts, xid) as party:
        yield party
    contexts.forget(xid)


class Counted:
    """How many refusals there have been since it was made."""

    def __init__(self, contexts: Contexts, xid: int) -> None:
        self._contexts, self._xid = contexts, xid
        self._before = contexts.denials().get(xid, {})

    def since(self) -> dict[Operation, int]:
        now = self._contexts.denials().get(self._xid, {})
        return {operation: count - self._before.get(operation, 0) for operation, count in now.items()
                if count != self._before.get(operation, 0)}
