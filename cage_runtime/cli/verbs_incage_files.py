# SPDX-License-Identifier: LGPL-2.1-or-later
"""What someone inside a cage can ask of the files mediator: send, move."""

from __future__ import annotations

import contextlib
import os
import stat
import sys
import time

from cage_runtime.cli import verbs_incage
from cage_runtime.cli.beneath import Marks, is_as_read, open_source
from cage_runtime.cli.output import Screen, cell, say
from cage_runtime.errors import CageError, CutOff

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from typing import Any

    from cage_runtime.cli.client import Peer

PROGRESS_SECONDS = 0.3
"""Between two looks at how far it is."""
CONFLICTS = ("rename", "skip", "replace", "fail")


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", metavar="FILE", nargs="+", help="a file or directory in your home directory")
    parser.add_argument("--to", metavar="CAGE", required=True, help="the cage that shall get it, in ~/Inbox/")
    parser.add_argument("--conflict", choices=CONFLICTS, default="rename",
                        help="what to do where the name is taken (default: %(default)s)")


def _send_arguments(parser: argparse.ArgumentParser) -> None:
    _arguments(parser)
    parser.add_argument("--move", action="store_true", help="remove here what has arrived")


def _send(args: argparse.Namespace, screen: Screen) -> int:
    return _sent_all(args, screen, move=args.move)


def _move(args: argparse.Namespace, screen: Screen) -> int:
    return _sent_all(args, screen, move=True)


def _sent_all(args: argparse.Namespace, screen: Screen, *, move: bool) -> int:
    from cage_runtime.cli.client import NotRunning, files

    verbs_incage.require_inside()
    options: dict[str, object] = {"conflict": ("s", args.conflict)} if args.conflict != "rename" else {}
    sender = _Sender(files, args.to, options | ({"move": ("b", True)} if move else {}),
                     silent=args.quiet or screen.as_json or not sys.stderr.isatty())
    worst = 0
    arrived = []
    for path in args.files:
        try:
            name, kept = sender.send(path)
        except NotRunning:
            raise
        except CageError as error:
            say(args.program, error.sentence)
            worst = max(worst, error.exit_status)
            continue
        arrived.append({"file": path, "target": args.to, "arrived": name})
        shown = cell(name) if name else "skipped, because the name is taken"
        screen.done(f"{cell(os.path.basename(path) or path)} -> {cell(args.to)}: {shown}")
        if kept:
            say(args.program, f'"{cell(path)}": kept here, because it has changed since it was read: {cell(kept)}')
            worst = max(worst, 1)
    if screen.as_json:
        screen.document(arrived)
    return worst


class _Sender:
    """Sends to one cage, with the same options; the mediator is reached when there is something to send."""

    def __init__(self, reach: Any, target: str, options: dict[str, object], *, silent: bool) -> None:
        self._reach, self._target, self._options, self._silent = reach, target, options, silent
        self._peer: Peer | None = None

    @property
    def _mediator(self) -> Peer:
        self._peer = self._peer or self._reach()
        return self._peer

    def send(self, path: str) -> tuple[str, str]:
        """Where it arrived, relative to the target's home: its path, the directory where we may not hear that, or
        nothing where it was skipped; and, where it was to be removed here and is kept, an example of what is."""
        descriptor = open_source(path)
        try:
            status = os.fstat(descriptor)
            name = os.path.basename(os.path.abspath(path))
            if stat.S_ISDIR(status.st_mode):
                return self._tree(descriptor, path, name)
            arrived = self._file(descriptor, os.path.basename(path))
        finally:
            os.close(descriptor)
        return arrived, self._removed(path, Marks(status))

    def _file(self, descriptor: int, name: str) -> str:
        try:
            # As long as it takes: the core's side has the deadline, and Ctrl-C ends the wait.
            return str(self._mediator.call("Send", "ssha{sv}", self._target, name, descriptor, self._options,
                                           returns="s", timeout=None))
        except CutOff as error:
            raise _unknown(name) from error

    def _removed(self, path: str, marks: Marks) -> str:
        if "move" not in self._options:
            return ""
        if not is_as_read(os.stat(path, follow_symlinks=False), marks):
            return path
        os.unlink(path)
        return ""

    def _tree(self, top: int, path: str, name: str) -> tuple[str, str]:
        from cage_runtime.cli.tree import Listing, remove, write

        listing = Listing.of(top, path)
        progress = _Progress(f"{cell(name)} -> {cell(self._target)}", listing.length, silent=self._silent)
        tree, status = self._mediator.call("SendTree", "ssa{sv}", self._target, name, self._options, returns="hh")
        try:
            try:
                write(tree, top, listing, progress.show)
            except BrokenPipeError:  # it is being said why
                pass
            finally:
                os.close(tree)
            arrived = _told(status, name)
        finally:
            progress.clear()
            os.close(status)
        kept = remove(top, listing) if "move" in self._options else ""
        if "move" in self._options and not kept:
            with contextlib.suppress(OSError):  # something has come into it meanwhile
                os.rmdir(path)
        return arrived, kept


class _Progress:
    """How far something is, on one line of a terminal, which is empty again in the end."""

    def __init__(self, what: str, whole: int, *, silent: bool) -> None:
        self._what, self._whole, self._silent = what, whole, silent
        self._due, self._shown = time.monotonic() + PROGRESS_SECONDS, False

    def show(self, done: int) -> None:
        if not self._silent and time.monotonic() >= self._due:
            self._due, self._shown = time.monotonic() + PROGRESS_SECONDS, True
            sys.stderr.write(f"\r\x1b[K{self._what}: {100 * done // self._whole} %")
            sys.stderr.flush()

    def clear(self) -> None:
        if self._shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


def _told(status: int, name: str) -> str:
    """Where the tree arrived, as the core's side tells it when it is done."""
    import json

    from cage_runtime.errors import from_bus

    said = b""
    while chunk := os.read(status, 4096):
        said += chunk
    if not said.endswith(b"\n"):
        raise _unknown(name)
    told = json.loads(said.splitlines()[-1])
    if "error" in told:
        raise from_bus(told["error"], told["sentence"])
    return str(told["arrived"])


def _unknown(name: str) -> CageError:
    return CageError(f'"{cell(name)}": the core ended meanwhile, so it is not known whether it arrived; '
                     "look in the target before sending it again")


VERBS = {"send": (_send_arguments, _send), "move": (_arguments, _move)}
