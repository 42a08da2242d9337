# SPDX-License-Identifier: LGPL-2.1-or-later
"""Receipts of what the core did for a cage (cage-receipt(5)): audit key, audit verify-receipt; incage verify-receipt.

Law of this room: with a key, nobody is asked; without, the core's own record has the last word.
"""

from __future__ import annotations

import os

from cage_runtime.cli.client import core
from cage_runtime.cli.output import Screen, cell
from cage_runtime.errors import CageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from cage_runtime.receipt import Receipt

_LABELS = (("outcome", "Outcome"), ("service", "Service"), ("source", "Source"), ("target", "Target"), ("name", "Name"),
           ("size", "Size"), ("files", "Files"), ("sha256", "SHA-256"), ("time", "Time"), ("request", "Request"),
           ("record", "Record"), ("host", "Host"))


def _no_arguments(parser: argparse.ArgumentParser) -> None:
    del parser


def _file_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="the receipt")


def _verify_arguments(parser: argparse.ArgumentParser) -> None:
    _file_argument(parser)
    told = "a file with what cagectl audit key printed: look at the signature alone"
    parser.add_argument("--key", metavar="PUB", help=told)


def _inside_arguments(parser: argparse.ArgumentParser) -> None:
    _file_argument(parser)
    parser.add_argument("--key", metavar="PUB", required=True, help="a file with what cagectl audit key printed")


def _key(args: argparse.Namespace, screen: Screen) -> int:
    key = core(args.verb, args.asks).call("AuditKey", "a{sv}", {}, returns="s")
    if screen.as_json:
        screen.document({"key": key})
        return 0
    screen.line(cell(key))
    return 0


def _verify(args: argparse.Namespace, screen: Screen) -> int:
    from cage_runtime import receipt
    from cage_runtime.model import RECEIPT_BYTES_MAX

    untrusted = _content(args.file, RECEIPT_BYTES_MAX)
    if args.key:
        public = _public(_content(args.key, receipt.KEY_FILE_BYTES_MAX), args.key)
    else:
        key = core(args.verb, args.asks).call("AuditKey", "a{sv}", {}, returns="s")
        public = _public(key.encode(), "the core's key")
    try:
        found = receipt.verified(untrusted, public)
    except receipt.BadReceipt as error:
        raise CageError(f'"{cell(args.file)}" {error.sentence}') from error
    sequence = 0 if args.key else _sequence(args, found)
    if screen.as_json:
        screen.document(found.body() | ({"sequence": sequence} if sequence else {}))
        return 0
    body = found.body()
    screen.fields((label, body[key]) for key, label in _LABELS)
    where = f"and is of record {sequence} of the chain" if sequence else "and this host's record was not looked at"
    screen.done(f"{cell(args.file)}: the signature is good, {where}")
    return 0


def _content(path: str, most: int) -> bytes:
    """At most one byte more than `most`; of a pipe nobody waits for the end."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:
        return file.read(most + 1)


def _public(untrusted: bytes, what: str) -> bytes:
    from cage_runtime import receipt

    try:
        return receipt.read_public(untrusted)
    except ValueError as error:
        raise CageError(f'"{cell(what)}" is not what cagectl audit key prints') from error


def _sequence(args: argparse.Namespace, found: Receipt) -> int:
    """The number of the record that the receipt is of; CageError where the chain has another, or none."""
    import json

    from cage_runtime import receipt

    lines = core(args.verb, args.asks).call("TailAudit", "a{sv}", {"hash": found.record}, returns="as")
    if len(lines) != 1:
        raise CageError(f'"{cell(args.file)}" is of no record in the chain: its signature is good, so the chain is not '
                        "what it was; see cagectl audit verify")
    record = json.loads(lines[0])
    body = found.body()
    for key, value in receipt.recorded(record["time"], record["hash"], record["fields"]).items():
        if body[key] != value:
            raise CageError(f'"{cell(args.file)}" has another {key} than its record in the chain: {cell(value)}')
    return int(record["sequence"])


VERBS = {
    "audit key": (_no_arguments, _key),
    "audit verify-receipt": (_verify_arguments, _verify),
    "verify-receipt": (_inside_arguments, _verify),
}
