# SPDX-License-Identifier: LGPL-2.1-or-later
"""SSH's own wire format (RFC 4251, section 5), and the words of ssh-keygen's signatures (PROTOCOL.sshsig).

Law of this room: each length is looked at before it is believed.  (Delivery halves start with it, so it imports only
what costs nothing.)
"""

from __future__ import annotations

from cage_runtime.errors import UsageError

WORD_MAX = 128
"""Bytes of a user's name, a service, a namespace or the name of an algorithm."""
KINDS = ("ssh-ed25519", "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521", "ssh-rsa")
"""Of public keys that sign here."""
SSHSIG = b"SSHSIG"
HASHES = {b"sha256": 32, b"sha512": 64}
"""Bytes of a digest, by the name that a signature of ssh-keygen's has for it."""


class Reader:
    """What is left of some bytes in SSH's wire format; UsageError where it does not have what is asked of it."""

    def __init__(self, untrusted: bytes) -> None:
        self._rest = untrusted

    def byte(self) -> int:
        return self._take(1)[0]

    def number(self) -> int:
        return int.from_bytes(self._take(4), "big")

    def string(self, most: int) -> bytes:
        """A string of at most `most` bytes."""
        size = self.number()
        if size > most:
            raise UsageError(f"a string of {size} bytes is longer than {most}")
        return self._take(size)

    def end(self) -> None:
        if self._rest:
            raise UsageError(f"{len(self._rest)} bytes too many")

    @property
    def left(self) -> int:
        """Bytes that nobody has taken yet."""
        return len(self._rest)

    def _take(self, size: int) -> bytes:
        if size > len(self._rest):
            raise UsageError("it ends too early")
        taken, self._rest = self._rest[:size], self._rest[size:]
        return taken


def packed(content: bytes) -> bytes:
    """A string of SSH's wire format."""
    return len(content).to_bytes(4, "big") + content
