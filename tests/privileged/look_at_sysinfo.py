# SPDX-License-Identifier: LGPL-2.1-or-later
"""Run inside a cage: look_at_sysinfo.py WHAT prints what sysinfo(2) told, as JSON."""

from __future__ import annotations

import ctypes
import json
import struct
import sys
import time
from typing import Any

LIBC = ctypes.CDLL(None, use_errno=True)
NAMES = ("uptime", "load1", "load5", "load15", "totalram", "freeram", "sharedram", "bufferram", "totalswap", "freeswap",
         "procs")


def sysinfo() -> dict[str, Any]:
    buffer = ctypes.create_string_buffer(b"\xff" * 128, 128)
    status = LIBC.sysinfo(buffer)
    values = struct.unpack_from("=q3Q6QH", buffer)
    return {"error": ctypes.get_errno() if status else 0, **dict(zip(NAMES, values, strict=True)),
            "unit": struct.unpack_from("=I", buffer, 104)[0], "behind": buffer[112:].hex(),
            "boottime": time.clock_gettime(time.CLOCK_BOOTTIME), "monotonic": time.monotonic()}


if __name__ == "__main__":
    print(json.dumps({"sysinfo": sysinfo}[sys.argv[1]]()))
