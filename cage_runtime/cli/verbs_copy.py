# SPDX-License-Identifier: LGPL-2.1-or-later
"""Files of the person into a cage of hers, or out of it: cp.

Law of this room: a half in the cage, as its user, reads and writes there, and no privileged program has the bytes.
What comes out is a cage's, so it is checked and whole before it has its name here.
"""

from __future__ import annotations

import json
import os
import re

from cage_runtime.cli.client import core
from cage_runtime.cli.output import Screen, cell
from cage_runtime.cli.session import Session
from cage_runtime.errors import CageError, InvalidName, RuntimeFailure, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from cage_runtime.placing import Placed

HALF = ["/opt/cage-runtime/bin/cage-mediator", "files", "--copy"]
CONFLICTS = ("fail", "rename", "skip", "replace")
_SIDE = re.compile(r"([a-z][a-z0-9-]{0,30}):(.*)\Z", re.DOTALL)
_SAID_MAX = 2048
"""Bytes of what the half says that are read."""


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = ("One of them is NAME:PATH, a path in the home of the running cage NAME; a path\n"
                     "of the host that looks like that is written with ./ before it.")
    parser.add_argument("source", metavar="SRC", help="a file or directory; links are not followed")
    parser.add_argument("destination", metavar="DST", help="its new name, or a directory for it")
    parser.add_argument("--conflict", choices=CONFLICTS, default="fail",
                        help="what to do where the name is taken (default: %(default)s)")


def _copy(args: argparse.Namespace, screen: Screen) -> int:
    source, destination = _SIDE.match(args.source), _SIDE.match(args.destination)
    if destination and not source:
        name = _into(args, destination[1], destination[2])
    elif source and not destination:
        name = _out_of(args, source[1], source[2])
    else:
        raise UsageError("cp: one of SRC and DST has to be NAME:PATH, and the other a path of this host")
    if screen.as_json:
        screen.document({"source": args.source, "destination": args.destination, "arrived": name})
    shown = cell(name) if name else "skipped, because the name is taken"
    screen.done(f"{cell(args.source)} -> {cell(args.destination)}: {shown}")
    return 0


class _Half(Session):
    """The half in the cage, whose three pipes are ours to use."""

    def __init__(self, args: argparse.Namespace, cage: str, *words: str) -> None:
        channel = core(args.verb, args.asks).call("Enter", "sasa{sv}", cage, [*HALF, *words], {}, returns="h")
        super().__init__(channel, terminal=False, program=args.program)
        while not self._started:
            if (result := self._message()) is not None:
                raise RuntimeFailure(result[1])
        self.inward, self.output, self.errors = self.pipes

    def __enter__(self) -> _Half:
        return self

    def _start(self, descriptors: list[int]) -> None:
        super()._start(descriptors)
        self.pipes, self._pumps = descriptors, []
        for descriptor in descriptors:
            os.set_blocking(descriptor, True)

    def ended(self, path: str) -> bytes:
        """What it said on its output, once it has ended well; CageError in its words where not."""
        said, why = _read(self.output), _read(self.errors)
        result = None
        while result is None:
            result = self._message()
        if result[0]:
            words = why.decode(errors="replace").strip().removeprefix("cage-mediator: ")
            raise CageError(f"{cell(path)}: {cell(words) or result[1] or 'the copy failed there'}")
        return said


def _read(pipe: int) -> bytes:
    said = b""
    while chunk := os.read(pipe, _SAID_MAX):
        said = (said + chunk)[:_SAID_MAX]
    return said


def _into(args: argparse.Namespace, cage: str, path: str) -> str:
    from cage_runtime.cli.tree import Listing, write

    full = os.path.abspath(args.source)
    name = os.path.basename(full)
    above = os.open(os.path.dirname(full), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    listing = Listing.of_entry(above, name, full)
    with _Half(args, cage, "in", path, name, args.conflict) as half:
        try:
            write(half.inward, above, listing)
        except BrokenPipeError:  # it says why
            pass
        finally:
            os.close(half.inward)
        said = half.ended(args.destination)
    try:
        return str(json.loads(said)["name"])
    except (ValueError, KeyError, TypeError) as error:
        raise CageError(f"{cage} did not say how it arrived") from error


def _out_of(args: argparse.Namespace, cage: str, path: str) -> str:
    from cage_runtime.placing import open_place, place

    name = os.path.basename(path.rstrip("/"))
    here = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    directory, name = open_place(here, args.destination, name, links=True)
    with _Half(args, cage, "out", path) as half:
        os.close(half.inward)
        try:
            placed: Placed = place(half.output, directory, name, args.conflict, lambda _digest: half.ended(args.source))
        except (InvalidName, OSError) as error:
            sentence = error.sentence if isinstance(error, InvalidName) else error.strerror
            raise CageError(f"{cell(args.destination)}: {sentence}") from error
        except CageError as error:
            if error.args[0].startswith("what came did not come"):
                half.ended(args.source)  # it says why
            raise
    return placed.name


VERBS = {"cp": (_arguments, _copy)}
