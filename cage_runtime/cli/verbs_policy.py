# SPDX-License-Identifier: LGPL-2.1-or-later
"""Who may do what, and what was done: policy check, explain, reload; audit tail, verify."""

from __future__ import annotations

from cage_runtime.cli.client import core
from cage_runtime.cli.output import Screen, cell, visible
from cage_runtime.errors import CageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

TAIL_RECORDS = 10
"""Records that `audit tail` shows unless told."""


def _no_arguments(parser: argparse.ArgumentParser) -> None:
    del parser


def _check(args: argparse.Namespace, screen: Screen) -> int:
    faults = core(args.verb, args.asks).call("CheckPolicy", "a{sv}", {}, returns="as")
    if screen.as_json:
        screen.document(faults)
    else:
        for fault in faults:
            screen.line(visible(fault))
    if faults:
        return 1
    screen.done("policy: sound")
    return 0


def _explain_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SRC", help="the cage that asks")
    parser.add_argument("service", metavar="SERVICE[+ARG]", help="what for, such as files.Send")
    parser.add_argument("target", metavar="DST", help="the cage it names")


def _explain(args: argparse.Namespace, screen: Screen) -> int:
    service, _, argument = args.service.partition("+")
    asked = (args.source, service, argument, args.target)
    decision = core(args.verb, args.asks).call("ExplainPolicy", "ssssa{sv}", *asked, {}, returns="a{sv}")
    if screen.as_json:
        screen.document(decision)
        return 0
    action, flow = cell(decision.get("action", "")), str(decision.get("flow", ""))
    direction = f" ({cell(flow)})" if flow else ""
    screen.line(f"{screen.word(action, action)}: {args.service} from {args.source} to {args.target}{direction}")
    screen.fields([(key, decision[key]) for key in ("rule", "reason") if decision.get(key)])
    return 0


def _reload(args: argparse.Namespace, screen: Screen) -> int:
    core(args.verb, args.asks).call("ReloadPolicy", "a{sv}", {})
    if screen.as_json:
        screen.document({"policy": "reloaded"})
    screen.done("policy: reloaded")
    return 0


def _tail_arguments(parser: argparse.ArgumentParser) -> None:
    from cage_runtime.cli.parser import whole_number

    told = f"how many, {TAIL_RECORDS} if not told"
    parser.add_argument("-n", metavar="N", dest="count", type=whole_number, default=TAIL_RECORDS, help=told)


def _tail(args: argparse.Namespace, screen: Screen) -> int:
    import json

    from cage_runtime.text import quoted

    lines = core(args.verb, args.asks).call("TailAudit", "a{sv}", {"count": args.count}, returns="as")
    records = [json.loads(line) for line in lines]
    if screen.as_json:
        screen.document(records)
        return 0
    for record in records:
        fields = " ".join(f"{key}={quoted(str(value))}" for key, value in record.get("fields", {}).items())
        # Fields were escaped when they were recorded, so that this must not do it again.
        screen.line(visible(f"{str(record.get('time', ''))[:19]}Z {record.get('kind', '')!s:<16} {fields}".rstrip()))
    return 0


def _verify(args: argparse.Namespace, screen: Screen) -> int:
    fault = core(args.verb, args.asks).call("VerifyAudit", "a{sv}", {}, returns="s")
    if screen.as_json:
        screen.document({"fault": fault})
    if fault:
        raise CageError(f"the audit chain is broken: {fault}")
    screen.done("audit: the chain is whole")
    return 0


VERBS = {
    "policy check": (_no_arguments, _check),
    "policy explain": (_explain_arguments, _explain),
    "policy reload": (_no_arguments, _reload),
    "audit tail": (_tail_arguments, _tail),
    "audit verify": (_no_arguments, _verify),
}
