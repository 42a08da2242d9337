# SPDX-License-Identifier: LGPL-2.1-or-later
"""The life of a cage: create, start, stop, pause, resume, kill, destroy."""

from __future__ import annotations

import os
import sys

from cage_runtime.cli.client import NotRunning, core
from cage_runtime.cli.output import Screen, cell, say
from cage_runtime.errors import CageError, RuntimeFailure, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

DEFINITION_BYTES_MAX = 64 * 1024
"""As model.DEFINITION_BYTES_MAX, which this room does not import: dataclasses would double the time of a call."""


def _create_arguments(parser: argparse.ArgumentParser) -> None:
    from cage_runtime.cli.parser import positive_number, whole_number

    parser.add_argument("name", metavar="NAME", help='1 to 31 of a-z, 0-9 and "-", first a letter')
    parser.add_argument("--level", metavar="LEVEL", help="the level of what it holds, such as internal")
    parser.add_argument(
        "--compartment", metavar="C", action="append", dest="compartments", help="a compartment; may be repeated"
    )
    base = parser.add_mutually_exclusive_group()
    base.add_argument("--template", metavar="TEMPLATE", help="begin with a template of this host")
    base.add_argument("--from", metavar="FILE", dest="definition", help="begin with a definition, see cage.toml(5)")
    parser.add_argument("--ephemeral", action="store_true", help="forget everything when it stops")
    parser.add_argument("--memory", metavar="SIZE", help="most memory, such as 2G")
    parser.add_argument("--cpus", metavar="N", type=positive_number, help="most processor time, such as 1.5")
    parser.add_argument("--tasks", metavar="N", type=whole_number, help="most processes and threads")
    parser.add_argument("--disk", metavar="SIZE", help="most bytes in its home, such as 10G")
    parser.add_argument("--network", metavar="MODE", help="none, nat, via:CAGE or tunnel:NAME")
    parser.add_argument("--exec-home", action="store_true", help="let programs in its home be executed")
    parser.add_argument("--private", action="store_true", help="nobody enters it or reads its log, ever")
    parser.add_argument(
        "--require", metavar="WALL", action="append", help="not without lsm, or landlock; may be repeated"
    )
    parser.add_argument("--autostart", action="store_true", help="start it with the host, from the next time on")
    parser.add_argument("--no-start", action="store_true", help="define it and do not start it")


def _create(args: argparse.Namespace, screen: Screen) -> int:
    options: dict[str, object] = {"start": not args.no_start}
    for key in ("level", "compartments", "template", "memory", "cpus", "tasks", "disk", "network", "require"):
        if (value := getattr(args, key)) is not None:
            options[key] = value
    for key in ("ephemeral", "exec_home", "private", "autostart"):
        if getattr(args, key):
            options[key.replace("_", "-")] = True
    if args.definition:
        options["definition"] = _definition(args.definition)
        options["definition-file"] = args.definition
    manager = core(args.verb, args.asks)
    manager.call("Create", "sa{sv}", args.name, options, returns="o")
    if args.quiet and not screen.as_json:
        return 0
    status = manager.call("Status", "sa{sv}", args.name, {}, returns="a{sv}")
    if screen.as_json:
        screen.document(status)
        return 0
    label = ", ".join([cell(status.get("level", "")), *(cell(name) for name in status.get("compartments", []))])
    screen.done(f"{args.name}: {cell(status.get('state', ''))}, {label}")
    return 0


def _definition(path: str) -> str:
    with open(path, "rb") as file:
        content = file.read(DEFINITION_BYTES_MAX + 1)
    if len(content) > DEFINITION_BYTES_MAX:
        raise UsageError(f"{path} is longer than {DEFINITION_BYTES_MAX} bytes, which no definition is")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise UsageError(f"{path}:{line}: this is not UTF-8, which a definition has to be") from error


def _names_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", metavar="NAME", nargs="+", help="a cage")


def _destroy_arguments(parser: argparse.ArgumentParser) -> None:
    _names_arguments(parser)
    parser.add_argument("--yes", action="store_true", help="do not ask")


def _each(args: argparse.Namespace, screen: Screen, member: str, became: str, now: dict[str, object]) -> int:
    """Calls `member` for every name; every failure is reported, and the worst decides the status."""
    manager = core(args.verb, args.asks)
    worst = 0
    done = []
    for name in dict.fromkeys(args.names):
        try:
            manager.call(member, "sa{sv}", name, {})
        except NotRunning:
            raise
        except CageError as error:
            say(args.program, error.sentence)
            worst = max(worst, error.exit_status)
        else:
            done.append({"name": name, **now})
            screen.done(f"{name}: {became}")
    if screen.as_json:
        screen.document(done)
    return worst


def _simple(member: str, became: str, **now: object) -> tuple[Callable[..., None], Callable[..., int]]:
    """A verb that calls `member` for names; each is then `became`, and in JSON as `now` says, else with that state."""
    return _names_arguments, lambda args, screen: _each(args, screen, member, became, now or {"state": became})


def _destroy(args: argparse.Namespace, screen: Screen) -> int:
    if not args.yes and (names := _with_documents(args)) and not _agreed(names):
        raise CageError("nothing was destroyed")
    return _each(args, screen, "Destroy", "destroyed", {"state": "destroyed"})


def _with_documents(args: argparse.Namespace) -> list[str]:
    """Those of the named cages that hold documents; where caged cannot say, a cage may."""
    manager = core(args.verb, args.asks)
    found = []
    for name in dict.fromkeys(args.names):
        try:
            status = manager.call("Status", "sa{sv}", name, {}, returns="a{sv}")
        except NotRunning:
            raise
        except RuntimeFailure:
            status = {}
        except CageError:
            # Destroy says the same again: there is no such cage, or this person may not.
            continue
        if status.get("documents", True):
            found.append(name)
    return found


def _agreed(names: list[str]) -> bool:
    if not (os.isatty(0) and os.isatty(2)):
        raise UsageError("destroy asks first, and there is no terminal to ask on; say --yes")
    sys.stderr.write(f"Destroy {', '.join(map(cell, names))} and all documents within? [y/N] ")
    sys.stderr.flush()
    answer = ""
    try:
        answer = sys.stdin.readline()
    finally:
        # Ctrl-C and Ctrl-D leave the cursor behind the question.
        if not answer.endswith("\n"):
            sys.stderr.write("\n")
    return answer.strip().lower() in ("y", "yes")


VERBS = {
    "create": (_create_arguments, _create),
    "start": _simple("Start", "running"),
    "stop": _simple("Stop", "stopped"),
    "enable": _simple("Enable", "enabled", autostart=True),
    "disable": _simple("Disable", "disabled", autostart=False),
    "pause": _simple("Pause", "paused"),
    "resume": _simple("Resume", "running"),
    "kill": _simple("Kill", "stopped"),
    "destroy": (_destroy_arguments, _destroy),
}
