# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a person or a program sees.

Law of this room: results go to standard output, everything else to standard error; with --json standard output is
one JSON document and nothing besides.  Text from the bus is shown only through `cell` or `visible`.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Sequence
    from typing import Any

_COLORS = {
    "running": "32",
    "ok": "32",
    "allow": "32",
    "starting": "33",
    "stopping": "33",
    "paused": "33",
    "limited": "33",
    "ask": "33",
    "failed": "31",
    "missing": "31",
    "deny": "31",
}
"""SGR parameters of the words that carry a judgement."""
_SIDE_MAX = 9999
"""Rows or columns of a terminal."""
_TEXT_MAX = 100_000
"""Characters of one text that is shown whole, such as a definition's line."""


def cell(untrusted: object) -> str:
    """`untrusted` in a table: escaped without ambiguity; a list and a table as their parts, nothing as "-"."""
    if isinstance(untrusted, list):
        return " ".join(cell(part) for part in untrusted) or "-"
    if isinstance(untrusted, dict):
        return ", ".join(f"{cell(key)} {cell(value)}" for key, value in untrusted.items()) or "-"
    if isinstance(untrusted, bool):
        return "yes" if untrusted else "no"
    text = str(untrusted)
    if not _plain(text) or "\\" in text or len(text) > 400:
        text = _escaped(text, 400)
    return text or "-"


def visible(untrusted: str) -> str:
    """`untrusted` on one line and harmless to a terminal, with backslashes as they are: it may be escaped already."""
    if _plain(untrusted):
        return untrusted
    return "\\".join(_escaped(part, _TEXT_MAX) for part in untrusted.split("\\"))


def _escaped(untrusted: str, limit: int) -> str:
    """As `escape` has it; a byte that is not UTF-8, in an argument U+DC80 to U+DCFF, as that byte."""
    from cage_runtime.text import escape

    shown = [
        f"\\x{ord(character) - 0xDC00:02x}" if "\udc80" <= character <= "\udcff" else escape(character)
        for character in untrusted[:limit]
    ]
    return "".join(shown) + ("…" if len(untrusted) > limit else "")


def _plain(text: str) -> bool:
    return text.isascii() and text.isprintable()


def terminal_size() -> tuple[int, int]:
    """Rows and columns of the terminal on standard output, as many as a cage can be told of; 0 where it has no size."""
    size = os.get_terminal_size(1)
    return min(size.lines, _SIDE_MAX), min(size.columns, _SIDE_MAX)


def say(program: str, sentence: str) -> None:
    """One line on standard error."""
    sys.stderr.write(f"{program}: {visible(sentence)}\n")
    sys.stderr.flush()


class Screen:
    """Standard output as the common flags want it."""

    def __init__(self, args: argparse.Namespace) -> None:
        self._json = "pretty" if args.pretty else args.json
        self._quiet: bool = args.quiet
        self._legend: bool = not args.no_legend
        self._color = self._wants_color(args.color)

    @staticmethod
    def _wants_color(choice: str) -> bool:
        if choice != "auto":
            return choice == "always"
        return not os.environ.get("NO_COLOR") and os.environ.get("TERM", "dumb") != "dumb" and sys.stdout.isatty()

    @property
    def as_json(self) -> bool:
        return self._json != "off"

    def document(self, data: Any) -> None:
        """The result as JSON: ASCII alone, so that nothing in it can reach a terminal as more than letters."""
        import json

        if self._json == "pretty":
            sys.stdout.write(json.dumps(data, indent=2) + "\n")
        else:
            sys.stdout.write(json.dumps(data, separators=(",", ":")) + "\n")

    def line(self, text: str) -> None:
        """A line of a result that was asked for."""
        sys.stdout.write(text + "\n")

    def done(self, text: str) -> None:
        """A line that says what was done; nothing with --quiet."""
        if not self._quiet and not self.as_json:
            self.line(text)

    def word(self, shown: str, word: str) -> str:
        """`shown` in the color of `word`."""
        if not self._color or word not in _COLORS:
            return shown
        return f"\033[{_COLORS[word]}m{shown}\033[0m"

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[object]], noun: str) -> None:
        """Rows under their headings, and how many there are."""
        cells = [[cell(value) for value in row] for row in rows]
        if not cells:
            if self._legend:
                self.line(f"No {noun}s.")
            return
        shown = [list(columns), *cells] if self._legend else cells
        widths = [max(len(row[index]) for row in shown) for index in range(len(columns))]
        for row in shown:
            padded = [text.ljust(width) for text, width in zip(row, widths, strict=True)]
            colored = [self.word(text, text.rstrip()) for text in padded[:-1]]
            self.line(" ".join([*colored, self.word(row[-1], row[-1])]).rstrip())
        if self._legend:
            self.line(f"\n{len(cells)} {noun}{'' if len(cells) == 1 else 's'}.")

    def fields(self, pairs: Iterable[tuple[str, object]]) -> None:
        """A block of `Label: value` with the colons in one column."""
        listed = [(label, value) for label, value in pairs]
        width = max((len(label) for label, _ in listed), default=0)
        for label, value in listed:
            parts = value if isinstance(value, list) and len(value) > 1 else [value]
            for number, part in enumerate(parts):
                start = f"{label:>{width}}: " if number == 0 else " " * (width + 2)
                text = cell(part)
                self.line(start + self.word(text, text))
