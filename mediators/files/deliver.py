# SPDX-License-Identifier: LGPL-2.1-or-later
"""The delivery half: runs in the target cage as its user, standard input the staged file, and ends.

Law of this room: the file appears in ~/Inbox/SOURCE whole, checked and on disk, or not at all, and not before the core
half has said so: what it reports as failed, because it was killed or what it does could not be recorded, is not there.
Whoever owns the home may rearrange it meanwhile, so every step holds the directory it works in and follows no link.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import sys
from collections.abc import Callable

from cage_runtime.errors import TransferFailed
from mediators import digest
from mediators.files import hidden, protocol
from mediators.files.protocol import (
    CROWDED,
    DAMAGED,
    FAIL,
    FULL,
    GIVEN,
    INBOX,
    RENAME,
    REPLACE,
    SKIP,
    SKIPPED,
    TAKEN,
    WITHDRAWN,
    Delivery,
)

DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
"""How a directory of the home is opened."""
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
_GO = signal.Signals[protocol.GO]
INIT_UID = 0
ENDS = (signal.SIGHUP, signal.SIGTERM)
"""Sent where the core half is gone, and where the cage stops."""


class Undelivered(TransferFailed):
    """Nothing arrived; the exit status tells the core half why, in protocol.FAULTS' terms."""

    def __init__(self, fault: int, detail: str = "") -> None:
        super().__init__(protocol.FAULTS[fault] + (f" ({detail})" if detail else ""))
        self.exit_status = fault


def run(arguments: list[str]) -> int:
    """`cage-mediator files --deliver file|tree CONFLICT SOURCE NAME SIZE SHA256 ONCE|- SINCE`; prints protocol.READY,
    waits for protocol.GO, and prints which of protocol.candidate's names it took, or protocol.SKIPPED.
    """
    delivery = protocol.parse_delivery(arguments)
    os.umask(0o022)
    signal.pthread_sigmask(signal.SIG_BLOCK, {_GO})
    for number in ENDS:
        signal.signal(number, _withdraw)
    ordinal = deliver(0, os.environ.get("HOME", "/home/user"), delivery, _wait_for_go)
    sys.stdout.write(f"{ordinal}\n")
    sys.stdout.flush()
    return 0


def _withdraw(*_: object) -> None:
    raise Undelivered(WITHDRAWN)


def _wait_for_go() -> None:
    """Say that all but the name is there, and wait for the word; Undelivered where another one comes."""
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDS)
    sys.stdout.write(protocol.READY)
    sys.stdout.flush()
    while True:
        said = signal.sigwaitinfo((_GO, *ENDS))
        if said.si_signo != _GO:
            _withdraw()
        # The cage's user can send signals to us too; what the core half says comes from cage-init.
        if said.si_uid == INIT_UID:
            return


def deliver(staged: int, home: str, delivery: Delivery, wait_for_go: Callable[[], None]) -> int:
    """Publish the file or the tree open as `staged` in the inbox below `home`, once it is there and `wait_for_go` has
    returned.

    Returns the ordinal of the name that it has, or SKIPPED.
    """
    try:
        with (
            Held(os.open(home, DIRECTORY)) as root,
            _Subdirectory(root, "Inbox") as inbox,
            _Subdirectory(inbox, delivery.source) as directory,
        ):
            hidden.clear(directory, delivery.since)
            if delivery.once and hidden.is_given(directory, delivery.once):
                raise Undelivered(GIVEN)
            if delivery.conflict in (SKIP, FAIL) and _is_taken(directory, delivery.name):
                if delivery.conflict == FAIL:
                    raise Undelivered(TAKEN)
                wait_for_go()
                return SKIPPED
            if delivery.tree:
                from mediators.files.unpack import publish_tree

                return publish_tree(staged, directory, delivery, wait_for_go)
            return _publish(staged, directory, delivery, wait_for_go)
    except OSError as error:
        fault = FULL if error.errno in _NO_SPACE else INBOX
        raise Undelivered(fault, os.strerror(error.errno or 0)) from error


class Held:
    """A descriptor, closed at the end.  (contextlib alone would take a quarter of a delivery's time to import.)"""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def __enter__(self) -> int:
        return self._descriptor

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        os.close(self._descriptor)


