# SPDX-License-Identifier: LGPL-2.1-or-later
"""A kernel that preempts everywhere: on Linux 6.1 a task's label is not always found then; its credential's is."""

from __future__ import annotations

import contextlib

from cage_runtime.spawner.lsm.contexts import Contexts
from tests.kernels.lsm.conftest import WIDE, contexts, host, refusals  # noqa: F401 (fixtures)
from tests.kernels.lsm.party import Party, started

TOGETHER = 6


def test_nothing_gets_through_in_between(contexts: Contexts, host: Party) -> None:  # noqa: F811
    with contextlib.ExitStack() as stack:
        parties = [stack.enter_context(started(contexts, contexts.new(WIDE))) for _ in range(TOGETHER)]
        for party in parties:
            party.begins("refused_many", host.pid, 10_000)
        assert [party.ends() for party in parties] == [10_000] * TOGETHER


def test_no_child_is_born_without_a_label(contexts: Contexts, host: Party) -> None:  # noqa: F811
    with contextlib.ExitStack() as stack:
        parties = [stack.enter_context(started(contexts, contexts.new(WIDE))) for _ in range(TOGETHER)]
        for party in parties:
            party.begins("forks_refused", host.pid, 150)
        assert [party.ends() for party in parties] == [[0, 150]] * TOGETHER
