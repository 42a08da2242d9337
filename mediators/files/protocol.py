# SPDX-License-Identifier: LGPL-2.1-or-later
"""What crosses the wall in a transfer: the interface, its limits, and the checks that every half makes again.

Law of this room: a name is checked by each half that receives it, and by nothing but `check_file_name`.  The delivery
half starts once a transfer, so this file imports only what costs nothing: no
dataclass, no regular expression, no typing.
"""

from __future__ import annotations

import os
import unicodedata

from cage_runtime.errors import InvalidName, TransferFailed, UsageError
from cage_runtime.text import escape

BUS_NAME = INTERFACE = "org.cageruntime.Files1"
PATH = "/org/cageruntime/Files1"
SEND = "Send"
SEND_SIGNATURE = "ssha{sv}"
SERVICE = "files.Send"
"""What policy calls it."""

FILE_NAME_BYTES = 255
RENAMES_MAX = 1000
TRANSFER_BYTES_MAX = 64 * 1024**3
"""These three are cage_runtime.model's (a test holds them equal), which takes longer to import than a delivery."""
CHUNK = 1024 * 1024
"""Bytes copied at a time."""
EXTENSION_BYTES = 32
"""A longer suffix is part of the name, when a number has to go before it."""
READY, GO = "ready\n", "SIGUSR1"
"""What the delivery half writes first, when the file wants nothing but its name, and the signal that then gives it."""
OUTPUT_MAX = 16
"""Bytes that the delivery half writes on its standard output at most: READY, a number and a line feed."""

FULL, INBOX, CROWDED, DAMAGED, WITHDRAWN = 20, 21, 22, 23, 24
FAULTS = {
    FULL: "its home is full",
    INBOX: "its Inbox is not a directory that can be written",
    CROWDED: f"its Inbox already has {RENAMES_MAX} files of this name",
    DAMAGED: "what came there is not what was sent",
    WITHDRAWN: "it was withdrawn before it was there",
}
"""Exit statuses of the delivery half.  Only the status crosses back to the source: the target may be of a higher
level, and no text of its own may come down."""

_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
"""Unicode categories that cannot be seen, reorder what is seen, or cannot be encoded."""


def check_file_name(untrusted_name: str) -> str:
    """The name in Unicode's NFC form, if it may become a directory entry in an inbox; else InvalidName."""
    reason = _fault_of(untrusted_name)
    name = "" if reason else unicodedata.normalize("NFC", untrusted_name)
    reason = reason or _fault_of(name)
    if reason:
        shown = escape(untrusted_name, limit=80)
        raise InvalidName(f'"{shown}" cannot be a file\'s name in an inbox: {reason}; rename it')
    return name


def _fault_of(untrusted_name: str) -> str | None:
    if not untrusted_name:
        return "it is empty"
    if len(untrusted_name) > FILE_NAME_BYTES or len(untrusted_name.encode("utf-8", "replace")) > FILE_NAME_BYTES:
        return f"it is longer than {FILE_NAME_BYTES} bytes"
    if "/" in untrusted_name:
        return 'it has a "/"'
    if untrusted_name in {".", ".."}:
        return "it means a directory"
    if any(unicodedata.category(character) in _HIDDEN for character in untrusted_name):
        return "it has a character that cannot be seen"
    if untrusted_name[0] == "-":
        return 'a leading "-" is read as an option'
    if untrusted_name[0].isspace() or untrusted_name[-1].isspace():
        return "it begins or ends with a space"
    if untrusted_name[-1] == ".":
        return "it ends with a dot"
    return None


def candidate(name: str, ordinal: int) -> str:
    """The `ordinal`-th name to try for `name`: itself, then `stem (2).ext`, cut so that it stays a valid name."""
    if ordinal == 1:
        return name
    stem, extension = os.path.splitext(name)
    if len(extension.encode()) > EXTENSION_BYTES:
        stem, extension = name, ""
    tail = f" ({ordinal}){extension}"
    room = FILE_NAME_BYTES - len(tail.encode())
    return stem.encode()[:room].decode("utf-8", "ignore") + tail


class Delivery:
    """What the core half asks of the delivery half; its standard input is the file.  Immutable by custom."""

    __slots__ = ("name", "sha256", "size", "source")

    def __init__(self, *, source: str, name: str, size: int, sha256: str) -> None:
        self.source, self.name, self.size, self.sha256 = source, name, size, sha256

    def arguments(self) -> list[str]:
        """The command line after --deliver, which caged puts there."""
        return [self.source, self.name, str(self.size), self.sha256]


def parse_delivery(untrusted_arguments: list[str]) -> Delivery:
    """The delivery that `untrusted_arguments`, those after --deliver, ask for; else UsageError."""
    if len(untrusted_arguments) != 4:
        raise UsageError("--deliver takes SOURCE NAME SIZE SHA256")
    source, name, size, digest = untrusted_arguments
    if not (size.isascii() and size.isdigit() and len(size) <= 12 and 0 < int(size) <= TRANSFER_BYTES_MAX):
        raise UsageError(f'"{escape(size, limit=40)}" is not a size of 1 to {TRANSFER_BYTES_MAX} bytes')
    if len(digest) != 64 or not set(digest) <= set("0123456789abcdef"):
        raise UsageError("the digest is not 64 hexadecimal digits")
    return Delivery(source=check_file_name(source), name=check_file_name(name), size=int(size), sha256=digest)


def parse_arrived(untrusted_output: bytes, name: str) -> str:
    """The name under which `name` arrived, from the delivery half's output: which of the candidates it took."""
    digits = untrusted_output.removesuffix(b"\n")
    if not (digits.isdigit() and len(digits) <= 4 and 1 <= int(digits) <= RENAMES_MAX):
        raise TransferFailed(f'the target did not say how "{escape(name)}" arrived')
    return check_file_name(candidate(name, int(digits)))
