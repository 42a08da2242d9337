# SPDX-License-Identifier: LGPL-2.1-or-later
"""What crosses the wall when a key of another cage is used: the interface, its limits, and what is to be signed.

Law of this room: nothing is signed that cannot be said in words.  What is signed is a login by SSH or a signature of
ssh-keygen's, of which a person is shown for whom it is; any other bytes are refused.
"""

from __future__ import annotations

import string

from cage_runtime.errors import TransferFailed, UsageError
from cage_runtime.text import escape, is_visible
from mediators.sshwire import HASHES, KINDS, SSHSIG, WORD_MAX, Reader, packed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

BUS_NAME = INTERFACE = "org.cageruntime.Keys1"
PATH = "/org/cageruntime/Keys1"
LIST, SIGN, SECRET = "List", "Sign", "Secret"
LIST_SIGNATURE, SIGN_SIGNATURE = "sa{sv}", "ssayayua{sv}"
LIST_SERVICE, SIGN_SERVICE, SECRET_SERVICE = "keys.List", "keys.Sign", "keys.Secret"
"""What policy calls them; the argument of the second is the key's name, that of the third the application's id."""

NAME_MAX = 64
KEYS_MAX = 32
"""Keys of a cage that others can hear of."""
BLOB_MAX = 2048
"""Bytes of a public key: one of RSA with 16384 bits has 2 071, which nobody needs."""
DATA_MAX = 16 * 1024
"""Bytes to be signed: a login has some hundred, a signature of ssh-keygen's a digest."""
SIGNATURE_MAX = 4096
SECRET_BYTES = 32
_DIGEST = "digest: "
"""Begins the line that says which content it is."""
"""Of a cage's secret, and of each that is derived from it."""
RSA_SHA2_256, RSA_SHA2_512 = 2, 4
"""Flags of a request to sign (draft-miller-ssh-agent, 4.5.1)."""

READY = "ready\n"
"""What the delivery half writes once it has said what it is about to do."""
UNKNOWN, UNFIT = 20, 21
"""Exit statuses of the delivery half: there is no such key, and what is to be signed is nothing that is signed."""

_LETTERS = frozenset(string.ascii_letters + string.digits)
_OF_NAMES = _LETTERS | frozenset("._-")

USERAUTH_REQUEST = 50
HOSTBOUND = b"publickey-hostbound-v00@openssh.com"


class Unsigned(TransferFailed):
    """Nothing was signed."""


def check_key_name(untrusted_name: str) -> str:
    """The name, if it may be a key's: 1 to 64 letters, digits, ".", "_" and "-", first a letter or a digit."""
    return _check(untrusted_name, "a key's name")


def check_application(untrusted_application: str) -> str:
    """The id of an application that has a secret: of as many of the same characters."""
    return _check(untrusted_application, "the id of an application that has a secret")


def _check(untrusted_name: str, what: str) -> str:
    fits = 0 < len(untrusted_name) <= NAME_MAX and _OF_NAMES.issuperset(untrusted_name)
    if not fits or untrusted_name[0] not in _LETTERS:
        raise UsageError(f'"{escape(untrusted_name, limit=40)}" cannot be {what}: use at most {NAME_MAX} of '
                         'a-z, A-Z, 0-9, ".", "_" and "-", first a letter or a digit')
    return untrusted_name


# --- public keys -------------------------------------------------------------------------------------------------
def kind_of(untrusted_blob: bytes) -> str:
    """The kind of the public key, one of KINDS; UsageError where it is none, or too large."""
    if len(untrusted_blob) > BLOB_MAX:
        raise UsageError(f"a public key has at most {BLOB_MAX} bytes")
    kind = Reader(untrusted_blob).string(WORD_MAX).decode("ascii", "replace")
    if kind not in KINDS:
        raise UsageError(f'"{escape(kind, limit=40)}" is not a kind of key that signs here')
    return kind


def fingerprint(blob: bytes) -> str:
    """As ssh-keygen -l has it."""
    import base64
    import hashlib

    return "SHA256:" + base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")


def algorithm(blob: bytes, untrusted_flags: int) -> str:
    """The name of the signature that is asked for; UsageError for one that nobody makes (RSA with SHA-1 is one)."""
    kind = kind_of(blob)
    if kind != "ssh-rsa":
        if untrusted_flags & ~(RSA_SHA2_256 | RSA_SHA2_512):
            raise UsageError(f"there are no flags {untrusted_flags:#x}")
        return kind
    names = {RSA_SHA2_256: "rsa-sha2-256", RSA_SHA2_512: "rsa-sha2-512"}
    if untrusted_flags not in names:
        raise UsageError("a key of RSA signs with SHA-256 or SHA-512 alone")
    return names[untrusted_flags]


# --- what is signed ----------------------------------------------------------------------------------------------
def describe(untrusted_data: bytes, blob: bytes) -> tuple[str, ...]:
    """What it would mean to sign this with the key `blob`, in lines for a person; UsageError where nobody knows."""
    if len(untrusted_data) > DATA_MAX:
        raise UsageError(f"at most {DATA_MAX} bytes are signed at once")
    if untrusted_data.startswith(SSHSIG):
        return _describe_sshsig(untrusted_data)
    return _describe_login(untrusted_data, blob)


