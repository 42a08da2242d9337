# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the mediators' halves do to the process that they run in ends with the test: here it is everybody's."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

ENDS = (signal.SIGHUP, signal.SIGTERM)


@pytest.fixture(autouse=True)
def handlers_as_they_were() -> Iterator[None]:
    """A delivery half has handlers of its own for those that end it."""
    handlers = {number: signal.getsignal(number) for number in ENDS}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)
