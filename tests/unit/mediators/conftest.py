# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the mediators' halves do to the process that they run in ends with the test: here it is everybody's."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

ENDS = (signal.SIGHUP, signal.SIGTERM)


@pytest.fixture(autouse=True)
def signals_as_they_were() -> Iterator[None]:
    """A delivery half blocks those that end it; what is started later would never be ended by them."""
    mask, handlers = signal.pthread_sigmask(signal.SIG_BLOCK, ()), {number: signal.getsignal(number) for number in ENDS}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
