# SPDX-License-Identifier: LGPL-2.1-or-later
"""incage jobs, incage cancel: the transfers of this cage's user that are under way."""

from __future__ import annotations

from cage_runtime.cli import verbs_incage
from cage_runtime.cli.output import Screen, cell
from cage_runtime.errors import CageError, RuntimeFailure, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from typing import Any

    from cage_runtime.cli.client import Peer

_KEYS = ("job", "object", "state", "target", "name", "done", "total")
_NUMBER_DIGITS = 10


def _no_arguments(parser: argparse.ArgumentParser) -> None:
    del parser


def _cancel_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("jobs", metavar="JOB", nargs="+", help="its number, as jobs shows it")


def _jobs(args: argparse.Namespace, screen: Screen) -> int:
    from cage_runtime.cli.client import files

    del args
    verbs_incage.require_inside()
    jobs = _listed(files())
    if screen.as_json:
        screen.document([{key: value for key, value in job.items() if key != "object"} for job in jobs])
        return 0
    screen.table(("JOB", "STATE", "TARGET", "READ", "NAME"),
                 [(job["job"], job["state"], job["target"], _share(job["done"], job["total"]), job["name"])
                  for job in jobs], "job")
    return 0


def _listed(mediator: Peer) -> list[dict[str, Any]]:
    return [dict(zip(_KEYS, job, strict=True)) for job in mediator.call("ListJobs", returns="a(uossstt)")]


def _share(done: int, whole: int) -> str:
    return f"{100 * min(done, whole) // whole} %" if whole else "-"


def _cancel(args: argparse.Namespace, screen: Screen) -> int:
    from cage_runtime.cli.client import files
    from cage_runtime.cli.output import say

    verbs_incage.require_inside()
    mediator, worst = files(), 0
    for number in args.jobs:
        if not (number.isascii() and number.isdigit() and len(number) <= _NUMBER_DIGITS):
            raise UsageError(f'"{cell(number)}" is not the number of a job; incage jobs shows them')
    for number in args.jobs:
        job = mediator.at(f"/org/cageruntime/Files1/jobs/{int(number)}", "org.cageruntime.Files1.Job")
        try:
            job.call("Cancel", timeout=None)
        except CageError as error:
            # What the bus says of an object that is not there is no error of ours.
            gone = isinstance(error, RuntimeFailure) and int(number) not in [it["job"] for it in _listed(mediator)]
            say(args.program, f"there is no job {int(number)} that is under way" if gone else error.sentence)
            worst = max(worst, 1 if gone else error.exit_status)
            continue
        screen.done(f"{int(number)}: cancelled, nothing arrived")
    return worst


VERBS = {"jobs": (_no_arguments, _jobs), "cancel": (_cancel_arguments, _cancel)}
