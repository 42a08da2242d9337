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

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

BUS_NAME = INTERFACE = "org.cageruntime.Files1"
PATH = "/org/cageruntime/Files1"
SEND, SEND_TREE = "Send", "SendTree"
SEND_SIGNATURE, SEND_TREE_SIGNATURE = "ssha{sv}", "ssa{sv}"
SERVICE, MOVE_SERVICE = "files.Send", "files.Move"
"""What policy calls it, and what it calls it where the source is to be removed."""

RENAME, SKIP, REPLACE, FAIL = CONFLICTS = ("rename", "skip", "replace", "fail")
"""What to do where the name is taken: take another, deliver nothing, put it in the place of what is there, fail."""

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
HIDDEN = ".incoming-"
"""Begins the names of what is on its way in an inbox; nothing else can be called so."""
SKIPPED = 0
"""That number where nothing was delivered because the name is taken."""

FULL, INBOX, CROWDED, DAMAGED, WITHDRAWN, TAKEN = 20, 21, 22, 23, 24, 25
FAULTS = {
    FULL: "its home is full",
    INBOX: "its Inbox is not a directory that can be written",
    CROWDED: f"its Inbox already has {RENAMES_MAX} files of this name",
    DAMAGED: "what came there is not what was sent",
    WITHDRAWN: "it was withdrawn before it was there",
    TAKEN: "its Inbox has something of this name that cannot be replaced, or is not to be",
}
"""Exit statuses of the delivery half.  Only the status crosses back to the source: the target may be of a higher
level, and no text of its own may come down."""

_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
"""Unicode categories that cannot be seen, reorder what is seen, or cannot be encoded."""
_GREEK_TWINS = frozenset("ΑΒΕΖΗΙΚΜΝΟΡΤΥΧινορυ")  # noqa: RUF001 - that is the point
"""Letters of Greek that look like Latin ones; others go with Latin in formulas."""


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
    if not untrusted_name.isascii() and _looks_like_latin(untrusted_name):
        return "it has letters of another script among Latin ones that they look like"
    if untrusted_name.startswith(HIDDEN):
        return f'names with a leading "{HIDDEN}" are those of what is on its way'
    return None


def _looks_like_latin(untrusted_name: str) -> bool:
    """Whether a word of it has letters of two scripts that nobody tells apart by eye (Unicode TS 39 has them all)."""
    latin = twin = False
    for character in untrusted_name:
        if not character.isalpha():
            latin = twin = False
        elif character in _GREEK_TWINS or unicodedata.name(character, "").startswith("CYRILLIC "):
            twin = True
        elif character.isascii() or unicodedata.name(character, "").startswith("LATIN "):
            latin = True
        if latin and twin:
            return True
    return False


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


class Options:
    """What a sender may say of a transfer beside what and where to.  Immutable by custom."""

    __slots__ = ("conflict", "move")

    def __init__(self, *, conflict: str = RENAME, move: bool = False) -> None:
        """`move`: the source removes it once it has arrived."""
        self.conflict, self.move = conflict, move

    @classmethod
    def read(cls, untrusted_options: dict[str, Any]) -> Options:
        """From D-Bus variants by name; UsageError where there is another, or one is of another type."""
        conflict, move = RENAME, False
        for name, variant in untrusted_options.items():
            if name == "conflict" and variant.signature == "s":
                conflict = check_conflict(variant.value)
            elif name == "move" and variant.signature == "b":
                move = variant.value
            else:
                raise UsageError(f'there is no option "{escape(name, limit=40)}" of that type')
        return cls(conflict=conflict, move=move)


class Delivery:
    """What the core half asks of the delivery half; its standard input is the file or the tree's stream.  Immutable by
    custom."""

    __slots__ = ("conflict", "name", "sha256", "size", "source", "tree")

    def __init__(self, *, source: str, name: str, size: int, sha256: str, tree: bool = False,
                 conflict: str = RENAME) -> None:
        """`size` in bytes, of a tree's whole stream; `sha256` of the file or of the tree's manifest."""
        self.source, self.name, self.size, self.sha256 = source, name, size, sha256
        self.tree, self.conflict = tree, conflict

    def arguments(self) -> list[str]:
        """The command line after --deliver, which caged puts there."""
        kind = "tree" if self.tree else "file"
        return [kind, self.conflict, self.source, self.name, str(self.size), self.sha256]


def parse_delivery(untrusted_arguments: list[str]) -> Delivery:
    """The delivery that `untrusted_arguments`, those after --deliver, ask for; else UsageError."""
    if len(untrusted_arguments) != 6:
        raise UsageError("--deliver takes file|tree CONFLICT SOURCE NAME SIZE SHA256")
    kind, conflict, source, name, size, digest = untrusted_arguments
    if kind not in ("file", "tree"):
        raise UsageError(f'"{escape(kind, limit=40)}" is neither file nor tree')
    if not (size.isascii() and size.isdigit() and len(size) <= 12 and 0 < int(size) <= TRANSFER_BYTES_MAX):
        raise UsageError(f'"{escape(size, limit=40)}" is not a size of 1 to {TRANSFER_BYTES_MAX} bytes')
    if len(digest) != 64 or not set(digest) <= set("0123456789abcdef"):
        raise UsageError("the digest is not 64 hexadecimal digits")
    return Delivery(source=check_file_name(source), name=check_file_name(name), size=int(size), sha256=digest,
                    tree=kind == "tree", conflict=check_conflict(conflict))


def check_target(untrusted_target: str) -> str:
    """The target's name, or nothing where the sender names none, if it is one; else InvalidName."""
    if not untrusted_target:
        return ""
    from cage_runtime.model import check_cage_name

    return check_cage_name(untrusted_target)


def check_conflict(untrusted_conflict: object) -> str:
    """What to do where the name is taken, if it is one of CONFLICTS; else UsageError."""
    for conflict in CONFLICTS:
        if untrusted_conflict == conflict:
            return conflict
    raise UsageError(f'"{escape(str(untrusted_conflict), limit=40)}" is no conflict policy: {", ".join(CONFLICTS)}')


def parse_arrived(untrusted_output: bytes, delivery: Delivery) -> str:
    """The name under which it arrived, from the delivery half's output: which of the candidates it took.  Empty where
    nothing was delivered because the name is taken."""
    digits, name = untrusted_output.removesuffix(b"\n"), delivery.name
    most = RENAMES_MAX if delivery.conflict == RENAME else 1
    least = SKIPPED if delivery.conflict == SKIP else 1
    if not (digits.isdigit() and len(digits) <= 4 and least <= int(digits) <= most):
        raise TransferFailed(f'the target did not say how "{escape(name)}" arrived')
    return check_file_name(candidate(name, int(digits))) if int(digits) else ""
