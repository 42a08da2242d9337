# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which application asks: flatpak's own word for it, in the root of the process at the other end of the bus.

It decides nothing beyond the cage, whose user could be any of its applications: it is for where files are put.
"""

from __future__ import annotations

import os
import re

from cage_runtime.bus import DBUS, Bus
from cage_runtime.model import APPLICATION_MAX, APPLICATION_PATTERN

INFO_BYTES_MAX = 64 * 1024
_APPLICATION = re.compile(APPLICATION_PATTERN)


async def application_of(bus: Bus, sender: str) -> str:
    """The id of the Flatpak application behind the connection `sender`; empty where it is none."""
    answer = await bus.call(*DBUS, "GetConnectionUnixProcessID", "s", (sender,))
    return read(f"/proc/{answer.values[0]}/root/.flatpak-info")


def read(path: str) -> str:
    """The application's id in the key file at `path` (flatpak-metadata(5)); empty where there is none."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            untrusted_text = file.read(INFO_BYTES_MAX)
    except OSError:  # it is in no sandbox, or has just ended
        return ""
    group = ""
    for line in untrusted_text.decode("utf-8", "replace").splitlines():
        if line.startswith("["):
            group = line
        key, equals, value = line.partition("=")
        if group == "[Application]" and key == "name" and equals:
            return value if len(value) <= APPLICATION_MAX and _APPLICATION.match(value) else ""
    return ""
