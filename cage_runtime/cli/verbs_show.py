# SPDX-License-Identifier: LGPL-2.1-or-later
"""What there is and how it does: list, status, show, logs, doctor, version."""

from __future__ import annotations

import os

from cage_runtime.cli.client import core
from cage_runtime.cli.command import VERSION
from cage_runtime.cli.output import Screen, cell, visible

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from typing import Any

_LIST_KEYS = ("name", "state", "level", "compartments", "processes")
_STATUS_LABELS = (
    ("state", "State"),
    ("level", "Level"),
    ("compartments", "Compartments"),
    ("description", "Description"),
    ("processes", "Processes"),
    ("applications", "Applications"),
    ("home", "Home"),
    ("documents", "Documents"),
    ("ephemeral", "Ephemeral"),
    ("autostart", "Autostart"),
    ("created", "Created"),
    ("since", "Since"),
    ("private", "Private"),
    ("require", "Requires"),
    ("walls", "Walls"),
    ("denials", "Denied by kernel"),
    ("unenforced", "Not enforced"),
    ("mediated", "Calls answered"),
    ("uuid", "UUID"),
)


def _no_arguments(parser: argparse.ArgumentParser) -> None:
    del parser


def _name_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="a cage")


def _optional_name(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", nargs="?", help="a cage; all of them if left out")


def _list(args: argparse.Namespace, screen: Screen) -> int:
    cages = core(args.verb, args.asks).call("List", "a{sv}", {}, returns="aa{sv}")
    if screen.as_json:
        screen.document(cages)
        return 0
    keys: tuple[str, ...] = _LIST_KEYS
    if any(cage.get("owner", os.getuid()) != os.getuid() for cage in cages):
        keys = (*_LIST_KEYS, "owner")
        cages = [{**cage, "owner": _person(cage.get("owner"))} for cage in cages]
    rows = [[cage.get(key, "") for key in keys] for cage in cages]
    screen.table([key.upper() for key in keys], rows, "cage")
    return 0


def _person(uid: int | None) -> str:
    """Who has the uid, and the number where nobody does."""
    import pwd

    try:
        return "" if uid is None else pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _status(args: argparse.Namespace, screen: Screen) -> int:
    manager = core(args.verb, args.asks)
    names = [args.name] if args.name else [cage["name"] for cage in manager.call("List", "a{sv}", {}, returns="aa{sv}")]
    found = [manager.call("Status", "sa{sv}", name, {}, returns="a{sv}") for name in names]
    if screen.as_json:
        screen.document(found[0] if args.name else found)
        return 0
    for number, status in enumerate(found):
        if number:
            screen.line("")
        _block(status, screen)
    if not found:
        screen.line("No cages.")
    return 0


def _block(status: dict[str, Any], screen: Screen) -> None:
    screen.line(cell(status.get("name", "")))
    status = {**status, "walls": _walls(status), "denials": _denials(status)}
    shown = [(label, status[key]) for key, label in _STATUS_LABELS if status.get(key) not in (None, "", [], {}, False)]
    known = {"name", *(key for key, _ in _STATUS_LABELS)}
    screen.fields(shown + [(cell(key), value) for key, value in status.items() if key not in known])


def _walls(status: dict[str, Any]) -> list[str]:
    """A line for each wall, those that stand first."""
    walls = sorted(status.get("walls", {}).items(), key=lambda wall: not wall[1].get("enforced"))
    return [f"{name}: {'' if wall.get('enforced') else 'not enforced: '}{wall.get('detail', '')}"
            for name, wall in walls]


def _denials(status: dict[str, Any]) -> list[str]:
    """A line for each kind of thing that the kernel has refused to the cage, the most frequent first."""
    denials = sorted(status.get("denials", {}).items(), key=lambda denial: -denial[1])
    return [f"{operation}: {count}" for operation, count in denials]


def _show(args: argparse.Namespace, screen: Screen) -> int:
    definition = core(args.verb, args.asks).call("Show", "sa{sv}", args.name, {}, returns="s")
    if screen.as_json:
        screen.document({"name": args.name, "definition": definition})
        return 0
    for line in definition.splitlines():
        screen.line(visible(line))
    return 0


def _logs_arguments(parser: argparse.ArgumentParser) -> None:
    from cage_runtime.cli.parser import whole_number

    _name_argument(parser)
    parser.add_argument("-n", metavar="N", dest="count", type=whole_number, help="the last N lines alone")


def _logs(args: argparse.Namespace, screen: Screen) -> int:
    lines = core(args.verb, args.asks).call("Logs", "sa{sv}", args.name, {}, returns="as")
    if args.count:
        lines = lines[-args.count :]
    if screen.as_json:
        screen.document(lines)
        return 0
    for line in lines:
        screen.line(visible(line))
    return 0


def _doctor(args: argparse.Namespace, screen: Screen) -> int:
    checks = core(args.verb, args.asks).call("Doctor", "a{sv}", {}, returns="aa{sv}")
    if screen.as_json:
        screen.document(checks)
    else:
        for check in checks:
            _check(check, screen)
    return 1 if any(check.get("state") not in ("ok", "limited") for check in checks) else 0


def _check(check: dict[str, Any], screen: Screen) -> None:
    state = cell(check.get("state", ""))
    texts = [visible(str(check[key])) for key in ("detail", "help") if check.get(key)]
    screen.line(f"{screen.word(f'{state:<8}', state)}{cell(check.get('check', ''))}: {'; '.join(texts)}")


def _version(args: argparse.Namespace, screen: Screen) -> int:
    if screen.as_json:
        screen.document({"version": VERSION})
    else:
        screen.line(f"{args.program} {VERSION}")
    return 0


VERBS = {
    "list": (_no_arguments, _list),
    "status": (_optional_name, _status),
    "show": (_name_argument, _show),
    "logs": (_logs_arguments, _logs),
    "doctor": (_no_arguments, _doctor),
    "version": (_no_arguments, _version),
}
