# SPDX-License-Identifier: LGPL-2.1-or-later
"""cage-mediator NAME: one of the halves of a mediator.

Law of this room: only the half that runs is imported, because each starts on demand; a mediator is a folder here, so
nothing in this file names one.
"""

from __future__ import annotations

import importlib
import sys
from importlib.machinery import PathFinder

import mediators
from cage_runtime.errors import CageError, UsageError
from cage_runtime.text import escape

USAGE = "usage: cage-mediator NAME [--config FILE | --cage | --deliver ARG... | --copy ARG...]"
_HALVES = {"--cage": "cage", "--deliver": "deliver", "--copy": "copying"}


def main() -> int:
    """The exit status is the error's; the error is one sentence on standard error."""
    try:
        return _run(sys.argv[1:])
    except CageError as error:
        sys.stderr.write(f"cage-mediator: {error.sentence}\n")
        return error.exit_status
    except KeyboardInterrupt:
        return 130


def _run(untrusted_arguments: list[str]) -> int:
    if not untrusted_arguments or untrusted_arguments[0] in {"-h", "--help"}:
        sys.stdout.write(f"{USAGE}\n")
        return 0 if untrusted_arguments else 2
    name = untrusted_arguments[0]
    if not (name.isascii() and name.isalpha() and name.islower() and _is_mediator(name)):
        raise UsageError(f'there is no mediator "{escape(name, limit=40)}"; {USAGE}')
    half = _HALVES.get(untrusted_arguments[1], "core") if len(untrusted_arguments) > 1 else "core"
    rest = untrusted_arguments[1:] if half == "core" else untrusted_arguments[2:]
    status = importlib.import_module(f"mediators.{name}.{half}").run(rest)
    return int(status)


def _is_mediator(name: str) -> bool:
    found = PathFinder.find_spec(f"mediators.{name}", mediators.__path__)
    return found is not None and found.submodule_search_locations is not None


if __name__ == "__main__":
    sys.exit(main())
