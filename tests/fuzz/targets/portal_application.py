# SPDX-License-Identifier: LGPL-2.1-or-later
"""The .flatpak-info of whoever calls a portal in a cage."""

from __future__ import annotations

import tempfile

from cage_runtime.model import APPLICATION_MAX
from cage_runtime.portal import application

MAY_RAISE = ()
FILE = tempfile.NamedTemporaryFile()  # noqa: SIM115 - for as long as there are inputs


def run(untrusted: bytes) -> None:
    FILE.seek(0)
    FILE.truncate()
    FILE.write(untrusted)
    FILE.flush()
    name = application.read(FILE.name)
    assert len(name) <= APPLICATION_MAX
