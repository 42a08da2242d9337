# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a portal asks of the cage halves of the mediators, each on a connection of its own.

The connection ends with the request: then whatever the core asks a person meanwhile is withdrawn.
"""

from __future__ import annotations

from cage_runtime.bus import Answer, Bus, Value

CAGE_BUS = "unix:path=/run/dbus/system_bus_socket"


async def ask(mediator: str, member: str, signature: str, arguments: tuple[Value, ...],
              descriptors: tuple[int, ...] = ()) -> Answer:
    """Call `member` of the mediator's cage half; as long as it takes, because a person may be asked."""
    name = mediator.capitalize()
    interface, path = f"org.cageruntime.{name}1", f"/org/cageruntime/{name}1"
    bus = await Bus.connect(CAGE_BUS)
    try:
        return await bus.call(interface, path, interface, member, signature, arguments, descriptors, seconds=None)
    finally:
        bus.disconnect()
