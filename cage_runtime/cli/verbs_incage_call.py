# SPDX-License-Identifier: LGPL-2.1-or-later
"""What someone inside a cage can ask of other cages' services: call.

Law of this room: the streams are the core's pipes; what comes out of them is another cage's, and is passed on as bytes
and never shown by us.
"""

from __future__ import annotations

import os

from cage_runtime.cli.output import Screen, cell, say
from cage_runtime.cli.pump import Pump, wait
from cage_runtime.errors import RuntimeFailure, UsageError
from cage_runtime.outcome import STATUS_BYTES_MAX, parse_outcome

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

_UNSAID = {127: "status 127, as where there is no such service",
           126: "status 126, as where what is there is no service that can be run"}
NAME_MAX = 1024
"""Characters of SERVICE+ARG that are asked about; the mediator takes less."""


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("service", metavar="SERVICE[+ARG]", help="the service, and what to call it with")
    parser.add_argument("cage", metavar="CAGE", nargs="?", default="", help="where it is; or where the policy says")


def _call(args: argparse.Namespace, screen: Screen) -> int:
    del screen
    from cage_runtime.cli.client import mediator
    from cage_runtime.cli.verbs_incage import require_inside

    service, plus, argument = args.service.partition("+")
    if plus and not argument:
        raise UsageError(f'"{cell(args.service)}" has a "+" and no argument after it')
    if len(args.service) > NAME_MAX:  # the bus itself would take the connection for broken
        raise UsageError(f"this cannot be the argument of a call: it has {len(args.service)} characters")
    require_inside()
    peer = mediator("call", "so nothing can be called")
    # As long as it takes: a person may have to be asked first, and Ctrl-C ends the wait.
    pipes = peer.call("Call", "sssa{sv}", service, argument, args.cage, {}, returns="hhh", timeout=None)
    status, sentence = _relay(*pipes)
    if not sentence and status in _UNSAID:  # what is said of it there stays in the log of that cage
        sentence = f"{cell(args.service)}: {_UNSAID[status]}"
    if sentence:
        say(args.program, sentence)
    return status


def _relay(inward: int, outward: int, told: int) -> tuple[int, str]:
    """Our standard input to the service and its output to ours, until it has ended: its status, or another and why."""
    pumps = [Pump(0, inward), Pump(outward, 1)]
    while True:
        ready = wait(pumps, told)
        if told in ready:
            break
        for pump in pumps:
            pump.move(ready)
    status, sentence = _outcome(os.read(told, STATUS_BYTES_MAX + 1))
    for pump in pumps:
        pump.drain()
    return status, sentence or next(filter(None, (pump.failure for pump in pumps)), "")


def _outcome(line: bytes) -> tuple[int, str]:
    if not line.endswith(b"\n"):
        raise RuntimeFailure("the core ended meanwhile, so it is not known how the call did")
    outcome = parse_outcome(line)
    if outcome is None:
        raise RuntimeFailure("the core said something that makes no sense here; are both sides of the same version?")
    return outcome.status, outcome.sentence


VERBS = {"call": (_arguments, _call)}
