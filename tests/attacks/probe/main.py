# SPDX-License-Identifier: LGPL-2.1-or-later
"""The attacks of the catalogue, by number, from wherever this is run: see tests/attacks/bundle.py for how.

  try JSON      all that can be tried alone: one JSON object a line for each attempt
  numbers WAY [SECONDS]  every call number by a way into the kernel (x86_64, x32, i386), each for so long
  hold          holds what two sandboxes could meet on, until a line comes
  meet JSON     looks for what another one holds
  poll          watches processes come to be, until the end of its input
  exhaust WHAT [MOST]  takes all that it can get of one thing, until a line comes
  turns N       how long each of N turns of what every program does takes
  identity      who one is
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Any

from . import calls, company, exhaust, files, numbers, processes, tells, watch
from .kernel import Answer


def alone(given: dict[str, Any]) -> Iterator[Answer]:
    yield from calls.alone()
    yield from files.alone(given)
    yield from tells.alone(given)
    yield from processes.alone()


def lines(answers: Iterable[Answer]) -> None:
    for answer in answers:
        say(asdict(answer))


def say(what: Any) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


def main() -> None:
    words = sys.argv[2:]
    given = json.loads(words[0]) if words and words[0].startswith("{") else {}
    match sys.argv[1]:
        case "try":
            lines(alone(given))
        case "numbers":
            say(numbers.sweep(words[0], *map(float, words[1:])))
        case "hold":
            say(company.hold())
        case "meet":
            lines(company.meet(given))
        case "poll":
            say(watch.poll())
        case "exhaust":
            say(exhaust.take(words[0], *map(int, words[1:])))
        case "turns":
            say(exhaust.turns(int(words[0])))
        case "identity":
            say(processes.identity())
        case other:
            sys.exit(f"{other} is nothing to try: {__doc__}")
