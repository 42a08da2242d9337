# SPDX-License-Identifier: LGPL-2.1-or-later
"""argparse as the commands use it: one error line, help in 80 columns, the same on every version of Python."""

from __future__ import annotations

import argparse

from cage_runtime.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

# argparse asks gettext for every heading, which loads locale and looks for catalogues that nobody has: 2 ms of 20.
argparse._ = str  # type: ignore[attr-defined]

JSON_FORMS = ("short", "pretty", "off")
COLOR_CHOICES = ("auto", "always", "never")


class _Formatter(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str, **options: object) -> None:
        # A fixed width: asking for the terminal's imports shutil, which costs more than all the rest.
        del options
        super().__init__(prog, width=79, max_help_position=24)


class Parser(argparse.ArgumentParser):
    """The parser of one sub-command, with the common flags."""

    def __init__(self, *, prog: str, description: str, epilog: str = "", asks: bool = False) -> None:
        super().__init__(
            prog=prog,
            description=description,
            epilog=epilog or None,
            formatter_class=_Formatter,
            allow_abbrev=False,
            add_help=False,
        )
        self.color = False
        """Python 3.14 colors help by default; ours is the same everywhere."""
        common = self.add_argument_group("common options")
        add = common.add_argument
        add("-h", "--help", action="help", help="show this help and exit")
        add("-j", dest="pretty", action="store_true", help="the same as --json=pretty")
        add("--json", choices=JSON_FORMS, default="off", metavar="FORM", help="short, pretty or off")
        add("-q", "--quiet", action="store_true", help="do not say what was done")
        add("--no-legend", action="store_true", help="no headings and no count in tables")
        add("--no-pager", action="store_true", help="accepted; there is no pager")
        add("--color", choices=COLOR_CHOICES, default="auto", metavar="WHEN", help="auto, always or never")
        if asks:
            add("--no-ask-password", action="store_true", help="ask nobody for a password")

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{self.prog.partition(' ')[2]}: {message}; see {self.prog} --help")


def whole_number(text: str) -> int:
    """A number above 0, for argparse's `type`."""
    if not text.isascii() or not text.isdigit() or not 0 < int(text[:12]) < 2**32:
        raise argparse.ArgumentTypeError("a whole number above 0 is needed")
    return int(text[:12])


def positive_number(text: str) -> float:
    """A finite number above 0, for argparse's `type`."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < 1e6:
        raise argparse.ArgumentTypeError("a number above 0 is needed, such as 1.5")
    return number
