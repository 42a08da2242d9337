# SPDX-License-Identifier: LGPL-2.1-or-later
"""Files that only whoever has a private key can read: cage-encrypted(5), which has every byte of it.

Law of this room: it works on bytes that it is given, and opens nothing.  Nothing that `Decryption` returns has been
changed, but only when it has returned the last chunk was there no more of it: who writes before has a part of a file.
"""

from __future__ import annotations

import base64
import binascii
import os

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hmac import HMAC
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from cage_runtime.errors import CageError

SUFFIX = ".cage"
MAGIC = b"cage-encrypted\n\x01"
"""With the version, which is the last byte."""
KEY_BYTES = 32
TAG_BYTES = 16
CHUNK = 64 * 1024
"""Bytes of plaintext in each chunk but the last."""
_WRAPPED = KEY_BYTES + TAG_BYTES
HEADER_BYTES = len(MAGIC) + KEY_BYTES + _WRAPPED + KEY_BYTES
PRIVATE_PREFIX = "cage-private-key-1 "
KEY_FILE_BYTES_MAX = 128
_ZERO = bytes(12)


class Undecryptable(CageError):
    """It is no such file, or for another key, or was changed; the text goes after the file's name."""


def length(size: int) -> int:
    """Bytes of a file of `size` bytes once it is encrypted."""
    chunks = max(1, -(-size // CHUNK))
    return HEADER_BYTES + size + chunks * TAG_BYTES


# --- keys ----------------------------------------------------------------------------------------------------------
def new_private_key() -> bytes:
    return os.urandom(KEY_BYTES)


def public_key(private: bytes) -> bytes:
    key = X25519PrivateKey.from_private_bytes(private).public_key()
    return key.public_bytes(Encoding.Raw, PublicFormat.Raw)


def write_public(public: bytes) -> str:
    """As a file NAME.pub has it."""
    return base64.b64encode(public).decode() + "\n"


def read_public(untrusted: bytes) -> bytes:
    """The key in a file NAME.pub; ValueError where it is none."""
    return _key(untrusted)


def write_private(private: bytes) -> str:
    return f"{PRIVATE_PREFIX}{base64.b64encode(private).decode()}\n"


def read_private(untrusted: bytes) -> bytes:
    """The key in a file of `write_private`; ValueError where it is none."""
    if not untrusted.startswith(PRIVATE_PREFIX.encode()):
        raise ValueError("no private key")
    return _key(untrusted[len(PRIVATE_PREFIX):])


def _key(untrusted: bytes) -> bytes:
    try:
        key = base64.b64decode(untrusted.removesuffix(b"\n"), validate=True)
    except binascii.Error as error:
        raise ValueError("not base64") from error
    if len(key) != KEY_BYTES:
        raise ValueError(f"not {KEY_BYTES} bytes")
    return key


# --- content -------------------------------------------------------------------------------------------------------
class Encryption:
    """One file for the owner of the private key of `recipient`; `header` goes before its chunks."""

    def __init__(self, recipient: bytes, *, file_key: bytes = b"", ephemeral: bytes = b"") -> None:
        """ValueError where `recipient` is no key that can be used.  The other two are random but in test vectors."""
        file_key, ephemeral = file_key or os.urandom(KEY_BYTES), ephemeral or new_private_key()
        public = public_key(ephemeral)
        wrapped = ChaCha20Poly1305(_wrap_key(ephemeral, recipient, public, recipient)).encrypt(_ZERO, file_key, MAGIC)
        begin = MAGIC + public + wrapped
        self.header = begin + _header_mac(file_key, begin).finalize()
        self._chunks = _Chunks(file_key)

    def chunk(self, plain: bytes, *, last: bool) -> bytes:
        """The next chunk, of CHUNK bytes where it is not the last."""
        if len(plain) > CHUNK or (len(plain) < CHUNK and not last):
            raise ValueError("a chunk of another size")
        cipher, nonce = self._chunks.next(last=last)
        return cipher.encrypt(nonce, plain, None)


class Decryption:
    """One file of Encryption, whose first HEADER_BYTES bytes are `untrusted_header`; else Undecryptable."""

    def __init__(self, private: bytes, untrusted_header: bytes) -> None:
        if len(untrusted_header) != HEADER_BYTES or not untrusted_header.startswith(MAGIC[:-1]):
            raise Undecryptable("is no file that was encrypted for a cage")
        if not untrusted_header.startswith(MAGIC):
            raise Undecryptable("was encrypted in a way that this version does not know")
        begin, mac = untrusted_header[:-KEY_BYTES], untrusted_header[-KEY_BYTES:]
        public, wrapped = begin[len(MAGIC): len(MAGIC) + KEY_BYTES], begin[-_WRAPPED:]
        try:
            key = _wrap_key(private, public, public, public_key(private))
            file_key = ChaCha20Poly1305(key).decrypt(_ZERO, wrapped, MAGIC)
            _header_mac(file_key, begin).verify(mac)
        except (InvalidTag, InvalidSignature, ValueError) as error:
            raise Undecryptable("was encrypted for another key, or was changed") from error
        self._chunks = _Chunks(file_key)

    def chunk(self, untrusted_chunk: bytes, *, last: bool) -> bytes:
        """What the next chunk says; `last` where nothing comes after it.  Undecryptable where that is not so."""
        cipher, nonce = self._chunks.next(last=last)
        try:
            return cipher.decrypt(nonce, untrusted_chunk, None)
        except InvalidTag as error:
            raise Undecryptable("was changed or cut off") from error


class _Chunks:
    """The key of a file's chunks, and a nonce for each: its number, and whether it is the last."""

    def __init__(self, file_key: bytes) -> None:
        self._cipher, self._number, self._ended = ChaCha20Poly1305(_derived(file_key, b"payload")), 0, False

    def next(self, *, last: bool) -> tuple[ChaCha20Poly1305, bytes]:
        if self._ended:
            raise ValueError("there is nothing after the last chunk")
        nonce = self._number.to_bytes(11, "big") + bytes([last])
        self._number, self._ended = self._number + 1, last
        return self._cipher, nonce


def _derived(secret: bytes, what: bytes, salt: bytes = b"") -> bytes:
    return HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=salt, info=b"cage-encrypted 1 " + what).derive(secret)


def _wrap_key(mine: bytes, theirs: bytes, ephemeral: bytes, recipient: bytes) -> bytes:
    shared = X25519PrivateKey.from_private_bytes(mine).exchange(X25519PublicKey.from_public_bytes(theirs))
    return _derived(shared, b"wrap", ephemeral + recipient)


def _header_mac(file_key: bytes, begin: bytes) -> HMAC:
    mac = HMAC(_derived(file_key, b"header"), SHA256())
    mac.update(begin)
    return mac
