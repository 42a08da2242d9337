# SPDX-License-Identifier: LGPL-2.1-or-later
"""The attacks of the catalogue, in a cage and in the sandboxes that people have: what each lets through.

The same probe runs in all of them (tests/attacks/probe), as an ordinary user; the suite (tests/attacks) also has those
attacks that a sandbox which nobody enters, stops or sends to has no part in.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import select
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

from tests.attacks.catalogue import TITLES, Group, group_of
from tests.attacks.host import Found, marked
from tests.attacks.probe import company
from tests.attacks.probe.kernel import CONTROL, HELD, NOT_HERE, THROUGH, Answer
from tests.bench import sandboxes
from tests.bench.runtime import Client, running
from tests.bench.sandboxes import Sandbox

SECONDS = 120
TAKEN = {"inotify": 2000, "pipes": 400, "signals": 200_000, "queues": 1000, "terminals": 300, "tmp": 8}
"""What a sandbox may take of something before it counts as having no bound; pieces of "tmp" are of 64 MiB."""
Say = Callable[[str], None]
Row = tuple[int, str]


# --- one sandbox -----------------------------------------------------------------------------------------------------
def attacked(sandbox: Sandbox, found: Found, say: Say) -> Iterator[Answer]:
    say(f"{sandbox.name}: alone")
    yield from (Answer(**said) for said in said_by(sandbox, "try", json.dumps(found.alone)))
    for way in ("x86_64", "x32", "i386"):
        say(f"{sandbox.name}: all calls of {way}")
        yield _counted(way, said_by(sandbox, "numbers", way, "1")[0])
    say(f"{sandbox.name}: in company")
    yield from met(sandbox, found)
    for what, most in TAKEN.items():
        say(f"{sandbox.name}: takes all {what}")
        yield exhausted(sandbox, what, most)


def said_by(sandbox: Sandbox, *words: str, other: bool = False) -> list[Any]:
    with sandbox.popen(*words, other=other) as process:
        output, errors = process.communicate(timeout=SECONDS)
    if process.returncode:
        raise RuntimeError(f"{sandbox.name}, {words[0]}: status {process.returncode}: {errors.decode()[-600:]}")
    return [json.loads(line) for line in output.splitlines()]


def _counted(way: str, answers: dict[str, str]) -> Answer:
    """How many numbers reach the kernel; of the two ways that no program of today uses, none has to."""
    reached = Counter(answers.values())["allowed"]
    if way == "x86_64":
        return Answer(attack=24, attempt="call numbers that reach the kernel", outcome=CONTROL,
                      reason=f"{reached} of {len(answers)}")
    # What the kernel was built without answers ENOSYS everywhere.
    return Answer(attack=24, attempt=f"call numbers of {way} that reach the kernel",
                  outcome=THROUGH if reached else HELD, reason=f"{reached} of {len(answers)}")


@contextlib.contextmanager
def waiting(sandbox: Sandbox, *words: str, other: bool = False) -> Iterator[tuple[str, Callable[[], Any]]]:
    """The first line of what waits for a line, and what it says when it gets it."""
    with sandbox.popen(*words, other=other) as process:
        assert process.stdin is not None
        assert process.stdout is not None

        def line() -> str:
            assert process.stdout is not None
            if not select.select([process.stdout], [], [], SECONDS)[0]:
                raise TimeoutError(f"{sandbox.name}, {words}")
            return process.stdout.readline().decode()

        def end() -> Any:
            assert process.stdin is not None
            process.stdin.write(b"\n")
            process.stdin.flush()
            return json.loads(line())

        try:
            yield line(), end
        finally:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
            process.stdout.read()


def met(sandbox: Sandbox, found: Found) -> Iterator[Answer]:
    with waiting(sandbox, "hold") as (_, end):
        yield from (Answer(**said) for said in said_by(sandbox, "meet", json.dumps(found.meet), other=True))
        yield company.noticed(end())


def exhausted(sandbox: Sandbox, what: str, most: int) -> Answer:
    """Held where there is a bound, and another sandbox has of it what it wants meanwhile."""
    with waiting(sandbox, "exhaust", what, str(most)) as (first, _):
        taken = json.loads(first)
        with waiting(sandbox, "exhaust", what, "1", other=True) as (second, _):
            left = json.loads(second)["held"]
    if taken["ended"] == "the bound":
        outcome, reason = THROUGH, f"no bound below {most}"
    elif not left:
        outcome, reason = THROUGH, f"{taken['held']} taken, none left for another"
    else:
        outcome, reason = HELD, f"{taken['ended']} at {taken['held']}"
    return Answer(attack=44, attempt=f"takes all {what}", outcome=outcome, reason=reason)


# --- all of them -----------------------------------------------------------------------------------------------------
def everything(prefix: Any, name: str, say: Say) -> dict[str, list[Answer]]:
    there = sandboxes.found()
    results: dict[str, list[Answer]] = {}
    with contextlib.ExitStack() as stack:
        found = stack.enter_context(marked())
        runtime = stack.enter_context(running(prefix, name))
        client = stack.enter_context(contextlib.closing(Client()))
        made = [stack.enter_context(sandboxes.cage(runtime, client))]
        makers = {"bwrap": sandboxes.bubblewrap, "flatpak": sandboxes.flatpak, "systemd-nspawn": sandboxes.nspawn}
        made += [stack.enter_context(makers[peer]()) for peer in there]
        for sandbox in made:
            results[sandbox.name] = list(attacked(sandbox, found, say))
    return results


def data(results: dict[str, list[Answer]], versions: dict[str, str]) -> dict[str, Any]:
    return {
        "machine": {"kernel": platform.release(), "cores": os.cpu_count()}, "peers": versions,
        "titles": {str(attack): title for attack, title in TITLES.items()},
        "attacks": {name: [asdict(answer) for answer in answers] for name, answers in results.items()},
    }


# --- the table -------------------------------------------------------------------------------------------------------
def shown(results: dict[str, list[Answer]], *, full: bool = False) -> str:
    names = list(results)
    tables = {name: {(answer.attack, answer.attempt): answer for answer in answers}
              for name, answers in results.items()}
    lines = [_line("attempts that got through, of those that apply", names), *_groups(results, names)]
    attacks = sorted({answer.attack for answers in results.values() for answer in answers})
    lines += ["", _line("", names)]
    lines += [_line(f"{attack:>2} {TITLES.get(attack, '')}", [_share(results[name], {attack}) for name in names])
              for attack in attacks]
    lines += ["", "What got through:"]
    for attack in attacks:
        lines += _through(attack, tables, names, full=full)
    lines += ["", *not_applying(results)]
    return "\n".join(lines)


def _line(head: str, cells: list[str]) -> str:
    return f"{head[:52]:<52} " + " ".join(f"{cell:>16}" for cell in cells)


def _groups(results: dict[str, list[Answer]], names: list[str]) -> Iterator[str]:
    for group in Group:
        attacks = {attack for attack in TITLES if group_of(attack) is group}
        cells = [_share(results[name], attacks) for name in names]
        if any(cell != "-" for cell in cells):
            yield _line(group, cells)


def _share(answers: list[Answer], attacks: set[int]) -> str:
    counted = [answer for answer in answers if answer.attack in attacks and answer.outcome in (HELD, THROUGH)]
    if not counted:
        return "-"
    return f"{sum(answer.outcome == THROUGH for answer in counted)} of {len(counted)}"


def _through(attack: int, tables: dict[str, dict[Row, Answer]], names: list[str], *, full: bool) -> Iterator[str]:
    for name in names:
        got = [answer for (number, _), answer in tables[name].items() if number == attack and answer.outcome == THROUGH]
        if not got:
            continue
        most = len(got) if full else 4
        said = "; ".join(f"{answer.attempt} ({answer.reason[:60]})" for answer in got[:most])
        more = f"; and {len(got) - most} more" if len(got) > most else ""
        yield f"{attack:>2} {name}: {said}{more}"


def not_applying(results: dict[str, list[Answer]]) -> list[str]:
    """A sentence for each attempt that a sandbox has no part in."""
    return [f"{answer.attack:>2} {name}: {answer.attempt} does not apply: {answer.reason}"
            for name, answers in results.items() for answer in answers if answer.outcome == NOT_HERE]
