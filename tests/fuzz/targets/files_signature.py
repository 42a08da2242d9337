# SPDX-License-Identifier: LGPL-2.1-or-later
"""What comes as a file's signature: it is of the one key and content, or it is none."""

from __future__ import annotations

import base64

from cage_runtime.text import is_visible
from mediators.sshsig import BadSignature, Checking, signer
from tests.fuzz.values import Taken

KEY = signer("vector", b"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEjHtlogOTdJTI19YGuk1Lj78abfPwFsGVSQPPLEaf7R\n")
MAY_RAISE = (BadSignature, ValueError)
BEGIN, END = b"-----BEGIN SSH SIGNATURE-----\n", b"\n-----END SSH SIGNATURE-----\n"


def run(untrusted: bytes) -> None:
    taken = Taken(untrusted)
    match taken.byte() % 3:
        case 0:
            given = taken.rest()
        case 1:
            given = BEGIN + base64.b64encode(taken.rest()) + END
        case _:
            key = signer("x", taken.rest())  # which is an administrator's, and ValueError where it is none
            assert is_visible(key.fingerprint)
            return
    checking = Checking(KEY, given)
    checking.digest.update(b"of which nobody has signed anything")
    checking.end()
    raise AssertionError("signed without the key")
