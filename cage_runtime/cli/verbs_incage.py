# SPDX-License-Identifier: LGPL-2.1-or-later
"""incage whoami: what this cage is, which the core has written down in it, and what it may ask for."""

from __future__ import annotations

import json
import os

from cage_runtime.cli.output import Screen, cell
from cage_runtime.errors import RuntimeFailure

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from typing import Any


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
    """The identity is told also where the rest cannot be: then that is an error after it."""
    del args
    identity = _identity()
    if screen.as_json:
        try:
            identity["services"] = [{"service": service, "action": action} for service, action in _services()]
        finally:
            screen.document(identity)
        return 0
    label = [cell(identity.get("level", "")), *(cell(name) for name in identity.get("compartments", []))]
    screen.line(f"{cell(identity.get('name', ''))}: {', '.join(label)}")
    screen.table(("SERVICE", "ACTION"), _services(), "service")
    return 0


def _identity() -> dict[str, Any]:
    try:
        with open(IDENTITY, "rb") as file:
            identity = json.loads(file.read(IDENTITY_BYTES_MAX))
    except FileNotFoundError as error:
        raise _outside() from error
    except ValueError as error:
        raise RuntimeFailure(f"{IDENTITY} cannot be understood: it is not JSON") from error
    if not isinstance(identity, dict) or not isinstance(identity.get("compartments", []), list):
        raise RuntimeFailure(f"{IDENTITY} cannot be understood: it has an unknown shape")
    return identity


def _services() -> list[tuple[str, str]]:
    """What this cage may ask for, each service with allow or ask."""
    from cage_runtime.cli.client import mediator

    rows: list[tuple[str, str]] = mediator("call", "which tells what this cage may ask for").call(
        "Services", returns="a(ss)")
    return rows


VERBS = {"whoami": (_no_arguments, _whoami)}
