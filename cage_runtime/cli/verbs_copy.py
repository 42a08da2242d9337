# SPDX-License-Identifier: LGPL-2.1-or-later
"""Files of the person into a cage of hers, or out of it: cp.

Law of this room: a half in the cage, as its user, reads and writes there, and no privileged program has the bytes.
What comes out is a cage's, so it is checked and whole before it has its name here, and not for longer than it moves.
"""

from __future__ import annotations

import json
import os
import re
import signal
from contextlib import suppress

from cage_runtime.cli.client import core, job
from cage_runtime.cli.output import Screen, cell
from cage_runtime.errors import CageError, TransferFailed, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable
    from typing import NoReturn

    from cage_runtime.placing import Placed

STALL_SECONDS = 60.0
"""A copy that does not go on for so long is given up."""
CONFLICTS = ("fail", "rename", "skip", "replace")
_SIDE = re.compile(r"([a-z][a-z0-9-]{0,30}):(.*)\Z", re.DOTALL)


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = ("One of them is NAME:PATH, a path in the home of the running cage NAME; a path\n"
                     "of the host that looks like that is written with ./ before it.")
    parser.add_argument("source", metavar="SRC", help="a file or directory; links are not followed")
    parser.add_argument("destination", metavar="DST", help="its new name, or a directory for it")
    parser.add_argument("--conflict", choices=CONFLICTS, default="fail",
                        help="what to do where the name is taken (default: %(default)s)")


def _copy(args: argparse.Namespace, screen: Screen) -> int:
    signal.signal(signal.SIGALRM, _stalled)
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # as nohup has it
            signal.signal(number, _end)
    source, destination = _SIDE.match(args.source), _SIDE.match(args.destination)
    if destination and not source:
        name = _into(args, destination[1], destination[2])
    elif source and not destination:
        name = _out_of(args, source[1], source[2])
    else:
        raise UsageError("cp: one of SRC and DST has to be NAME:PATH, and the other a path of this host")
    if screen.as_json:
        screen.document({"source": args.source, "destination": args.destination, "arrived": name})
    shown = f"as {cell(name)}" if name else "skipped, because the name is taken"
    screen.done(f"{cell(args.source)} -> {cell(args.destination)} {shown}")
    return 0


class _Copy:
    """A copy that caged has begun: its stream, and what is to be said of it."""

    def __init__(self, args: argparse.Namespace, member: str, signature: str, *words: object) -> None:
        manager = core(args.verb, args.asks)
        returns = "ohhh" if member == "CopyOut" else "ohh"
        path, self.stream, self._report, *go = manager.call(member, signature, *words, returns=returns)
        self._job, self._go, self.ended = job(manager, path), go, False

    def read(self, most: int) -> bytes:
        """At most so many bytes of the stream; none at its end."""
        chunk = os.read(self.stream, most)
        self.ended = not chunk
        _headway()
        return chunk

    def say(self, **what: object) -> None:
        with suppress(BrokenPipeError):  # the job says why
            os.write(self._report, json.dumps(what).encode() + b"\n")

    def pass_(self, placed: Placed) -> None:
        """Say what came, and wait until it may have its name."""
        signal.setitimer(signal.ITIMER_REAL, 0)
        self.say(size=placed.size, files=placed.entries, sha256=placed.sha256)
        if not os.read(self._go[0], 1):
            self.result()
            raise CageError("the core does not say why it may not have its name")

    def result(self) -> str:
        """The name that it has; CageError in the words of whoever had it fail."""
        signal.setitimer(signal.ITIMER_REAL, 0)
        return str(self._job.call("Wait", returns="a{sv}", timeout=None)["name"])


def _headway(_written: int = 0) -> None:
    """The copy goes on: whoever is slow has a minute more."""
    signal.setitimer(signal.ITIMER_REAL, STALL_SECONDS)


def _stalled(*_: object) -> None:
    raise TransferFailed(f"nothing has moved for {STALL_SECONDS:.0f} s, so the copy was given up")


class _Ended(CageError):
    """By a signal: whatever is half done is taken back on the way out."""


def _end(number: int, _frame: object) -> None:
    error = _Ended(f"given up: {signal.strsignal(number)}")
    error.exit_status = 128 + number
    raise error


def _into(args: argparse.Namespace, cage: str, path: str) -> str:
    from cage_runtime.cli.tree import Listing, write
    from cage_runtime.intree import Manifest

    full = os.path.abspath(args.source)
    name = os.path.basename(full)
    try:
        above = os.open(os.path.dirname(full), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise CageError(f"{cell(args.source)}: {error.strerror}") from error
    listing, manifest = Listing.of_entry(above, name, full), Manifest()
    copy = _Copy(args, "CopyIn", "sssa{sv}", cage, path, name, {"conflict": ("s", args.conflict)})
    _headway()
    try:
        write(copy.stream, above, listing, progress=_headway, manifest=manifest)
    except BrokenPipeError:
        copy.say()
    else:
        copy.say(size=listing.content, files=listing.entries, sha256=manifest.content)
    os.close(copy.stream)
    return _of(args.destination, copy.result)


def _out_of(args: argparse.Namespace, cage: str, path: str) -> str:
    from cage_runtime.placing import open_place, place

    name = os.path.basename(path.rstrip("/"))
    here = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    directory, name = open_place(here, args.destination, name, links=True)
    copy = _Copy(args, "CopyOut", "ssa{sv}", cage, path, {})
    _headway()
    try:
        placed: Placed = place(copy.read, directory, name, args.conflict, copy.pass_)
    except (CageError, OSError) as error:
        _explain(args, copy, error)
    copy.say(name=placed.name)
    copy.result()
    return placed.name


def _explain(args: argparse.Namespace, copy: _Copy, error: CageError | OSError) -> NoReturn:
    """Raise it again, or, where the stream broke off, what the half has to say to that."""
    if isinstance(error, _Ended):
        raise error
    if copy.ended and isinstance(error, TransferFailed):
        copy.say()
        _of(args.source, copy.result)
    sentence = error.sentence if isinstance(error, CageError) else str(error.strerror)
    copy.say(fault=sentence)
    kind = type(error) if isinstance(error, CageError) else CageError
    raise kind(f"{cell(args.destination)}: {sentence}") from error


def _of(path: str, result: Callable[[], str]) -> str:
    """What `result` says; a failed transfer is one of `path`."""
    try:
        return result()
    except TransferFailed as error:
        raise TransferFailed(f"{cell(path)}: {error.sentence}") from error


VERBS = {"cp": (_arguments, _copy)}
