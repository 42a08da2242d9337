# SPDX-License-Identifier: LGPL-2.1-or-later
"""What crosses the wall in a transfer: the interface, its limits, and the checks that every half makes again.

Law of this room: a name is checked by each half that receives it, and by nothing but `check_file_name`.  The delivery
half starts once a transfer, so this file imports only what costs nothing: no
dataclass, no regular expression, no typing.
"""

from __future__ import annotations

from cage_runtime.errors import TransferFailed, UsageError
from cage_runtime.filenames import CHUNK as CHUNK
from cage_runtime.filenames import FILE_NAME_BYTES as FILE_NAME_BYTES
from cage_runtime.filenames import RENAMES_MAX as RENAMES_MAX
from cage_runtime.filenames import TRANSFER_BYTES_MAX as TRANSFER_BYTES_MAX
from cage_runtime.filenames import candidate as candidate
from cage_runtime.filenames import check_file_name as check_file_name
from cage_runtime.text import escape

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

BUS_NAME = INTERFACE = "org.cageruntime.Files1"
PATH = "/org/cageruntime/Files1"
SEND, SEND_TREE, SEND_RECEIPTED = "Send", "SendTree", "SendReceipted"
START_FILE, START_TREE = "StartFile", "StartTree"
"""The same, and whoever asks follows what becomes of it, and can cancel it."""
SEND_SIGNATURE, SEND_TREE_SIGNATURE = "ssha{sv}", "ssa{sv}"
JOB_INTERFACE = f"{INTERFACE}.Job"
LIST_JOBS, CANCEL_JOB = "ListJobs", "Cancel"
SERVICE, MOVE_SERVICE = "files.Send", "files.Move"
"""What policy calls it, and what it calls it where the source is to be removed."""

JOB, STATE, DONE, TOTAL = "job", "state", "done", "total"
ARRIVED, RECEIPT, ERROR, SENTENCE = "arrived", "receipt", "error", "sentence"
"""Keys of the lines that whoever sends is told, each a JSON object: the number of its job; how far it is; and, in the
last one, where it arrived, and the receipt where one is wanted, or the error's name on the bus and what it says."""
WAITING, READING, DELIVERING, COMMITTED = STATES = ("waiting", "reading", "delivering", "committed")
"""It has no place yet; the core reads it, so many bytes of so many; the core has read it; and from now on it may
arrive, whatever ends meanwhile, so that it can neither be cancelled nor may be sent again without a look."""
LINE_MAX = 4096
"""Bytes of such a line at most."""
CANCEL = b"c"
"""What is written into `control` to have it cancelled."""

RENAME, SKIP, REPLACE, FAIL = CONFLICTS = ("rename", "skip", "replace", "fail")
"""What to do where the name is taken: take another, deliver nothing, put it in the place of what is there, fail."""

READY, GO = "ready\n", "SIGUSR1"
"""What the delivery half writes first, when the file wants nothing but its name, and the signal that then gives it."""
OUTPUT_MAX = 16
"""Bytes that the delivery half writes on its standard output at most: READY, a number and a line feed."""
ONCE_DIGITS = 32
SKIPPED = 0
"""That number where nothing was delivered because the name is taken."""

FULL, INBOX, CROWDED, DAMAGED, WITHDRAWN, TAKEN, GIVEN = 20, 21, 22, 23, 24, 25, 26
FAULTS = {
    FULL: "its home is full",
    INBOX: "its Inbox is not a directory that can be written",
    CROWDED: f"its Inbox already has {RENAMES_MAX} files of this name",
    DAMAGED: "what came there is not what was sent",
    WITHDRAWN: "it was withdrawn before it was there",
    TAKEN: "its Inbox has something of this name that cannot be replaced, or is not to be",
    GIVEN: "an earlier delivery of it has given it its name",
}
"""Exit statuses of the delivery half.  Only the status crosses back to the source: the target may be of a higher
level, and no text of its own may come down."""

_RECEIPTS = (SEND_TREE, START_FILE, START_TREE)
"""Methods that take the option of that name."""


