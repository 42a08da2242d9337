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

from cage_runtime.cli import verbs_incage
from cage_runtime.cli.beneath import Marks, is_as_read, open_source
from cage_runtime.cli.followed import Followed, Progress, unknown
from cage_runtime.cli.output import Screen, cell, say
from cage_runtime.errors import CageError, CutOff, NothingDone, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator
    from typing import Any

    from cage_runtime.cli.client import Peer

ATTEMPTS = 3
"""Times that something is sent where the core's side ends before anything can have come of it."""
INTERRUPTED = 130
"""The exit status after Ctrl-C."""
CONFLICTS = ("rename", "skip", "replace", "fail")


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", metavar="FILE", nargs="+", help="a file or directory in your home directory")
    parser.add_argument("--to", metavar="CAGE", default="",
                        help="the cage that shall get it, in ~/Inbox/; what policy says where it is left out")
    parser.add_argument("--conflict", choices=CONFLICTS, default="rename",
                        help="what to do where the name is taken (default: %(default)s)")
    parser.add_argument("--progress", action="store_true", default=None,
                        help="show how far it is (default: on a terminal)")
    parser.add_argument("--no-progress", action="store_false", dest="progress", help="do not")
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
    options |= {"move": ("b", True)} if move else {}
    options |= {"receipt": ("b", True)} if args.receipt else {}
    options |= {"signature": _signature(args.signature)} if args.signature else {}
    if args.progress is None:
        args.progress = sys.stderr.isatty() and not args.quiet and not screen.as_json
    sender = _Sender(files, args.to, options, progress=args.progress)
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
            if sender.interrupted:
                break
            continue
        target, name = (args.to, name) if args.to else _chosen(name)
        arrived.append({"file": path, "target": target, "arrived": name})
        shown = cell(name) if name else "skipped, because the name is taken"
        screen.done(f"{cell(os.path.basename(path) or path)} -> {_named(target)}: {shown}")
        if args.receipt and not sender.receipt:
            say(args.program, f'"{cell(path)}": the core can give no receipt of it; its log says why')
            worst = max(worst, 1)
        if kept:
            say(args.program, f'"{cell(path)}": kept here, because it has changed since it was read: {cell(kept)}')
            worst = max(worst, 1)
        if sender.interrupted:
            say(args.program, f'"{cell(path)}" had arrived before it could be cancelled')
            break
    if screen.as_json:
        screen.document(arrived)
    return INTERRUPTED if sender.interrupted else worst


def _chosen(arrived: str) -> tuple[str, str]:
    """The target that policy or a person has chosen, empty where we may not hear of it, and where it is there."""
    target, colon, path = arrived.partition(":")
    return (target, path) if colon else ("", arrived)


def _named(target: str) -> str:
    return cell(target) if target else "another cage"


def _signature(path: str) -> bytes:
    from cage_runtime.model import SIGNATURE_BYTES_MAX

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

    def __init__(self, reach: Any, target: str, options: dict[str, object], *, progress: bool) -> None:
        self._reach, self._target, self._options, self._shown = reach, target, options, progress
        self.receipt = ""
        """That of what was sent last; empty where none was wanted, or there is none."""
        self._peer: Peer | None = None
        self.interrupted = False
        """Ctrl-C has come: nothing more is to be sent."""

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
        def begun() -> Followed:
            status, control = self._asked(name, "StartFile", "ssha{sv}", self._target, name, descriptor, self._options,
                                          returns="hh")
            return Followed(name, status, control, self._progress(name))

        return self._again(name, begun, lambda _followed: None)

    def _again(self, name: str, begun: Callable[[], Followed], feed: Callable[[Followed], object]) -> str:
        """Where it arrived.  It is sent again where the core's side has ended and nothing can have come of it."""
        for attempt in range(1, ATTEMPTS + 1):
            with begun() as followed:
                try:
                    feed(followed)
                    return followed.arrived()
                except NothingDone:
                    if followed.interrupted or attempt == ATTEMPTS:
                        raise
                finally:
                    self.interrupted, self.receipt = followed.interrupted, followed.receipt
        raise unknown(name)

    def _asked(self, name: str, member: str, signature: str, *values: object, returns: str) -> Any:
        try:
            # As long as it takes: the core's side has the deadline.
            return self._mediator.call(member, signature, *values, returns=returns, timeout=None)
        except CutOff as error:
            raise unknown(name) from error
        except KeyboardInterrupt:
            self.interrupted = True
            raise CageError(f'"{cell(name)}" was interrupted as it began, and is given up') from None

    def _progress(self, name: str) -> Progress:
        return Progress(f"{cell(name)} -> {_named(self._target)}", shown=self._shown)

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
        listing, pipes = Listing.of(top, path), [-1]
        progress = self._progress(name)

        def begun() -> Followed:
            pipes[0], status, control = self._asked(name, "StartTree", "ssa{sv}", self._target, name, self._options,
                                                    returns="hhh")
            return Followed(name, status, control, progress)

        def feed(_followed: Followed) -> None:
            try:
                write(pipes[0], top, listing, lambda done: progress.show(done, listing.length))
            except BrokenPipeError:  # it is being said why
                return
            finally:
                os.close(pipes[0])

        arrived = self._again(name, begun, feed)
        kept = remove(top, listing) if "move" in self._options else ""
        if "move" in self._options and not kept:
            with contextlib.suppress(OSError):  # something has come into it meanwhile
                os.rmdir(path)
        return arrived, kept


VERBS = {"send": (_send_arguments, _send), "move": (_arguments, _move)}
