# SPDX-License-Identifier: LGPL-2.1-or-later
"""What someone inside a cage can ask for that needs no mediator: whoami."""

from __future__ import annotations

import json
import os

from cage_runtime.cli.output import Screen, cell
from cage_runtime.errors import RuntimeFailure

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse


IDENTITY = "/run/cage/identity.json"
IDENTITY_BYTES_MAX = 64 * 1024


def require_inside() -> None:
    """RuntimeFailure where this is not the inside of a cage."""
    if not os.path.exists(IDENTITY):
        raise _outside()


def _outside() -> RuntimeFailure:
    return RuntimeFailure(f"this is not the inside of a cage: there is no {IDENTITY}")


def _no_arguments(parser: argparse.ArgumentParser) -> None:
    del parser


def _whoami(args: argparse.Namespace, screen: Screen) -> int:
    del args
    try:
        with open(IDENTITY, "rb") as file:
            identity = json.loads(file.read(IDENTITY_BYTES_MAX))
    except FileNotFoundError as error:
        raise _outside() from error
    except ValueError as error:
        raise RuntimeFailure(f"{IDENTITY} cannot be understood: it is not JSON") from error
    if not isinstance(identity, dict) or not isinstance(identity.get("compartments", []), list):
        raise RuntimeFailure(f"{IDENTITY} cannot be understood: it has an unknown shape")
    if screen.as_json:
        screen.document(identity)
        return 0
    label = [cell(identity.get("level", "")), *(cell(name) for name in identity.get("compartments", []))]
    screen.line(f"{cell(identity.get('name', ''))}: {', '.join(label)}")
    return 0


VERBS = {"whoami": (_no_arguments, _whoami)}
