# SPDX-License-Identifier: LGPL-2.1-or-later
"""Two processes in contexts, `a` and `b`, and one in none, `host`: root all three, with every capability, in the same
namespaces.  What divides them is the contexts alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cage_runtime.spawner.lsm.contexts import ALL_FAMILIES, Context, Contexts
from cage_runtime.spawner.lsm.operations import Operation
from tests.kernels.lsm.party import Party, started

Refused = Callable[[Party, Operation, str], None]
WIDE = Context(families=ALL_FAMILIES, execute_writable=True)
"""The root disk can be written, and programs are on it."""


@pytest.fixture(scope="session")
def contexts() -> Iterator[Contexts]:
    # Another module's rule on ptrace would answer before ours.
    Path("/proc/sys/kernel/yama/ptrace_scope").write_text("0", encoding="ascii")
    opened = Contexts.open()
    yield opened
    opened.close()


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