class _Subdirectory:
    """The directory `name` in `parent`, made if it is missing, and removed again if the delivery fails.

    Not where another delivery has come meanwhile, which has found it there: each holds a shared lock of the parent, and
    whoever removes something has it alone.  (Whoever owns the home can hold it too, and has its deliveries withdrawn.)
    """

    def __init__(self, parent: int, name: str) -> None:
        self._parent, self._name, self._made = parent, name, True
        fcntl.flock(parent, fcntl.LOCK_SH)
        try:
            os.mkdir(name, 0o755, dir_fd=parent)
        except FileExistsError:
            self._made = False
        self._descriptor = os.open(name, DIRECTORY, dir_fd=parent)

    def __enter__(self) -> int:
        return self._descriptor

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        os.close(self._descriptor)
        if self._made and error is None:
            os.fsync(self._parent)
        elif self._made:
            try:
                fcntl.flock(self._parent, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.rmdir(self._name, dir_fd=self._parent)
            except OSError:  # somebody else uses it by now, or has moved it: theirs
                return


def _publish(staged: int, directory: int, delivery: Delivery, wait_for_go: Callable[[], None]) -> int:
    unnamed = os.open(".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600, dir_fd=directory)
    with Held(unnamed):
        _copy(staged, unnamed, delivery)
        os.fchmod(unnamed, 0o644)
        os.fsync(unnamed)
        if delivery.once:
            ordinal = _publish_once(unnamed, directory, delivery, wait_for_go)
        else:
            wait_for_go()
            ordinal = _link(unnamed, directory, delivery)
    os.fsync(directory)
    return ordinal


def _publish_once(unnamed: int, directory: int, delivery: Delivery, wait_for_go: Callable[[], None]) -> int:
    """As `_link`, so that another delivery of the same finds out whether it has its name."""
    name = hidden.hidden_name(delivery.once)

    def link(name: str) -> int:
        os.link(f"/proc/self/fd/{unnamed}", name, dst_dir_fd=directory)
        return unnamed

    fcntl.flock(unnamed, fcntl.LOCK_EX)
    hidden.begin(directory, lambda: link(name))
    given = False
    try:
        wait_for_go()
        hidden.mark(directory, name)
        ordinal = _replace(name, directory, delivery) if delivery.conflict == REPLACE else first_free(delivery, link)
        given = True
    finally:
        if not given:
            hidden.discard(directory, name)
    if delivery.conflict != REPLACE:
        hidden.drop(directory, name)
    return ordinal


def _copy(staged: int, unnamed: int, delivery: Delivery) -> None:
    os.posix_fallocate(unnamed, 0, delivery.size)  # a full disk is known before anything is copied
    if digest.copy(staged, unnamed, delivery.size, to_disk=True) != (delivery.size, delivery.sha256):
        raise Undelivered(DAMAGED, "another length or digest than announced")


def _is_taken(directory: int, name: str) -> bool:
    try:
        os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def first_free(delivery: Delivery, take: Callable[[str], object]) -> int:
    """The ordinal of the first name that `take`, which raises FileExistsError where it is taken, could give it."""
    for ordinal in range(1, protocol.RENAMES_MAX + 1 if delivery.conflict == RENAME else 2):
        try:
            take(protocol.candidate(delivery.name, ordinal))
        except FileExistsError:
            continue
        return ordinal
    if delivery.conflict == SKIP:
        return SKIPPED
    raise Undelivered(CROWDED if delivery.conflict == RENAME else TAKEN)


def _link(unnamed: int, directory: int, delivery: Delivery) -> int:
    def link(name: str) -> int:
        os.link(f"/proc/self/fd/{unnamed}", name, dst_dir_fd=directory)
        return unnamed

    if delivery.conflict != REPLACE:
        return first_free(delivery, link)
    name = hidden.hidden_name()

    fcntl.flock(unnamed, fcntl.LOCK_EX)
    hidden.begin(directory, lambda: link(name))
    try:
        return _replace(name, directory, delivery)
    except (OSError, Undelivered):
        hidden.drop(directory, name)
        raise


def _replace(name: str, directory: int, delivery: Delivery) -> int:
    """Put what is hidden as `name` in the place of what has the delivery's name."""
    try:
        os.rename(name, delivery.name, src_dir_fd=directory, dst_dir_fd=directory)
    except OSError as error:
        if error.errno in (errno.EISDIR, errno.ENOTEMPTY, errno.EEXIST):
            raise Undelivered(TAKEN) from error
        raise
    return 1
