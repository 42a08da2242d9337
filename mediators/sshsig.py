# SPDX-License-Identifier: LGPL-2.1-or-later
"""Signatures as `ssh-keygen -Y sign` makes them (PROTOCOL.sshsig of OpenSSH): is it of that key, and of what is sent?

Law of this room: what is read of a signature is read in a process that holds nothing.  It counts for one key, one
purpose and one content; whatever else it may be, it is none.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from dataclasses import dataclass
from typing import Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import load_ssh_public_key

from cage_runtime.errors import UsageError
from mediators.reading import Unpermitted
from mediators.sshwire import HASHES, KINDS, SSHSIG, WORD_MAX, Reader, packed

NAMESPACE = b"files.Send"
"""What it has to be signed for (ssh-keygen -n): a signature that was given for something else sends nothing."""
PUBLIC_FILE_MAX = 4096
"""Bytes of a file with a public key."""
_BLOB_MAX = 2048
_SIGNATURE_MAX = 4096
_BEGIN, _END = b"-----BEGIN SSH SIGNATURE-----", b"-----END SSH SIGNATURE-----"
_VERSION = 1
_RSA_BITS_MIN = 2048
_CURVES = {"secp256r1": hashes.SHA256(), "secp384r1": hashes.SHA384(), "secp521r1": hashes.SHA512()}
"""The hash that goes with each curve (RFC 5656, section 6.2.1)."""
_RSA = {b"rsa-sha2-256": hashes.SHA256(), b"rsa-sha2-512": hashes.SHA512()}
Public = Ed25519PublicKey | ec.EllipticCurvePublicKey | rsa.RSAPublicKey


class BadSignature(Unpermitted):
    """The policy wants it signed, and it is not, or not so; the text goes after the file's name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Signer:
    """Whose signature it has to be."""

    name: str
    """What policy calls the key."""
    blob: bytes
    """The public key as SSH has it on the wire."""
    key: Public

    @property
    def fingerprint(self) -> str:
        """As ssh-keygen -l has it."""
        return "SHA256:" + base64.b64encode(hashlib.sha256(self.blob).digest()).decode().rstrip("=")

    def checking(self, untrusted_signature: bytes) -> Checking:
        """Begin to look at one, in the worker; BadSignature where it is none of this key for what is sent."""
        return Checking(self, untrusted_signature)


def signer(name: str, file: bytes) -> Signer:
    """The key of `name` in what its file has, which is a line of ssh-keygen's; ValueError where it is none that signs
    here."""
    lines = [line for line in file.splitlines() if line.strip() and not line.startswith(b"#")]
    if len(lines) != 1 or len(words := lines[0].split(None, 2)) < 2:
        raise ValueError("not one public key of OpenSSH's")
    try:
        blob = base64.b64decode(words[1], validate=True)
        key = load_ssh_public_key(b" ".join(words[:2]))
        kind = Reader(blob).string(WORD_MAX)
    except (UnsupportedAlgorithm, UsageError) as error:
        raise ValueError(str(error)) from error
    small = isinstance(key, rsa.RSAPublicKey) and key.key_size < _RSA_BITS_MIN
    if not isinstance(key, Public) or kind.decode("ascii", "replace") not in KINDS or len(blob) > _BLOB_MAX or small:
        raise ValueError("of a kind that does not sign here")
    return Signer(name=name, blob=blob, key=key)


class Checking:
    """One signature of `signer` over what its `digest` is told; `end` says whether it is.  In the worker."""

    def __init__(self, signer: Signer, untrusted_signature: bytes) -> None:
        """BadSignature where it is none, or one of another key, or for something else."""
        self._signer = signer
        if not untrusted_signature:
            raise BadSignature(f"cannot be sent: the policy wants it signed by {signer.name}, and no signature came "
                               "with it")
        try:
            public, namespace, algorithm, self._signature = _parsed(untrusted_signature)
        except (UsageError, binascii.Error) as error:
            raise BadSignature("cannot be sent: what came as its signature is none of ssh-keygen -Y sign") from error
        if public != signer.blob:
            raise BadSignature(f"cannot be sent: it is signed by another key than {signer.name}")
        if namespace != NAMESPACE:
            raise BadSignature("cannot be sent: its signature is for something else; it is made with ssh-keygen -Y "
                               f"sign -n {NAMESPACE.decode()}")
        self._algorithm = algorithm
        self.digest: Any = hashlib.new(algorithm.decode())
        """To be updated with all that is sent, in its order."""

    def end(self) -> None:
        """BadSignature where it is not that of what was told."""
        signed = SSHSIG + packed(NAMESPACE) + packed(b"") + packed(self._algorithm) + packed(self.digest.digest())
        try:
            _verify(self._signer.key, self._signature, signed)
        except (InvalidSignature, UsageError, ValueError) as error:
            raise BadSignature("cannot be sent: its signature is of another content") from error


def _parsed(untrusted: bytes) -> tuple[bytes, bytes, bytes, bytes]:
    """Public key, namespace, hash and signature, of a signature in its armour; UsageError where it is none."""
    first, *between, last = untrusted.rstrip(b"\n").split(b"\n") if b"\n" in untrusted.rstrip(b"\n") else (b"", b"")
    if first.rstrip(b"\r") != _BEGIN or last.rstrip(b"\r") != _END:
        raise UsageError("no armour")
    raw = base64.b64decode(b"".join(line.rstrip(b"\r") for line in between), validate=True)
    if not raw.startswith(SSHSIG):
        raise UsageError("no signature")
    reader = Reader(raw[len(SSHSIG):])
    if reader.number() != _VERSION:
        raise UsageError("of another version")
    public, namespace, _reserved = reader.string(_BLOB_MAX), reader.string(WORD_MAX), reader.string(0)
    algorithm, signature = reader.string(WORD_MAX), reader.string(_SIGNATURE_MAX)
    reader.end()
    if algorithm not in HASHES:
        raise UsageError("of another hash")
    return public, namespace, algorithm, signature


def _verify(key: Public, untrusted_signature: bytes, signed: bytes) -> None:
    """InvalidSignature, UsageError or ValueError where it is not the key's signature of that."""
    reader = Reader(untrusted_signature)
    algorithm, signature = reader.string(WORD_MAX), reader.string(_SIGNATURE_MAX)
    reader.end()
    if isinstance(key, Ed25519PublicKey):
        if algorithm != b"ssh-ed25519":
            raise UsageError("of another algorithm")
        key.verify(signature, signed)
    elif isinstance(key, rsa.RSAPublicKey):
        if algorithm not in _RSA:
            raise UsageError("of another algorithm")
        key.verify(signature, signed, padding.PKCS1v15(), _RSA[algorithm])
    else:
        if algorithm != f"ecdsa-sha2-nistp{key.curve.key_size}".encode():
            raise UsageError("of another algorithm")
        numbers = Reader(signature)
        first, second = (int.from_bytes(numbers.string(_SIGNATURE_MAX), "big") for _ in range(2))
        numbers.end()
        key.verify(encode_dss_signature(first, second), signed, ec.ECDSA(_CURVES[key.curve.name]))
