# SPDX-License-Identifier: LGPL-2.1-or-later
"""The cage half of clipboard: refuses early what the core half would refuse anyway."""

from __future__ import annotations

import os
import stat

from cage_runtime.bus import Call
from cage_runtime.errors import TransferFailed
from mediators import cagehalf, wire
from mediators.clipboard import protocol


def check_copy(call: Call) -> None:
    untrusted_type, _index, untrusted_options = call.arguments
    protocol.check_type(untrusted_type)
    protocol.copy_options(untrusted_options)
    if not stat.S_ISREG(os.fstat(wire.only_descriptor(call, 1)).st_mode):
        raise TransferFailed("what is copied is not a regular file or one in memory")


def check_paste(call: Call) -> None:
    untrusted_type, untrusted_options = call.arguments
    protocol.check_type(untrusted_type)
    wire.no_options(untrusted_options)


def run(arguments: list[str]) -> int:
    """`cage-mediator clipboard --cage`."""
    return cagehalf.run("clipboard", arguments, checks={"Copy": check_copy, "Paste": check_paste})
