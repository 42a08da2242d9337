# SPDX-License-Identifier: LGPL-2.1-or-later
"""What systemd knows of a unit, where systemd runs the host (org.freedesktop.systemd1(5))."""

from __future__ import annotations

from cage_runtime.errors import RuntimeFailure
from cage_runtime.sdbus import BusError, Connection

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

CALL_SECONDS = 2.0
_SYSTEMD, _PATH = "org.freedesktop.systemd1", "/org/freedesktop/systemd1"
_UNIT = _SYSTEMD + ".Unit"
_NO_JOB = 0


def has_failed(unit: str) -> bool:
    """Whether systemd has given the unit up: it has failed, and nothing is about to start it.  One that systemd does
    not know has not, nor where there is no systemd to ask."""
    try:
        bus = Connection()
        try:
            path = _ask(bus, _PATH, _SYSTEMD + ".Manager", "GetUnit", "s", (unit,), returns="o")
            # In this order: a start that was asked for before this call is a job by now, or has failed.
            job, _ = _ask(bus, path, "org.freedesktop.DBus.Properties", "Get", "ss", (_UNIT, "Job"), returns="v")
            state = _ask(bus, path, "org.freedesktop.DBus.Properties", "Get", "ss", (_UNIT, "ActiveState"), returns="v")
        finally:
            bus.close()
    except (BusError, RuntimeFailure, TimeoutError):
        return False
    return bool(job == _NO_JOB and state == "failed")


def _ask(bus: Connection, path: str, interface: str, member: str, signature: str, values: tuple[object, ...], *,
         returns: str) -> Any:
    (value,) = bus.call(_SYSTEMD, path, interface, member, signature, values, returns=returns, timeout=CALL_SECONDS,
                        quietly=True)
    return value
