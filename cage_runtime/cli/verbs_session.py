# SPDX-License-Identifier: LGPL-2.1-or-later
"""Commands and applications in a cage: enter, run."""

from __future__ import annotations

import os
import re

from cage_runtime.cli.client import core
from cage_runtime.cli.output import terminal_size
from cage_runtime.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from cage_runtime.cli.output import Screen
    from cage_runtime.cli.session import Session

CAGE_HOME = "/home/user"
"""The home directory in every cage."""
_TERM = re.compile(r"[A-Za-z0-9][A-Za-z0-9+.-]{0,31}\Z")
"""Kinds of terminal that a cage can be told of (term(7))."""


def _enter_arguments(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(takes_command=True)
    parser.usage = "%(prog)s NAME [--root] [--cwd DIR] [OPTION…] [-- COMMAND [ARG…]]"
    parser.epilog = (
        "Without a command: a login shell. On a terminal the command gets one of its own,\n"
        "otherwise pipes. The exit status is the command's own; 125 to 127 and 137 may\n"
        "also come from the runtime, see cagectl(1)."
    )
    parser.add_argument("name", metavar="NAME", help="a running cage")
    _stray_argument(parser)
    parser.add_argument("--root", action="store_true", help="as the cage's own root, who owns nothing outside")
    parser.add_argument("--cwd", metavar="DIR", help=f"the directory to begin in, instead of {CAGE_HOME}")


def _stray_argument(parser: argparse.ArgumentParser) -> None:
    # Words without "--" before them: caught to say so, and not shown in help.
    from argparse import SUPPRESS

    parser.add_argument("stray", nargs="*", default=[], help=SUPPRESS)


def _check_stray(args: argparse.Namespace) -> None:
    if args.stray:
        raise UsageError(f'put "--" before what the command in the cage shall get: -- {" ".join(args.stray)}')


def _enter(args: argparse.Namespace, screen: Screen) -> int:
    del screen
    _check_stray(args)
    if args.has_command and not args.command:
        raise UsageError('enter: no command after "--"; leave out both for a shell')
    options: dict[str, object] = {"root": True} if args.root else {}
    if args.cwd is not None:
        options["cwd"] = args.cwd
    return _session(args, "Enter", "sasa{sv}", [args.name, args.command], options)


def _run_arguments(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(takes_command=True)
    parser.usage = "%(prog)s NAME APP-ID [--detach] [OPTION…] [-- ARG…]"
    parser.epilog = (
        "An argument that begins with your own home directory, as ~/… does after the\n"
        f"shell has expanded it, means the same place below the cage's home, {CAGE_HOME}.\n"
        "The exit status is the application's own."
    )
    parser.add_argument("name", metavar="NAME", help="a running cage")
    parser.add_argument("application", metavar="APP-ID", help="an application of it, such as org.cageruntime.Notes")
    _stray_argument(parser)
    parser.add_argument("--detach", action="store_true", help="do not wait for it; see cagectl logs NAME")


def _run(args: argparse.Namespace, screen: Screen) -> int:
    _check_stray(args)
    home = os.environ.get("HOME", "")
    arguments = [home_in_cage(argument, home) for argument in args.command]
    values: list[object] = [args.name, args.application, arguments]
    if not args.detach:
        return _session(args, "Run", "ssasa{sv}", values, {})
    with _opened(args, "Run", "ssasa{sv}", *values, {"detach": True}, terminal=False) as session:
        status = session.wait_started()
    if not status:
        if screen.as_json:
            screen.document({"name": args.name, "application": args.application, "state": "started"})
        screen.done(f"{args.application}: started in {args.name}")
    return status


def home_in_cage(argument: str, home: str) -> str:
    """`argument` with the caller's home directory at its beginning replaced by the cage's."""
    home = home.rstrip("/")
    if home and (argument == home or argument.startswith(home + "/")):
        return CAGE_HOME + argument[len(home) :]
    return argument


def _session(
    args: argparse.Namespace, member: str, signature: str, values: list[object], options: dict[str, object]
) -> int:
    terminal = os.isatty(0) and os.isatty(1)
    if terminal:
        rows, columns = terminal_size()
        # A terminal that does not know its size (a serial line, a script's) says 0.
        options |= {"tty": True, "rows": ("q", rows or 24), "columns": ("q", columns or 80)}
        options["term"] = _kind_of_terminal()
    with _opened(args, member, signature, *values, options, terminal=terminal) as session:
        return session.run()


def _kind_of_terminal() -> str:
    kind = os.environ.get("TERM", "")
    return kind if _TERM.match(kind) else "dumb"


def _opened(args: argparse.Namespace, member: str, signature: str, *values: object, terminal: bool) -> Session:
    # The relay is loaded while caged works: 3 ms of ours that nobody waits for.
    channel = core(args.verb, args.asks).call(member, signature, *values, returns="h", meanwhile=_session_type)
    return _session_type()(channel, terminal=terminal, program=args.program)


def _session_type() -> type[Session]:
    from cage_runtime.cli.session import Session

    return Session


VERBS = {"enter": (_enter_arguments, _enter), "run": (_run_arguments, _run)}
