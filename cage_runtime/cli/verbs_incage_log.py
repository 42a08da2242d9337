# SPDX-License-Identifier: LGPL-2.1-or-later
"""incage log: lines for the host's journal, where they are shown as this cage's."""

from __future__ import annotations

import codecs
import os

from cage_runtime.cli.client import Peer, mediator
from cage_runtime.cli.verbs_incage import require_inside

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Iterator

    from cage_runtime.cli.output import Screen

LINES_MAX, LINE_CHARACTERS_MAX, CALL_CHARACTERS_MAX = 32, 2000, 16_000
PRIORITIES = ("err", "warning", "notice", "info", "debug")
"""These are mediators/log/protocol.py's (a test holds them equal), which this room does not know."""
CHUNK = 64 * 1024


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--priority", metavar="P", choices=PRIORITIES, default="info",
                        help="err, warning, notice, info (as without) or debug")
    parser.add_argument("--tag", metavar="T", help="the program whose lines they are")
    parser.add_argument("words", metavar="WORD", nargs="*", help="one line; without any, lines from standard input")


def _log(args: argparse.Namespace, screen: Screen) -> int:
    del screen
    require_inside()
    options = {"priority": args.priority} | ({"tag": args.tag} if args.tag is not None else {})
    peer = mediator("log", "so nothing can be written into the host's journal")
    lines = iter([[" ".join(args.words)]]) if args.words else _read(0)
    for several in lines:
        _write(peer, several, options)
    return 0


def _read(descriptor: int) -> Iterator[list[str]]:
    """The lines that are read from the descriptor, as they come."""
    decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace")
    rest = ""
    while chunk := os.read(descriptor, CHUNK):
        *lines, rest = (rest + decoder.decode(chunk)).split("\n")
        # What has no end yet waits for it, as far as it may.
        whole = len(rest) // LINE_CHARACTERS_MAX * LINE_CHARACTERS_MAX
        lines += [rest[:whole]] if whole else []
        rest = rest[whole:]
        yield lines
    rest += decoder.decode(b"", True)
    yield [rest] if rest else []


def _write(peer: Peer, lines: Iterable[str], options: dict[str, str]) -> None:
    for batch in _batches(piece for line in lines for piece in _pieces(line)):
        # As long as it takes: a cage that writes much waits for its turn.
        peer.call("Write", "asa{sv}", batch, options, timeout=None)


def _pieces(line: str) -> Iterator[str]:
    """The line in pieces that a line may have; D-Bus has no text with a NUL or half a character in it."""
    line = line.replace("\0", "\\0").encode("utf-8", "backslashreplace").decode()
    for begin in range(0, len(line), LINE_CHARACTERS_MAX):
        yield line[begin : begin + LINE_CHARACTERS_MAX]


def _batches(lines: Iterable[str]) -> Iterator[list[str]]:
    """As many as one call may have; an empty line is none."""
    batch: list[str] = []
    taken = 0
    for line in lines:
        # In bytes, of which a character has up to four: the bus has a bound for the message.
        size = len(line.encode())
        if len(batch) == LINES_MAX or taken + size > CALL_CHARACTERS_MAX:
            yield batch
            batch, taken = [], 0
        batch.append(line)
        taken += size
    if batch:
        yield batch


VERBS = {"log": (_arguments, _log)}
