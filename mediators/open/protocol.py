# SPDX-License-Identifier: LGPL-2.1-or-later
"""What crosses the wall when something is opened elsewhere: names, limits, and the words between the halves.

The delivery half starts with each, so this file imports only what costs nothing.
"""

from __future__ import annotations

from cage_runtime.errors import InvalidName, TransferFailed, UsageError
from cage_runtime.filenames import check_file_name
from cage_runtime.text import escape

URI, FILE = "open.Uri", "open.File"
"""What policy calls them; the argument of the first is the scheme."""
DISPOSABLE = "@disposable"
CAGE_NAME_MAX = 31
EDITED_BYTES_MAX = 64 * 1024**2
OPENED_BYTES_MAX = 64 * 1024**3
"""These three are cage_runtime.model's (a test holds them equal), which takes longer to import than a delivery."""
CHUNK = 1024 * 1024
"""Bytes copied at a time."""
READY = "ready\n"
"""What the delivery half writes when all is there but the opening itself."""
OUTPUT_MAX = 16
"""Bytes that it writes at most where nothing comes back."""
HEADER_MAX = 128
"""Bytes of the line that goes before a file that comes back."""
UNCHANGED, EDITED = "unchanged", "edited"
OPEN = "open"
"""It is not known yet which of them."""

NO_HANDLER, FULL, DAMAGED, UNFIT = 20, 21, 22, 23
FAULTS = {
    NO_HANDLER: "it has nothing to open it with",
    FULL: "its home is full",
    DAMAGED: "what came there is not what was sent",
    UNFIT: f"it cannot come back: it is no file of at most {EDITED_BYTES_MAX >> 20}M any more",
}
"""Exit statuses of the delivery half; only the status crosses back."""


def check_target(untrusted_target: str) -> str:
    """A cage's name, `@disposable` or `@disposable:TEMPLATE`, or nothing; else InvalidName."""
    head, colon, template = untrusted_target.partition(":")
    name = template if head == DISPOSABLE and colon else untrusted_target
    plain = name.replace("-", "")
    good = len(name) <= CAGE_NAME_MAX and plain.isascii() and plain.isalnum() and plain == plain.lower()
    if untrusted_target in ("", DISPOSABLE) or (good and name[0].isalpha()):
        return untrusted_target
    raise InvalidName(f'"{escape(untrusted_target, limit=60)}" is neither a cage\'s name nor {DISPOSABLE}')


class Delivery:
    """What the core half asks of the delivery half; its standard input is the file, or the URI.  Immutable by custom.

    Where `name` is empty it is a URI.
    """

    __slots__ = ("name", "returns", "sha256", "size")

    def __init__(self, *, name: str, size: int, sha256: str, returns: bool) -> None:
        self.name, self.size, self.sha256, self.returns = name, size, sha256, returns

    def arguments(self) -> list[str]:
        """The command line after --deliver, which caged puts there."""
        if not self.name:
            return ["uri", str(self.size), self.sha256]
        return ["returning" if self.returns else "file", str(self.size), self.sha256, self.name]


def parse_delivery(untrusted_arguments: list[str]) -> Delivery:
    """The delivery that `untrusted_arguments`, those after --deliver, ask for; else UsageError."""
    kind, size, digest, *name = [*untrusted_arguments, "", "", ""][: max(3, len(untrusted_arguments))]
    if kind not in ("uri", "file", "returning") or len(name) != (kind != "uri"):
        raise UsageError("--deliver takes uri SIZE SHA256, or file|returning SIZE SHA256 NAME")
    checked = check_file_name(name[0]) if name else ""
    return Delivery(name=checked, size=_size(size, OPENED_BYTES_MAX), sha256=_digest(digest),
                    returns=kind == "returning")


def _size(untrusted_size: str, most: int) -> int:
    if not (untrusted_size.isascii() and untrusted_size.isdigit() and len(untrusted_size) <= 12
            and 0 < int(untrusted_size) <= most):
        raise UsageError(f'"{escape(untrusted_size, limit=40)}" is not a size of 1 to {most} bytes')
    return int(untrusted_size)


def _digest(untrusted_digest: str) -> str:
    if len(untrusted_digest) != 64 or not set(untrusted_digest) <= set("0123456789abcdef"):
        raise UsageError("the digest is not 64 hexadecimal digits")
    return untrusted_digest


def parse_header(untrusted_line: bytes, most: int) -> tuple[int, str] | None:
    """(size, SHA-256) of the file that follows the line; None where it says that nothing has changed.

    TransferFailed where it says anything else.
    """
    match untrusted_line.split(b" "):
        case [b"unchanged"]:
            return None
        case [b"edited", size, digest] if len(size) <= 12 and size.isdigit():
            try:
                return _size(size.decode(), most), _digest(digest.decode())
            except (UsageError, UnicodeDecodeError) as error:
                raise TransferFailed(f"what came back is not a file of at most {most} bytes") from error
    raise TransferFailed("the target did not answer as it should")