def _describe_sshsig(untrusted_data: bytes) -> tuple[str, ...]:
    """PROTOCOL.sshsig of OpenSSH, "Signed Data"."""
    reader = Reader(untrusted_data[len(SSHSIG) :])
    namespace, reserved = _word(reader.string(WORD_MAX), "namespace"), reader.string(0)
    name, digest = reader.string(WORD_MAX), reader.string(DATA_MAX)
    reader.end()
    del reserved
    if len(digest) != HASHES.get(name, -1):
        raise UsageError("a signature is of a SHA-256 or SHA-512 digest")
    return f"signature for: {namespace}", f"{_DIGEST}{name.decode()} {digest.hex()}"


def _describe_login(untrusted_data: bytes, blob: bytes) -> tuple[str, ...]:
    """RFC 4252, section 7, and its extension by the server's key (PROTOCOL of OpenSSH, 1.9)."""
    reader = Reader(untrusted_data)
    session = reader.string(64)
    if not session or reader.byte() != USERAUTH_REQUEST:
        raise UsageError("it is neither a login by SSH nor a signature of ssh-keygen's")
    user, service = _word(reader.string(WORD_MAX), "user"), _word(reader.string(WORD_MAX), "service")
    method = reader.string(WORD_MAX)
    if method not in (b"publickey", HOSTBOUND) or reader.byte() != 1:
        raise UsageError("it is not a login by a public key")
    name, key = reader.string(WORD_MAX), reader.string(BLOB_MAX)
    host = reader.string(BLOB_MAX) if method == HOSTBOUND else b""
    reader.end()
    if key != blob or name.decode("ascii", "replace") not in _signatures(blob):
        raise UsageError("it is a login by another key")
    lines = (f"login by SSH as: {user}", f"service: {service}")
    return (*lines, f"server's key: {fingerprint(host)}") if method == HOSTBOUND else lines


def _signatures(blob: bytes) -> tuple[str, ...]:
    kind = kind_of(blob)
    return ("rsa-sha2-256", "rsa-sha2-512") if kind == "ssh-rsa" else (kind,)


def _word(untrusted: bytes, what: str) -> str:
    try:
        word = untrusted.decode()
    except UnicodeDecodeError as error:
        raise UsageError(f"its {what} is not UTF-8") from error
    if not word or not is_visible(word):
        raise UsageError(f"its {what} cannot be shown")
    return word


def about(name: str, blob: bytes, untrusted_data: bytes) -> tuple[str, ...]:
    """Which key would sign what: the lines that a person is shown; UsageError as `describe` has it."""
    return (f"key: {name}, {kind_of(blob)} {fingerprint(blob)}", *describe(untrusted_data, blob))


def operation(lines: tuple[str, ...]) -> str:
    """Of those lines, which kind of thing would be signed: all but which key, and which content."""
    return "; ".join(line for line in lines[1:] if not line.startswith(_DIGEST))


def announcement(lines: tuple[str, ...]) -> str:
    """What the delivery half writes when it is about to sign that."""
    return "".join(f"{line}\n" for line in lines) + READY


# --- between the halves ------------------------------------------------------------------------------------------
def request(blob: bytes, data: bytes, flags: int) -> bytes:
    """What the delivery half reads on its standard input to sign."""
    return packed(blob) + packed(data) + flags.to_bytes(4, "big")


REQUEST_MAX = BLOB_MAX + DATA_MAX + 12


def parse_request(untrusted: bytes) -> tuple[bytes, bytes, int]:
    reader = Reader(untrusted)
    blob, data, flags = reader.string(BLOB_MAX), reader.string(DATA_MAX), reader.number()
    reader.end()
    return blob, data, flags


def listing(keys: Iterable[tuple[str, bytes]]) -> bytes:
    """What the delivery half answers to List: names and public keys."""
    return b"".join(packed(name.encode()) + packed(blob) for name, blob in keys)


LISTING_MAX = KEYS_MAX * (NAME_MAX + BLOB_MAX + 8)


def parse_listing(untrusted: bytes) -> list[tuple[str, bytes]]:
    """The names and public keys, each of a kind that signs; UsageError where it is no such list."""
    reader, keys = Reader(untrusted), dict[str, bytes]()
    while reader.left:
        name = check_key_name(reader.string(NAME_MAX).decode("ascii", "replace"))
        blob = reader.string(BLOB_MAX)
        kind_of(blob)
        if name in keys or len(keys) >= KEYS_MAX:
            raise UsageError("a key is there twice, or there are too many")
        keys[name] = blob
    return list(keys.items())


def parse_secret(untrusted: bytes) -> bytes:
    if len(untrusted) != SECRET_BYTES:
        raise UsageError(f"a secret has {SECRET_BYTES} bytes")
    return untrusted


def parse_signature(untrusted: bytes, name: str) -> bytes:
    """The signature that came back, which has to be by the algorithm `name`; UsageError where it is none."""
    reader = Reader(untrusted)
    if len(untrusted) > SIGNATURE_MAX or reader.string(WORD_MAX) != name.encode():
        raise UsageError("it is not a signature of the kind that was asked for")
    reader.string(SIGNATURE_MAX)
    reader.end()
    return untrusted
