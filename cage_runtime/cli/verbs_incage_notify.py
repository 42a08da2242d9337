# SPDX-License-Identifier: LGPL-2.1-or-later
"""incage notify: a notification on the desktop of the person whose cage this is."""

from __future__ import annotations

from cage_runtime.cli.output import Screen, cell
from cage_runtime.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("summary", metavar="SUMMARY", help="one line")
    parser.add_argument("body", metavar="BODY", nargs="?", default="", help="more lines, plain text")
    parser.add_argument("--urgency", choices=("low", "normal", "critical"), default="normal")
    parser.add_argument("--action", metavar="NAME=LABEL", action="append", default=[],
                        help="something to click; may be given more than once")
    parser.add_argument("--replace", metavar="ID", type=int, default=0, help="take the place of an earlier one")
    parser.add_argument("--wait", action="store_true", help="until it is clicked, whose name is printed, or closed")


def _notify(args: argparse.Namespace, screen: Screen) -> int:
    from cage_runtime.cli.client import mediator

    actions = [_action(text) for text in args.action]
    options = {"urgency": ("s", args.urgency), "actions": ("a(ss)", actions)}
    if args.replace:
        options["replaces"] = ("u", args.replace)
    notify = mediator("notify", "so nothing can be shown")
    number = notify.call("Show", "ssa{sv}", args.summary, args.body, options, returns="u", timeout=None)
    if not args.wait:
        if screen.as_json:
            screen.document({"id": number})
        else:
            screen.done(str(number))
        return 0
    _number, clicked = notify.call("Wait", "au", [number], returns="us", timeout=None)
    if screen.as_json:
        screen.document({"id": number, "action": clicked})
    elif clicked:
        screen.line(cell(clicked))
    return 0 if clicked else 1


def _action(text: str) -> tuple[str, str]:
    name, equals, label = text.partition("=")
    if not equals or not name or not label:
        raise UsageError(f'"{cell(text)}" is not an action: write NAME=LABEL')
    return name, label


VERBS = {"notify": (_arguments, _notify)}
