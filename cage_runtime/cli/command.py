# SPDX-License-Identifier: LGPL-2.1-or-later
"""From an argument vector to an exit status: what cagectl and incage have in common.

Law of this room: whatever goes wrong becomes exactly one line on standard error and the status that its type says.
Nothing is imported that the sub-command in hand does not need; help for the whole program needs nothing at all.
"""

from __future__ import annotations

import errno
import os
import sys

from cage_runtime.cli.output import say
from cage_runtime.errors import CageError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

VERSION = "0.1.0"

_FLAGS = ("-h", "--help", "-j", "-q", "--quiet", "--no-legend", "--no-pager")
_FLAGS_WITH_VALUE = ("--json", "--color")
_COMMON = """\

Common options, before or after the command:
  -h, --help              show this help, or that of the command
  -j, --json=FORM         pretty (-j), short, or off
  -q, --quiet             do not say what was done
  --no-legend             no headings and no count in tables
  --no-pager              accepted; there is no pager
  --color=WHEN            auto, always or never; NO_COLOR is heeded
  --version               show the version
"""
_NOT_TO_ASK = "--no-ask-password"


class Program:
    """A command with sub-commands.

    `verbs` has for each sub-command (one or two words) the module of this package that does it and a summary.  The
    module's VERBS has for it a pair: a function that adds arguments to a parser, and one that does the work.
    `later` names those that the interface promises and this version does not have.  With `asks` a person may be asked
    for a password, and may say not to be.  One that `completes` gives shells the names that
    there are, for `--complete` and what they want.
    """

    def __init__(
        self,
        *,
        name: str,
        purpose: str,
        verbs: Mapping[str, tuple[str, str]],
        closing: str,
        later: tuple[str, ...] = (),
        asks: bool = False,
        completes: bool = False,
    ) -> None:
        self.name, self.purpose, self.verbs, self.closing, self.later = name, purpose, verbs, closing, later
        self._flags = (*_FLAGS, _NOT_TO_ASK) if asks else _FLAGS
        self.asks, self.completes = asks, completes
        self.groups = {verb.partition(" ")[0] for verb in verbs if " " in verb}

    def help(self, group: str = "") -> str:
        first = group + " " if group else ""
        listed = {verb: summary for verb, (_, summary) in self.verbs.items() if verb.startswith(first)}
        width = max(len(verb) for verb in listed) + 2
        lines = [f"usage: {self.name} [OPTION…] {first}COMMAND …", "", self.purpose, "", "Commands:"]
        lines += [f"  {verb:<{width}}{summary}" for verb, summary in listed.items()]
        asking = f"  {_NOT_TO_ASK}       ask nobody for a password\n" if self.asks else ""
        return "\n".join(lines) + "\n" + _COMMON + asking + f"\n{self.closing}\n"

    def main(self, argv: list[str] | None) -> int:
        """Does what `argv` (default: the process's) says; the status with which the process should exit."""
        _open_standard_streams()
        try:
            status = self._dispatch_or_say(sys.argv[1:] if argv is None else argv)
            sys.stdout.flush()
        except KeyboardInterrupt:
            return 130
        except OSError as error:
            return self._output_failed(error)
        return status

    def _dispatch_or_say(self, argv: list[str]) -> int:
        try:
            return self._dispatch(argv)
        except CageError as error:
            say(self.name, error.sentence)
            return error.exit_status

    def _output_failed(self, error: OSError) -> int:
        # Python flushes standard output once more at its end, and would complain on its own.
        os.dup2(os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC), 1)
        if error.errno == errno.EPIPE:
            return 141
        say(self.name, f"{error.filename or 'cannot write the result'}: {error.strerror}")
        return 1

    def _dispatch(self, argv: list[str]) -> int:
        if argv[:1] == ["--complete"] and self.completes:
            from cage_runtime.cli.complete import names

            sys.stdout.writelines(f"{name}\n" for name in names(argv[1:]))
            return 0
        flags, words, rest = self._separate(argv)
        if "--version" in flags:
            sys.stdout.write(f"{self.name} {VERSION}\n")
            return 0
        if not words or (words in self.groups):
            if "-h" in flags or "--help" in flags:
                sys.stdout.write(self.help(words))
                return 0
            raise UsageError(f"no command given; see {self.name} {words + ' ' if words else ''}--help")
        if words not in self.verbs:
            raise UsageError(self._unknown(words))
        return self._perform(words, flags + rest)

    def _unknown(self, words: str) -> str:
        if words in self.later:
            return f"{words} is not offered by this runtime yet; see {self.name} --help"
        return f'there is no command "{words}"; see {self.name} --help'

    def _separate(self, argv: list[str]) -> tuple[list[str], str, list[str]]:
        """The common flags before and between the words of the sub-command, those words, and what follows."""
        flags: list[str] = []
        words = ""
        position = 0
        while position < len(argv):
            argument = argv[position]
            position += 1
            if argument in self._flags or argument == "--version" or argument.startswith(("--json=", "--color=")):
                flags.append(argument)
            elif argument in _FLAGS_WITH_VALUE:
                flags += argv[position - 1 : position + 1]
                position += 1
            elif argument.startswith("-"):
                raise UsageError(f"the option {argument} is not known before a command; see {self.name} --help")
            else:
                words = f"{words} {argument}" if words else argument
                if words not in self.groups:
                    break
        return flags, words, argv[position:]

    def _perform(self, verb: str, arguments: list[str]) -> int:
        module_name, summary = self.verbs[verb]
        module: Any = __import__(f"cage_runtime.cli.{module_name}", fromlist=("VERBS",))
        from cage_runtime.cli.output import Screen
        from cage_runtime.cli.parser import Parser

        add_arguments, perform = module.VERBS[verb]
        own, separator, command = _at_separator(arguments)
        end = "" if summary.endswith("?") else "."
        description = summary[:1].upper() + summary[1:] + end
        parser = Parser(prog=f"{self.name} {verb}", description=description, asks=self.asks)
        add_arguments(parser)
        takes_command = parser.get_default("takes_command")
        try:
            args = parser.parse_args(own if takes_command else arguments)
        except SystemExit:
            return 0
        args.command = command
        args.has_command = bool(separator)
        args.program, args.verb = self.name, verb
        args.asks = self.asks and not args.no_ask_password
        return int(perform(args, Screen(args)))


def _at_separator(arguments: list[str]) -> tuple[list[str], list[str], list[str]]:
    """What stands before the first "--", that, and what follows, for a command's arguments are not ours to parse."""
    if "--" not in arguments:
        return arguments, [], []
    at = arguments.index("--")
    return arguments[:at], ["--"], arguments[at + 1 :]


def _open_standard_streams() -> None:
    """Puts /dev/null where a standard stream is closed, so that no other descriptor takes its number."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115 - as long as the process
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if reconfigure := getattr(stream, "reconfigure", None):
            reconfigure(errors="backslashreplace")
