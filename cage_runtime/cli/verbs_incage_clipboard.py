# SPDX-License-Identifier: LGPL-2.1-or-later
"""incage copy, incage paste: what is copied in one cage can be pasted in another."""

from __future__ import annotations

import os
import sys

from cage_runtime.cli.output import Screen
from cage_runtime.errors import CageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

TEXT, IMAGE = "text/plain", "image/png"
BYTES_MAX = {TEXT: 1024**2, IMAGE: 8 * 1024**2}
"""model.CLIP_BYTES_MAX and IMAGE_BYTES_MAX, which takes longer to import than a copy."""


def _copy_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--type", metavar="TYPE", default=TEXT,
                        help=f"what standard input is: {TEXT}, as without, or {IMAGE}")
    parser.add_argument("--pastes", metavar="N", type=_number, default=0, help="how often it can be pasted; once")
    parser.add_argument("--seconds", metavar="N", type=_number, default=0, help="how long it can be; 120")


def _number(untrusted_text: str) -> int:
    if not (untrusted_text.isascii() and untrusted_text.isdigit() and 0 < int(untrusted_text[:10]) < 2**32):
        raise ValueError
    return int(untrusted_text[:10])


def _copy(args: argparse.Namespace, screen: Screen) -> int:
    from cage_runtime.cli.client import mediator

    del screen
    most = BYTES_MAX.get(args.type, min(BYTES_MAX.values()))
    content = sys.stdin.buffer.read(most + 1)
    if not content:
        raise CageError("standard input is empty; there is nothing to copy")
    if len(content) > most:
        raise CageError(f"the clip has more than {most} bytes")
    given = {"pastes": ("u", args.pastes), "seconds": ("u", args.seconds)}
    options = {name: value for name, value in given.items() if value[1]}
    descriptor = os.memfd_create("copied", os.MFD_CLOEXEC)
    with open(descriptor, "r+b", buffering=0) as file:
        rest = memoryview(content)
        while rest:
            rest = rest[file.write(rest):]
        mediator("clipboard", "so nothing can be copied").call(
            "Copy", "sha{sv}", args.type, file.fileno(), options, timeout=None)
    return 0


def _paste_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--type", metavar="TYPE", default=TEXT, help=f"what is wanted: {TEXT}, as without, or {IMAGE}")


def _paste(args: argparse.Namespace, screen: Screen) -> int:
    from cage_runtime.cli.client import mediator

    del screen
    if args.type == IMAGE and sys.stdout.isatty():
        raise CageError("an image is nothing for a terminal; redirect standard output to a file")
    clipboard = mediator("clipboard", "so nothing can be pasted")
    descriptor = clipboard.call("Paste", "sa{sv}", args.type, {}, returns="h", timeout=None)
    offset, size = 0, os.fstat(descriptor).st_size
    with open(descriptor, "rb", buffering=0):
        while chunk := os.pread(descriptor, 65536, offset):
            offset += len(chunk)
            sys.stdout.buffer.write(chunk)
    sys.stdout.buffer.flush()
    if offset != size or not size:
        raise CageError("the core took the clip back before all of it was read; only the beginning of it is there")
    return 0


VERBS = {"copy": (_copy_arguments, _copy), "paste": (_paste_arguments, _paste)}
