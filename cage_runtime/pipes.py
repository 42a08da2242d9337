# SPDX-License-Identifier: LGPL-2.1-or-later
"""Waiting for what comes through a pipe.

A cage half, which is there for each cage, imports this and not attached.py, which takes more memory.
"""

from __future__ import annotations

import asyncio


async def readable(descriptor: int) -> None:
    """Returns once there is something to read from `descriptor`, or its end."""
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    loop.add_reader(descriptor, _set, ready)
    try:
        await ready
    finally:
        loop.remove_reader(descriptor)


def _set(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)
