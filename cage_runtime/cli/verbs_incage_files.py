# SPDX-License-Identifier: LGPL-2.1-or-later
"""What someone inside a cage can ask of the files mediator: send, move.

Law of this room: a receipt is written into a file that was not there before, and which is gone again where nothing was
sent.
"""

from __future__ import annotations

import contextlib
import os
import stat
import sys
import time

from cage_runtime.cli import verbs_incage
from cage_runtime.cli.beneath import Marks, is_as_read, open_source
from cage_runtime.cli.output import Screen, cell, say
from cage_runtime.errors import CageError, CutOff, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator
    from typing import Any

    from cage_runtime.cli.client import Peer

PROGRESS_SECONDS = 0.3
"""Between two looks at how far it is."""
SIGNATURE_BYTES_MAX = 8192
"""As the mediator has it."""
CONFLICTS = ("rename", "skip", "replace", "fail")


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", metavar="FILE", nargs="+", help="a file or directory in your home directory")
    parser.add_argument("--to", metavar="CAGE", required=True, help="the cage that shall get it, in ~/Inbox/")
    parser.add_argument("--conflict", choices=CONFLICTS, default="rename",
                        help="what to do where the name is taken (default: %(default)s)")
    parser.add_argument("--receipt", metavar="RECEIPT",
                        help="the new file for the core's signed receipt of the one FILE")
    parser.add_argument("--signature", metavar="SIG",
                        help="the signature of the one FILE, for a policy that wants it signed")


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
    if (args.receipt or args.signature) and len(args.files) > 1:
        raise UsageError("a receipt and a signature are of one FILE; send the others by themselves")
    options: dict[str, object] = {"conflict": ("s", args.conflict)} if args.conflict != "rename" else {}
    if args.signature:
        options["signature"] = _signature(args.signature)
    sender = _Sender(files, args.to, options | ({"move": ("b", True)} if move else {}),
                     silent=args.quiet or screen.as_json or not sys.stderr.isatty(), receipted=bool(args.receipt))
    worst = 0
    arrived = []
    for path in args.files:
        try:
            with _receipt_file(args.receipt) as receipt:
                name, kept = sender.send(path)
                if receipt is not None:
                    _write(receipt, sender.receipt, path)
        except NotRunning:
            raise
        except CageError as error:
            say(args.program, error.sentence)
            worst = max(worst, error.exit_status)
            continue
        arrived.append({"file": path, "target": args.to, "arrived": name})
        shown = cell(name) if name else "skipped, because the name is taken"
        screen.done(f"{cell(os.path.basename(path) or path)} -> {cell(args.to)}: {shown}")
        if args.receipt and not sender.receipt:
            say(args.program, f'"{cell(path)}": the core can give no receipt of it; its log says why')
            worst = max(worst, 1)
        if kept:
            say(args.program, f'"{cell(path)}": kept here, because it has changed since it was read: {cell(kept)}')
            worst = max(worst, 1)
    if screen.as_json:
        screen.document(arrived)
    return worst


def _signature(path: str) -> bytes:
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        content = file.read(SIGNATURE_BYTES_MAX + 1)
    if not 0 < len(content) <= SIGNATURE_BYTES_MAX:
        raise CageError(f'"{cell(path)}" is not a signature as ssh-keygen -Y sign makes it')
    return content


@contextlib.contextmanager
def _receipt_file(path: str | None) -> Iterator[int | None]:
    """A new file for a receipt, where one is wanted, which is gone again unless one has been written into it."""
    if path is None:
        yield None
        return
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise CageError(f'"{cell(path)}" cannot be made for the receipt: {error.strerror}') from error
    try:
        yield descriptor
    finally:
        if not os.fstat(descriptor).st_size:
            os.unlink(path)
        os.close(descriptor)


def _write(descriptor: int, receipt: str, of_path: str) -> None:
    rest = receipt.encode()
    try:
        while rest:
            rest = rest[os.write(descriptor, rest):]
        os.fsync(descriptor)
    except OSError as error:
        os.ftruncate(descriptor, 0)
        raise CageError(f'"{cell(of_path)}" was sent, but its receipt cannot be written: {error.strerror}') from error


class _Sender:
    """Sends to one cage, with the same options; the mediator is reached when there is something to send."""

    def __init__(self, reach: Any, target: str, options: dict[str, object], *, silent: bool,
                 receipted: bool = False) -> None:
        self._reach, self._target, self._options, self._silent = reach, target, options, silent
        self._receipted, self.receipt = receipted, ""
        """That of what was sent last; empty where none was wanted, or there is none."""
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
            arguments = "ssha{sv}", self._target, name, descriptor, self._options
            if not self._receipted:
                return str(self._mediator.call("Send", *arguments, returns="s", timeout=None))
            arrived, self.receipt = self._mediator.call("SendReceipted", *arguments, returns="ss", timeout=None)
            return str(arrived)
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

        if "signature" in self._options:
            raise UsageError(f'"{cell(path)}" is a directory, of which there is no signature; send an archive of it')
        listing = Listing.of(top, path)
        progress = _Progress(f"{cell(name)} -> {cell(self._target)}", listing.length, silent=self._silent)
        options = self._options | ({"receipt": ("b", True)} if self._receipted else {})
        tree, status = self._mediator.call("SendTree", "ssa{sv}", self._target, name, options, returns="hh")
        try:
            try:
                write(tree, top, listing, progress.show)
            except BrokenPipeError:  # it is being said why
                pass
            finally:
                os.close(tree)
            arrived, self.receipt = _told(status, name)
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


def _told(status: int, name: str) -> tuple[str, str]:
    """Where the tree arrived, and the receipt where one was wanted, as the core's side tells it when it is done."""
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
    return str(told["arrived"]), str(told.get("receipt", ""))


def _unknown(name: str) -> CageError:
    return CageError(f'"{cell(name)}": the core ended meanwhile, so it is not known whether it arrived; '
                     "look in the target before sending it again")


VERBS = {"send": (_send_arguments, _send), "move": (_arguments, _move)}
