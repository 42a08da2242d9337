# SPDX-License-Identifier: LGPL-2.1-or-later
"""What someone inside a cage can ask for: send, whoami."""

from __future__ import annotations

import json
import os

from cage_runtime.cli.output import Screen, cell, say
from cage_runtime.errors import CageError, CutOff, RuntimeFailure

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from cage_runtime.cli.client import Peer

IDENTITY = "/run/cage/identity.json"
IDENTITY_BYTES_MAX = 64 * 1024


def _outside() -> RuntimeFailure:
    return RuntimeFailure(f"this is not the inside of a cage: there is no {IDENTITY}")


def require_inside() -> None:
    """RuntimeFailure where this is no cage."""
    if not os.path.exists(IDENTITY):
        raise _outside()


def _send_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", metavar="FILE", nargs="+", help="a regular file in your home directory")
    parser.add_argument("--to", metavar="CAGE", required=True, help="the cage that shall get it, in ~/Inbox/")


def _send(args: argparse.Namespace, screen: Screen) -> int:
    from cage_runtime.cli.client import NotRunning, files

    require_inside()
    mediator = None
    worst = 0
    arrived = []
    for path in args.files:
        try:
            descriptor = _opened(path)
            mediator = mediator or files()
            name = _sent(mediator, descriptor, os.path.basename(path), args.to)
        except NotRunning:
            raise
        except CageError as error:
            say(args.program, error.sentence)
            worst = max(worst, error.exit_status)
        else:
            arrived.append({"file": path, "target": args.to, "arrived": name})
            screen.done(f"{cell(os.path.basename(path))} -> {cell(args.to)}: {cell(name)}")
    if screen.as_json:
        screen.document(arrived)
    return worst


def _opened(path: str) -> int:
    from cage_runtime.cli.beneath import open_source

    return open_source(path)


def _sent(mediator: Peer, descriptor: int, name: str, target: str) -> str:
    """Where the file arrived, relative to the target's home: its path, or the directory where we may not hear that."""
    try:
        # As long as it takes: the core's side has the deadline, and Ctrl-C ends the wait.
        return str(mediator.call("Send", "ssha{sv}", target, name, descriptor, {}, returns="s", timeout=None))
    except CutOff as error:
        raise CageError(f'"{cell(name)}": the core ended meanwhile, so it is not known whether it arrived; '
                        "look in the target before sending it again") from error
    finally:
        os.close(descriptor)


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


VERBS = {"send": (_send_arguments, _send), "whoami": (_no_arguments, _whoami)}