class Options:
    """What a sender may say of a transfer beside what and where to.  Immutable by custom."""

    __slots__ = ("conflict", "move", "receipt", "untrusted_signature")

    def __init__(self, *, conflict: str = RENAME, move: bool = False, receipt: bool = False,
                 untrusted_signature: bytes = b"") -> None:
        """`move`: the source removes it once it has arrived.  `receipt`: it wants one.  The signature is that of the
        file, for a rule that wants one."""
        self.conflict, self.move, self.receipt = conflict, move, receipt
        self.untrusted_signature = untrusted_signature

    @classmethod
    def read(cls, untrusted_options: dict[str, Any], member: str = SEND) -> Options:
        """From D-Bus variants by name, of a call of `member`; UsageError where there is another, or one is of another
        type."""
        conflict, move, receipt, signature = RENAME, False, member == SEND_RECEIPTED, b""
        for name, variant in untrusted_options.items():
            if name == "conflict" and variant.signature == "s":
                conflict = check_conflict(variant.value)
            elif name == "move" and variant.signature == "b":
                move = variant.value
            elif name == "receipt" and variant.signature == "b" and member in _RECEIPTS:
                receipt = variant.value
            elif name == "signature" and variant.signature == "ay" and member not in (SEND_TREE, START_TREE):
                signature = _check_signature(variant.value)
            else:
                raise UsageError(f'there is no option "{escape(name, limit=40)}" of that type')
        return cls(conflict=conflict, move=move, receipt=receipt, untrusted_signature=signature)


def _check_signature(untrusted_signature: bytes) -> bytes:
    from cage_runtime.model import SIGNATURE_BYTES_MAX

    if not 0 < len(untrusted_signature) <= SIGNATURE_BYTES_MAX:
        raise UsageError(f"a signature has 1 to {SIGNATURE_BYTES_MAX} bytes")
    return bytes(untrusted_signature)


class Delivery:
    """What the core half asks of the delivery half; its standard input is the file or the tree's stream.  Immutable by
    custom."""

    __slots__ = ("conflict", "name", "once", "sha256", "since", "size", "source", "tree")

    def __init__(self, *, source: str, name: str, size: int, sha256: str, tree: bool = False,
                 conflict: str = RENAME, once: str = "", since: int = 0) -> None:
        """`size` in bytes, of a tree's whole stream; `sha256` of the file or of the tree's manifest.  `once`: the same
        for each delivery of what is to arrive once however often it is delivered; empty for what is delivered once.
        `since`: whatever may still be delivered again was accepted at this time of day or later."""
        self.source, self.name, self.size, self.sha256 = source, name, size, sha256
        self.tree, self.conflict, self.once, self.since = tree, conflict, once, since

    def arguments(self) -> list[str]:
        """The command line after --deliver, which caged puts there."""
        kind = "tree" if self.tree else "file"
        return [kind, self.conflict, self.source, self.name, str(self.size), self.sha256, self.once or "-",
                str(self.since)]


def parse_delivery(untrusted_arguments: list[str]) -> Delivery:
    """The delivery that `untrusted_arguments`, those after --deliver, ask for; else UsageError."""
    if len(untrusted_arguments) != 8:
        raise UsageError("--deliver takes file|tree CONFLICT SOURCE NAME SIZE SHA256 ONCE|- SINCE")
    kind, conflict, source, name, size, digest, once, since = untrusted_arguments
    if kind not in ("file", "tree"):
        raise UsageError(f'"{escape(kind, limit=40)}" is neither file nor tree')
    if not (size.isascii() and size.isdigit() and len(size) <= 12 and 0 < int(size) <= TRANSFER_BYTES_MAX):
        raise UsageError(f'"{escape(size, limit=40)}" is not a size of 1 to {TRANSFER_BYTES_MAX} bytes')
    _check_digits(digest, 64, "the digest")
    if once != "-":
        _check_digits(once, ONCE_DIGITS, "what it is delivered once by")
    if not (since.isascii() and since.isdigit() and len(since) <= 12):
        raise UsageError(f'"{escape(since, limit=40)}" is not a time of day in seconds')
    return Delivery(source=check_file_name(source), name=check_file_name(name), size=int(size), sha256=digest,
                    tree=kind == "tree", conflict=check_conflict(conflict), once="" if once == "-" else once,
                    since=int(since))


def _check_digits(untrusted: str, count: int, what: str) -> None:
    if len(untrusted) != count or not set(untrusted) <= set("0123456789abcdef"):
        raise UsageError(f"{what} is not {count} hexadecimal digits")


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
