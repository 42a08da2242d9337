# SPDX-License-Identifier: LGPL-2.1-or-later
"""The delivery half: in the target cage, as its user and with all rights of its session, because it opens things.

Law of this room: what is opened is a copy of the cage's own, checked, whole and not to be reached by its name before;
nothing of it is told but whether it begins, and, where the file may come back, what became of it.
"""

from __future__ import annotations

import errno
import hashlib
import os
import signal
import subprocess
import sys
import tempfile

from cage_runtime.errors import TransferFailed
from mediators import gate
from mediators.open import handler, protocol
from mediators.open.protocol import CHUNK, DAMAGED, FULL, NO_HANDLER, UNFIT, Delivery

COPIES = ".cache/incage"
"""Where in the home a copy is, for as long as it is open."""


class Unopened(TransferFailed):
    """Nothing was opened; the exit status tells the core half why, in protocol.FAULTS' terms."""

    def __init__(self, fault: int, detail: str = "") -> None:
        super().__init__(protocol.FAULTS[fault] + (f" ({detail})" if detail else ""))
        self.exit_status = fault


def run(arguments: list[str]) -> int:
    """`cage-mediator open --deliver …`; prints protocol.READY, waits for the word, and opens it."""
    delivery = protocol.parse_delivery(arguments)
    gate.prepare()
    os.umask(0o077)
    home = os.environ.get("HOME", "/home/user")
    if not delivery.name:
        return _open_uri(home, delivery)
    try:
        with _Copy(home, delivery) as copy:
            return _open_file(home, delivery, copy)
    except OSError as error:
        raise Unopened(FULL, os.strerror(error.errno or 0)) from error


class _Copy:
    """The file in a new directory of the cage's user, which goes when it is not open any more."""

    def __init__(self, home: str, delivery: Delivery) -> None:
        top = os.path.join(home, COPIES)
        os.makedirs(top, mode=0o700, exist_ok=True)
        self._directory, self._ours = tempfile.mkdtemp(dir=top), True
        self.path = os.path.join(self._directory, delivery.name)
        try:
            with open(self.path, "xb") as file:
                for chunk in _checked(delivery):
                    file.write(chunk)
        except (OSError, TransferFailed):
            self.remove()
            raise

    def __enter__(self) -> _Copy:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if self._ours:
            self.remove()

    def leave(self) -> None:
        """It is not ours to remove from now on."""
        self._ours = False

    def remove(self) -> None:
        import shutil

        shutil.rmtree(self._directory, ignore_errors=True)


def _checked(delivery: Delivery):  # type: ignore[no-untyped-def]  # typing would take a tenth of the start
    """What is on standard input, piece by piece; Unopened where it is not what was announced."""
    digest, offset = hashlib.sha256(), 0
    while chunk := os.pread(0, min(CHUNK, delivery.size + 1 - offset), offset):
        digest.update(chunk)
        offset += len(chunk)
        if offset > delivery.size:
            break
        yield chunk
    if offset != delivery.size or digest.hexdigest() != delivery.sha256:
        raise Unopened(DAMAGED, "another length or digest than announced")


def _open_uri(home: str, delivery: Delivery) -> int:
    from mediators.open.uri import check_uri

    uri = check_uri(b"".join(_checked(delivery)).decode("ascii", "replace"))
    command = _command(home, uri.text, uri.scheme)
    gate.pass_(protocol.READY)
    if os.fork() == 0:
        _detach()
        _wait(command)
        os._exit(0)
    return 0


def _open_file(home: str, delivery: Delivery, copy: _Copy) -> int:
    command = _command(home, copy.path, "")
    gate.pass_(protocol.READY)
    if delivery.returns:
        # Whoever asked may go; what is open here stays open, as long as its user wants.
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGHUP, signal.SIGTERM))
        _wait(command)
        _give_back(delivery, copy)
        return 0
    if os.fork() == 0:
        _detach()
        _wait(command)
        copy.remove()
        os._exit(0)
    copy.leave()
    return 0


def _command(home: str, opened: str, scheme: str) -> list[str]:
    command = handler.command(home, opened, scheme)
    if command is None:
        raise Unopened(NO_HANDLER)
    return command


def _detach() -> None:
    """Nobody waits for this process any more, nor holds it."""
    os.setsid()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGHUP, signal.SIGTERM, gate.GO))
    for ending in (signal.SIGHUP, signal.SIGTERM):
        signal.signal(ending, signal.SIG_DFL)
    null = os.open(os.devnull, os.O_RDWR)
    for number in range(3):
        os.dup2(null, number)


def _wait(command: list[str]) -> None:
    """Have it opened, in a group of its own, until what opens it ends; with what status is its user's business."""
    try:
        subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                       start_new_session=True, check=False)
    except OSError:
        return


def _give_back(delivery: Delivery, copy: _Copy) -> None:
    """Write what became of the file: a line, and its content where that is another.  That stays here, where it may not
    go back or nobody takes it any more."""
    try:
        edited = os.open(copy.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        _say(b"unchanged\n")
        return
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise Unopened(UNFIT) from error
    with open(edited, "rb") as file:
        if not os.path.isfile(f"/proc/self/fd/{edited}") or os.fstat(edited).st_size > protocol.EDITED_BYTES_MAX:
            raise Unopened(UNFIT)
        content = file.read(protocol.EDITED_BYTES_MAX + 1)
    digest = hashlib.sha256(content).hexdigest()
    if digest == delivery.sha256 or not content:
        _say(b"unchanged\n")
        return
    if len(content) > protocol.EDITED_BYTES_MAX:
        raise Unopened(UNFIT)
    copy.leave()
    gate.leave(lambda: _say(b"edited %d %s\n" % (len(content), digest.encode()), content))
    copy.remove()


def _say(*pieces: bytes) -> None:
    for piece in pieces:
        sys.stdout.buffer.write(piece)
    sys.stdout.flush()
