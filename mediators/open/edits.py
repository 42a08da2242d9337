# SPDX-License-Identifier: LGPL-2.1-or-later
"""A file on its way back from where it was opened: received into a file without a name, verified, given on.

Law of this room: all of it is the target's to choose, so it is bounded as it comes and counts for nothing until it is
whole and has the digest that was announced.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from cage_runtime.errors import RuntimeFailure, TransferFailed
from mediators.open.protocol import HEADER_MAX, parse_header

DID_NOT_ANSWER = "the target did not answer as it should"


class Returned:
    """Takes what the delivery half writes, and afterwards has the whole file, or nothing where it has not changed."""

    def __init__(self, directory: Path, most: int) -> None:
        self._most, self._header = most, b""
        self._announced: tuple[int, str] | None = None
        self._begun, self._digest, self.size = False, hashlib.sha256(), 0
        try:
            self._file = os.open(directory, os.O_TMPFILE | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise RuntimeFailure(f"{directory}: nothing can come back into it: {error.strerror}") from error

    def take(self, untrusted_chunk: bytes) -> None:
        """TransferFailed where it is more than there may be, or not what was announced."""
        if not self._begun:
            self._header += untrusted_chunk
            line, found, untrusted_chunk = self._header.partition(b"\n")
            if not found:
                if len(line) > HEADER_MAX:
                    raise TransferFailed(DID_NOT_ANSWER)
                return
            self._begun, self._announced, self._header = True, parse_header(line, self._most), b""
        if untrusted_chunk:
            self._write(untrusted_chunk)

    def _write(self, chunk: bytes) -> None:
        if self._announced is None or self.size + len(chunk) > self._announced[0]:
            raise TransferFailed(DID_NOT_ANSWER)
        self.size += len(chunk)
        self._digest.update(chunk)
        rest = memoryview(chunk)
        try:
            while rest:
                rest = rest[os.write(self._file, rest):]
        except OSError as error:
            raise TransferFailed(f"it cannot come back: {os.strerror(error.errno or 0)}") from error

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    @property
    def is_whole(self) -> bool:
        """Whether an edited file is here, as it was announced."""
        return self._announced is not None and (self.size, self.sha256) == self._announced

    def finish(self) -> int | None:
        """A descriptor of the whole file, to be lent, the caller's; None where nothing changed."""
        if self._begun and self._announced is None:
            return None
        if not self.is_whole:
            raise TransferFailed(DID_NOT_ANSWER)
        return os.dup(self._file)

    def close(self) -> None:
        os.close(self._file)
