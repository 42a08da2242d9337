# SPDX-License-Identifier: LGPL-2.1-or-later
"""The cage half of open: refuses early what the core half would refuse anyway."""

from __future__ import annotations

import os
import stat

from cage_runtime.bus import Call
from cage_runtime.errors import TransferFailed
from cage_runtime.filenames import check_file_name
from mediators import cagehalf, wire
from mediators.open import protocol
from mediators.open.uri import check_uri


def check_uri_call(call: Call) -> None:
    untrusted_uri, untrusted_target, untrusted_options = call.arguments
    wire.no_options(untrusted_options)
    check_uri(untrusted_uri)
    protocol.check_target(untrusted_target)


def check_file_call(call: Call) -> None:
    untrusted_name, untrusted_target, _index, untrusted_options = call.arguments
    wire.no_options(untrusted_options)
    name = check_file_name(untrusted_name)
    protocol.check_target(untrusted_target)
    if not stat.S_ISREG(os.fstat(wire.only_descriptor(call, 2)).st_mode):
        raise TransferFailed(f'"{name}" is not a regular file')


def check_edited_call(call: Call) -> None:
    wire.no_options(call.arguments[1])


def run(arguments: list[str]) -> int:
    """`cage-mediator open --cage`."""
    return cagehalf.run("open", arguments, checks={
        "Uri": check_uri_call, "File": check_file_call, "Edited": check_edited_call})
