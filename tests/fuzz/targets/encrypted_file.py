# SPDX-License-Identifier: LGPL-2.1-or-later
"""A file that says it is encrypted, and files of keys, as incage decrypt and the core half read them."""

from __future__ import annotations

import io

from cage_runtime import encrypted
from cage_runtime.cli.verbs_incage_decrypt import write as write_plain
from cage_runtime.encrypted import HEADER_BYTES, Decryption, Undecryptable
from tests.fuzz.values import Taken

PRIVATE = bytes(range(encrypted.KEY_BYTES))
MAY_RAISE = (Undecryptable,)


def run(untrusted: bytes) -> None:
    taken = Taken(untrusted)
    kind = taken.byte() % 4
    if kind in (1, 2):
        _key(taken.rest(), private=kind == 2)
        return
    content = taken.rest()
    if kind == 3:  # so that a fuzzer gets beyond the header
        encryption = encrypted.Encryption(encrypted.public_key(PRIVATE), file_key=b"k" * 32, ephemeral=b"e" * 32)
        content = encryption.header + content
    file, plain = io.BytesIO(content), io.BytesIO()
    write_plain(Decryption(PRIVATE, file.read(HEADER_BYTES)), file, plain)
    assert encrypted.length(len(plain.getvalue())) == len(content)


def _key(untrusted: bytes, *, private: bool) -> None:
    read, write = ((encrypted.read_private, encrypted.write_private) if private
                   else (encrypted.read_public, encrypted.write_public))
    try:
        key = read(untrusted)
    except ValueError:
        return
    assert len(key) == encrypted.KEY_BYTES
    assert read(write(key).encode()) == key
