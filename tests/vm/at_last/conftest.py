# SPDX-License-Identifier: LGPL-2.1-or-later
"""Of this folder no test expects a core that runs: it may have been removed."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def core() -> None:
    """Instead of the one that starts it."""
