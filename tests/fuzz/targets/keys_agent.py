# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a client of the SSH agent in a cage sends."""

from __future__ import annotations

from cage_runtime.cli import sshagent
from cage_runtime.cli.sshagent import Malformed

MAY_RAISE = (Malformed,)
BLOB = b"\0\0\0\x0bssh-ed25519"


class Keys:
    """One key, and a signature that is what was asked for."""

    def list(self) -> list[tuple[str, bytes]]:
        return [("work", BLOB)]

    def sign(self, blob: bytes, data: bytes, flags: int) -> bytes | None:
        assert 0 <= flags < 1 << 32
        return blob + data if blob == BLOB else None


def run(untrusted: bytes) -> None:
    said = sshagent.answer(untrusted, Keys())  # type: ignore[arg-type]  # as far as it is asked
    assert said[0] in (sshagent.FAILURE, sshagent.IDENTITIES_ANSWER, sshagent.SIGN_RESPONSE)
    assert len(said) <= len(untrusted) + 64
