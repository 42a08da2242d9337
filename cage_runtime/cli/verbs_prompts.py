# SPDX-License-Identifier: LGPL-2.1-or-later
"""What one's cages ask for, answered without a desktop: prompts list, answer; grants list, revoke."""

from __future__ import annotations

import re

from cage_runtime.cli.client import core
from cage_runtime.cli.output import Screen, cell, visible

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from typing import Any

_TIME = re.compile(r"([0-9]{1,9})([smhd])\Z")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def seconds(text: str) -> int:
    """A time such as 90s, 10m, 2h or 1d, for argparse's `type`."""
    import argparse

    found = _TIME.match(text)
    if not found or int(found[1]) == 0 or int(found[1]) * _SECONDS[found[2]] >= 2**32:
        raise argparse.ArgumentTypeError("a time is needed, such as 90s, 10m or 2h")
    return int(found[1]) * _SECONDS[found[2]]


def _shown_time(left: int) -> str:
    for unit in ("d", "h", "m"):
        if left >= _SECONDS[unit] and (left % _SECONDS[unit] == 0 or left >= 10 * _SECONDS[unit]):
            return f"{left // _SECONDS[unit]}{unit}"
    return f"{left}s"


def _no_arguments(parser: argparse.ArgumentParser) -> None:
    del parser


def _list(args: argparse.Namespace, screen: Screen) -> int:
    prompts = core(args.verb, args.asks).call("ListPrompts", "a{sv}", {}, returns="aa{sv}")
    if screen.as_json:
        screen.document(prompts)
        return 0
    if not prompts:
        screen.done("No open questions.")
    for prompt in prompts:
        for line in _lines(prompt):
            screen.line(visible(line))
    return 0


def _lines(prompt: dict[str, Any]) -> list[str]:
    """A question as a person reads it; its words were escaped by caged, which must not be done again."""
    service = prompt["service"] + (f"+{prompt['argument']}" if prompt["argument"] else "")
    target = _end(prompt, "target") if prompt["target"] else "a cage of your choice"
    flow = f", {prompt['flow']}" if prompt["flow"] else ""
    lines = [f"{prompt['id']}: {_end(prompt, 'source')} asks for {service} to {target}{flow}"]
    lines += [f"    | {line}" for line in prompt["lines"]]
    lines += [f"    {', '.join(known)}" for known in (_measured(prompt),) if known]
    if len(prompt["choices"]) > 1:
        choices = ", ".join(f"{name} ({level})" if level else name for name, level in prompt["choices"].items())
        lines.append(f"    --target: {choices}")
    stands = f"; allow stands for {_shown_time(prompt['for'])}" if prompt["for"] else ""
    waiting = f"; {prompt['waiting']} requests wait" if prompt["waiting"] > 1 else ""
    return [*lines, f"    rule {prompt['rule']}; open for {_shown_time(prompt['seconds'])}{waiting}{stands}"]


def _end(prompt: dict[str, Any], key: str) -> str:
    label = "+".join([prompt[f"{key}-level"], *prompt[f"{key}-compartments"]])
    return f"{prompt[key]} ({label})" if label else str(prompt[key])


def _measured(prompt: dict[str, Any]) -> list[str]:
    size, files = prompt["size"], prompt["files"]
    known = [f"{size} bytes"] if size else []
    known += [f"{files} file{'s' * (files > 1)}"] if files else []
    known += prompt["types"]
    known += [f"sha256 {prompt['sha256']}"] if prompt["sha256"] else []
    kind, _, key = prompt["transform"].partition(":")
    return known + ([f"encrypted on its way for {key}" if kind == "encrypt" else f"changed by {kind}"] if kind else [])


def _answer_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("id", metavar="ID", help="as prompts list shows it")
    parser.add_argument("answer", choices=("allow", "deny"), metavar="allow|deny", help="what you say to it")
    parser.add_argument("--target", metavar="CAGE", help="which of those that may be chosen")
    how_long = parser.add_mutually_exclusive_group()
    how_long.add_argument("--for", dest="stands", type=seconds, metavar="TIME", help="it stands so long, such as 10m")
    how_long.add_argument("--session", action="store_true", help="it stands until the cage that asks stops")
    how_long.add_argument("--once", action="store_true", help="this once, also where the rule has it stand")


def _answer(args: argparse.Namespace, screen: Screen) -> int:
    options: dict[str, tuple[str, object]] = {}
    if args.target:
        options["target"] = ("s", args.target)
    if args.stands or args.once:
        options["for"] = ("u", args.stands or 0)
    if args.session:
        options["session"] = ("b", True)
    core(args.verb, args.asks).call("AnswerPrompt", "ssa{sv}", args.id, args.answer, options)
    if screen.as_json:
        screen.document({"id": args.id, "answer": args.answer})
    screen.done(f"{cell(args.id)}: {args.answer}")
    return 0


def _list_grants(args: argparse.Namespace, screen: Screen) -> int:
    grants = core(args.verb, args.asks).call("ListGrants", "a{sv}", {}, returns="aa{sv}")
    if screen.as_json:
        screen.document(grants)
        return 0
    columns = ("ID", "ANSWER", "SOURCE", "SERVICE", "TARGET", "STANDS", "RULE")
    screen.table(columns, [(
        grant["id"], grant["action"], grant["source"],
        _granted(grant), grant["target"],
        "this session" if grant["session"] else _shown_time(grant["seconds"]), grant["rule"],
    ) for grant in grants], "grant")
    return 0


def _granted(grant: dict[str, Any]) -> str:
    argument, operation = grant["argument"], grant["operation"]
    return f"{grant['service']}{f'+{argument}' if argument else ''}{f' ({operation})' if operation else ''}"


def _revoke_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("id", metavar="ID", help="as grants list shows it")


def _revoke(args: argparse.Namespace, screen: Screen) -> int:
    core(args.verb, args.asks).call("RevokeGrant", "sa{sv}", args.id, {})
    if screen.as_json:
        screen.document({"id": args.id, "grant": "revoked"})
    screen.done(f"{cell(args.id)}: revoked")
    return 0


VERBS = {
    "prompts list": (_no_arguments, _list),
    "prompts answer": (_answer_arguments, _answer),
    "grants list": (_no_arguments, _list_grants),
    "grants revoke": (_revoke_arguments, _revoke),
}
