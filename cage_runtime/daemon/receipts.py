# SPDX-License-Identifier: LGPL-2.1-or-later
"""Receipts for cages of what the core did for them, and the key that signs them.

Law of this room: the key stays here.  A receipt is made of the record that was written with it, of a request that the
same core half had confirmed for the same instance, and says nothing that its source does not hear anyway: each of these
records has a salt, so that their hash does not tell what else is in them, and no receipt has a number of a record, of
which a cage could count what others do.
"""

from __future__ import annotations

import logging
import os
import stat
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cage_runtime.audit.event import Kind, Record
from cage_runtime.errors import RuntimeFailure
from cage_runtime.model import RECEIPTS_PER_CAGE, ReceiptOutcome
from cage_runtime.text import escape

LOG = logging.getLogger(__name__)
KEY = "receipt-key"
"""The private key's file beside the chain; what is written of the next one has its name with .new."""
KEY_BYTES = 32
"""Any so many are a private key of Ed25519."""
_SALT_BYTES = 16
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, kw_only=True, slots=True)
class Expected:
    """A request that was confirmed and whose source wants a receipt: what that may say."""

    mediator: str
    service: str
    one_way: bool
    """Nothing comes back but that it was accepted."""
    level: bool
    """The source hears all that came of it."""
    target: str

    def outcome(self, untrusted_outcome: str) -> ReceiptOutcome | None:
        """What the source may hear of what the core half says; None where a receipt of that cannot be."""
        if (untrusted_outcome == ReceiptOutcome.ACCEPTED) != self.one_way:
            return None
        if untrusted_outcome not in (ReceiptOutcome.ACCEPTED, ReceiptOutcome.ARRIVED, ReceiptOutcome.SKIPPED):
            return None
        return ReceiptOutcome(untrusted_outcome) if self.one_way or self.level else ReceiptOutcome.HANDED_OVER


class Receipts:
    def __init__(self, directory: Path, record: Callable[..., Record]) -> None:
        """`directory` is the chain's; `record` adds to it."""
        self._directory, self._record = directory, record
        self._private = b""
        self._expected: dict[str, OrderedDict[str, Expected]] = {}
        """By the instance's uuid and the request's id."""

    def expect(self, source: str, request: str, expected: Expected) -> None:
        """There will be a receipt of the instance's request, once."""
        of_source = self._expected.setdefault(source, OrderedDict())
        of_source[request] = expected
        while len(of_source) > RECEIPTS_PER_CAGE:
            of_source.popitem(last=False)

    def forget(self, source: str) -> None:
        """The instance is gone."""
        self._expected.pop(source, None)

    def about(self, source: str, request: str, mediator: str, service: str, untrusted_outcome: str) -> dict[str, str]:
        """What the record of it has more than others; nothing where there is no receipt of that."""
        expected = self._expected.get(source, OrderedDict[str, Expected]()).get(request)
        same = expected is not None and (expected.mediator, expected.service) == (mediator, service)
        outcome = expected.outcome(untrusted_outcome) if expected and same else None
        if outcome is None:
            LOG.warning("no receipt of %s for %s: it is not known here", escape(request, limit=40), mediator)
            return {}
        try:
            host = self._host()
        except RuntimeFailure as error:  # of which what is to be recorded does not depend
            LOG.error("no receipt of %s: %s", request, error.sentence)
            return {}
        return {"request": request, "receipt": outcome.value, "host": host, "salt": os.urandom(_SALT_BYTES).hex()}

    def make(self, source: str, request: str, record: Record) -> str:
        """The receipt of the request, of which `record` with all of `about` was written; there is no second one."""
        from cage_runtime import receipt  # takes its time, and few ever need it

        expected = self._expected[source].pop(request)
        made = receipt.Receipt(target=expected.target, **receipt.recorded(
            record.event.time, record.hash, record.event.fields))
        return receipt.sign(made, self._key()).decode()

    def public(self) -> str:
        """The public key, as a file of it has it."""
        from cage_runtime import receipt

        return receipt.write_public(receipt.public_key(self._key()))

    def _host(self) -> str:
        from cage_runtime import receipt

        return receipt.host_of(receipt.public_key(self._key()))

    # --- the key -----------------------------------------------------------------------------------------------
    def prepare(self) -> None:
        """Make the key where there is none, before anybody asks for it; what hinders that hinders nothing else."""
        try:
            self._key()
        except RuntimeFailure as error:
            LOG.error("receipts cannot be signed: %s", error.sentence)

    def _key(self) -> bytes:
        """The private key, which is made where there is none; RuntimeFailure where what is there is none."""
        if not self._private:
            path = self._directory / KEY
            try:
                self._private = _read(path) if os.path.lexists(path) else self._make(path)
            except OSError as error:
                raise RuntimeFailure(f"{path}: {error.strerror}") from error
        return self._private

    def _make(self, path: Path) -> bytes:
        """A new key, whole or not at all, and in the record before it has signed anything."""
        private, new = os.urandom(KEY_BYTES), path.with_name(f"{KEY}.new")
        new.unlink(missing_ok=True)
        with open(os.open(new, _NEW, 0o600), "wb") as file:
            file.write(private)
            file.flush()
            os.fsync(file.fileno())
        self._record(Kind.RECEIPT_KEY_MADE, None, {})
        os.rename(new, path)
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
        return private


def _read(path: Path) -> bytes:
    descriptor = os.open(path, _READ)
    with open(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        alone = status.st_uid == os.geteuid() and not status.st_mode & (stat.S_IRWXG | stat.S_IRWXO)
        private = file.read(KEY_BYTES + 1)
    if not (stat.S_ISREG(status.st_mode) and alone and len(private) == KEY_BYTES):
        raise RuntimeFailure(f"{path} is not a key that the core alone can read; put back what was there, or remove "
                             "it, and the core makes a new one when it is started again")
    return private
