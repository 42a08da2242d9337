# SPDX-License-Identifier: LGPL-2.1-or-later
"""The half of `cagectl cp` in the cage: as the cage's user, it places what comes beneath the home, or sends what is
there.  Its standard input is the one end of the stream's pipe, to be read or to be written.

Law of this room: nothing is followed out of the home, no link at all.  What is whole is said by its digest, and gets
its name when the core has said so; whoever reads what we write believes none of it.
"""

from __future__ import annotations

import json
import os
import sys

from cage_runtime.errors import CageError, UsageError
from cage_runtime.intree import Manifest
from cage_runtime.placing import DIRECTORY, open_place, place
from mediators import gate
from mediators.files.protocol import check_conflict, check_file_name

HOME = "/home/user"
STREAM = 0


def run(arguments: list[str]) -> int:
    """`cage-mediator files --copy in PATH NAME CONFLICT | out PATH`; prints the digest of what came or went, waits for
    the word, and prints, of what came, the name that it has, as JSON."""
    os.umask(0o022)
    gate.prepare()
    try:
        match arguments:
            case ["in", path, name, conflict]:
                _take(path, check_file_name(name), check_conflict(conflict))
            case ["out", path]:
                _give(path)
            case _:
                raise UsageError("--copy takes in PATH NAME CONFLICT, or out PATH")
    except OSError as error:
        raise CageError(os.strerror(error.errno or 0)) from error
    return 0


def _beneath(path: str) -> str:
    """The path from the home directory; UsageError where it is not beneath it."""
    if path == HOME or path.startswith(HOME + "/"):
        return path[len(HOME) + 1 :]
    if path.startswith("/"):
        raise UsageError(f'"{path}" is not in {HOME}; only what is there can be copied')
    return path


def _take(path: str, name: str, conflict: str) -> None:
    home = os.open(HOME, DIRECTORY)
    directory, name = open_place(home, _beneath(path), name, links=False)
    placed = place(lambda most: os.read(STREAM, most), directory, check_file_name(name), conflict,
                   lambda whole: gate.pass_(f"{whole.sha256}\n"))
    sys.stdout.write(json.dumps({"name": placed.name}) + "\n")
    sys.stdout.flush()


def _give(path: str) -> None:
    from cage_runtime.cli.tree import Listing, write

    parts = [part for part in _beneath(path).split("/") if part not in ("", ".")]
    if ".." in parts or not parts:
        raise UsageError(f'"{path}": name a file or directory beneath {HOME}, without ".."')
    here = os.open(HOME, DIRECTORY)
    for part in parts[:-1]:
        here = os.open(part, DIRECTORY, dir_fd=here)
    manifest = Manifest()
    write(STREAM, here, Listing.of_entry(here, parts[-1], path), manifest=manifest)
    os.close(STREAM)  # whoever reads it waits for its end
    gate.pass_(f"{manifest.content}\n")
