# SPDX-License-Identifier: LGPL-2.1-or-later
"""Private keys of the key cage: files of OpenSSH's in one folder, and signatures by them.

Law of this room: a key is a file that its user alone can read, in one folder, under a name that no path can be made of;
anything else there is no key, whatever is wrong with it.  (The one module of this mediator that knows the library
cryptography, which takes longer to import than all the rest.)
"""

from __future__ import annotations

import base64
import os
from collections.abc import Iterator

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_ssh_private_key

from cage_runtime.errors import UsageError
from mediators.keys import held
from mediators.keys.protocol import BLOB_MAX, KEYS_MAX, Unsigned, algorithm, check_key_name, kind_of
from mediators.sshwire import packed

FOLDER = ".config/incage/keys"
"""Below the home of the cage's user."""
FILE_MAX = 32 * 1024
"""Bytes of a private key's file."""
Private = Ed25519PrivateKey | ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
_CURVES = {"secp256r1": hashes.SHA256(), "secp384r1": hashes.SHA384(), "secp521r1": hashes.SHA512()}
"""The hash that goes with each curve (RFC 5656, section 6.2.1)."""


class Key:
    """A private key and its public one, as SSH has it on the wire."""

    def __init__(self, private: Private, blob: bytes) -> None:
        self._private, self.blob = private, blob

    def sign(self, data: bytes, flags: int) -> bytes:
        """The signature as an agent gives it."""
        name = algorithm(self.blob, flags)
        if isinstance(self._private, Ed25519PrivateKey):
            signature = self._private.sign(data)
        elif isinstance(self._private, rsa.RSAPrivateKey):
            hashed = hashes.SHA256() if name == "rsa-sha2-256" else hashes.SHA512()
            signature = self._private.sign(data, padding.PKCS1v15(), hashed)
        else:
            der = self._private.sign(data, ec.ECDSA(_CURVES[self._private.curve.name]))
            signature = b"".join(packed(_integer(number)) for number in decode_dss_signature(der))
        return packed(name.encode()) + packed(signature)


def load(home: str, name: str) -> Key:
    """The key `name`; Unsigned says why there is none, for the key cage's own eyes."""
    path = os.path.join(home, FOLDER, name)
    return _parse(held.read(path, FILE_MAX), path)


def each(home: str) -> Iterator[tuple[str, Key]]:
    """The keys that there are, by name, and no more than KEYS_MAX."""
    try:
        names = sorted(os.listdir(os.path.join(home, FOLDER)))
    except OSError:
        return
    found = 0
    for name in names:
        try:
            key = load(home, check_key_name(name))
        except (Unsigned, UsageError):
            continue
        yield name, key
        found += 1
        if found == KEYS_MAX:
            return


def _parse(content: bytes, path: str) -> Key:
    try:
        private = load_ssh_private_key(content, password=None)
        if not isinstance(private, Private):
            raise Unsigned(f"{path} is of a kind that does not sign here")
        public = private.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
        blob = base64.b64decode(public.split()[1])
        kind_of(blob)
    except (ValueError, TypeError, UnsupportedAlgorithm, UsageError) as error:
        raise Unsigned(f"{path} is not a private key of OpenSSH's without a passphrase: {error}") from error
    if len(blob) > BLOB_MAX:
        raise Unsigned(f"{path} is too large")
    return Key(private, blob)


def _integer(number: int) -> bytes:
    """As a multiple precision integer (RFC 4251, section 5)."""
    return number.to_bytes(number.bit_length() // 8 + 1, "big")
