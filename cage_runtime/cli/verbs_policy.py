# SPDX-License-Identifier: LGPL-2.1-or-later
"""Putting the policy in force, and what was done: policy reload; audit tail, verify."""

from __future__ import annotations

from cage_runtime.cli.client import core
from cage_runtime.cli.output import Screen, visible
from cage_runtime.errors import CageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

TAIL_RECORDS = 10
"""Records that `audit tail` shows unless told."""


def _no_arguments(parser: argparse.ArgumentParser) -> None:
    del parser


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
    "policy reload": (_no_arguments, _reload),
    "audit tail": (_tail_arguments, _tail),
    "audit verify": (_no_arguments, _verify),
}
