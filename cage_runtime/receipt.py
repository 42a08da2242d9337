# SPDX-License-Identifier: LGPL-2.1-or-later
"""Receipts: what the core did for a cage, signed by it: cage-receipt(5), which has every byte of it.

Law of this room: it works on bytes that it is given, and opens nothing.  A receipt has one spelling, and what is not
spelled so is none, before anybody looks at its signature.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from cage_runtime.errors import CageError
from cage_runtime.model import AUDIT_VALUE_MAX, NAME_MAX, RECEIPT_BYTES_MAX, REQUEST_ID_DIGITS, ReceiptOutcome
from cage_runtime.text import is_visible

VERSION = "1"
CONTEXT = b"cage-receipt\n\x01"
"""What is signed begins with it, so that a signature of the same key for anything else is none of a receipt."""
KEY_BYTES, SIGNATURE_BYTES = 32, 64
PUBLIC_PREFIX = "cage-receipt-key-1 "
KEY_FILE_BYTES_MAX = 128
_HASH = r"[0-9a-f]{64}"
_NUMBER = r"(0|[1-9][0-9]{0,14})"
_CAGE = rf"[a-z][a-z0-9-]{{0,{NAME_MAX - 1}}}"
_FORMS = {
    "receipt": VERSION, "host": _HASH, "time": r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{6}Z",
    "request": rf"[0-9a-f]{{{REQUEST_ID_DIGITS}}}", "service": r"[a-z]{1,20}\.[A-Za-z]{1,40}", "source": _CAGE,
    "target": rf"({_CAGE})?", "name": r".*", "size": rf"({_NUMBER})?", "files": rf"({_NUMBER})?",
    "sha256": rf"({_HASH})?", "outcome": "|".join(ReceiptOutcome), "record": _HASH, "signature": r"[A-Za-z0-9+/]{86}==",
}
"""What there is in one, and the form that each value has to have."""
_COMPILED = {key: re.compile(rf"(?:{form})\Z") for key, form in _FORMS.items()}
_NAME_MAX = 10 * AUDIT_VALUE_MAX + 1
"""Characters of a name whose every character is escaped."""


class BadReceipt(CageError):
    """It is no receipt, or none of that key, or was changed; the text goes after the file's name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Receipt:
    """What one says; what the record of it does not have is empty."""

    host: str
    """Of the key that signs: SHA-256, in hexadecimal, of the public one."""
    time: str
    """As the record has it."""
    request: str
    service: str
    source: str
    target: str
    """As the source may know it."""
    name: str
    """As the source sent it; a tree's ends in a slash."""
    size: str
    files: str
    sha256: str
    """Of the file, or of a tree's manifest."""
    outcome: str
    record: str
    """The hash of the record in the audit chain."""

    def body(self) -> dict[str, str]:
        return {"receipt": VERSION, **dataclasses.asdict(self)}


def recorded(time: str, digest: str, fields: Mapping[str, str]) -> dict[str, str]:
    """What a receipt has of the record of that time and hash: of these `fields`."""
    name = fields.get("sent-name", fields.get("name", ""))
    of_fields = {key: fields.get(key, "") for key in ("host", "request", "service", "size", "files", "sha256")}
    return {"time": time, "record": digest, "source": fields.get("cage", ""), "name": name,
            "outcome": fields.get("receipt", ""), **of_fields}


# --- keys ----------------------------------------------------------------------------------------------------------
def public_key(private: bytes) -> bytes:
    return Ed25519PrivateKey.from_private_bytes(private).public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)


def host_of(public: bytes) -> str:
    return hashlib.sha256(public).hexdigest()


def write_public(public: bytes) -> str:
    """As `cagectl audit key` prints it, without the line feed."""
    return PUBLIC_PREFIX + base64.b64encode(public).decode()


def read_public(untrusted: bytes) -> bytes:
    """The key in what `write_public` made; ValueError where there is none."""
    if not untrusted.startswith(PUBLIC_PREFIX.encode()):
        raise ValueError("not a key of receipts")
    try:
        key = base64.b64decode(untrusted[len(PUBLIC_PREFIX):].removesuffix(b"\n"), validate=True)
    except binascii.Error as error:
        raise ValueError("not base64") from error
    if len(key) != KEY_BYTES or write_public(key).encode() != untrusted.removesuffix(b"\n"):
        raise ValueError(f"not {KEY_BYTES} bytes")
    return key


# --- receipts ------------------------------------------------------------------------------------------------------
def sign(receipt: Receipt, private: bytes) -> bytes:
    """The receipt as one line; BadReceipt where nobody could read it."""
    body = receipt.body()
    signature = Ed25519PrivateKey.from_private_bytes(private).sign(CONTEXT + _canonical(body))
    line = _canonical(body | {"signature": base64.b64encode(signature).decode()}) + b"\n"
    _read(line)
    return line


def verified(untrusted: bytes, public: bytes) -> Receipt:
    """What the receipt says, once it is found to be one that the owner of `public` has signed; else BadReceipt."""
    found = _read(untrusted)
    spelled = found.pop("signature")
    signature = base64.b64decode(spelled)
    if base64.b64encode(signature).decode() != spelled:
        raise BadReceipt("is no receipt: it is spelled in another way")
    if found["host"] != host_of(public):
        raise BadReceipt("was signed by another key")
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, CONTEXT + _canonical(found))
    except (InvalidSignature, ValueError) as error:
        raise BadReceipt("was changed, or is none of this key") from error
    del found["receipt"]
    return Receipt(**found)


def _read(untrusted: bytes) -> dict[str, str]:
    if len(untrusted) > RECEIPT_BYTES_MAX:
        raise BadReceipt(f"is no receipt: one has at most {RECEIPT_BYTES_MAX} bytes")
    try:
        found: Any = json.loads(untrusted.decode())
    except (ValueError, RecursionError) as error:
        raise BadReceipt("is no receipt: it is not JSON") from error
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise BadReceipt("is no receipt: it is not one object of texts")
    if "receipt" in found and found["receipt"] != VERSION:
        raise BadReceipt("is a receipt of a version that is not known here")
    if found.keys() != _FORMS.keys():
        raise BadReceipt("is no receipt: something is missing, or too much")
    for key, form in _COMPILED.items():
        if not form.match(found[key]):
            raise BadReceipt(f"is no receipt: its {key} has another form")
    if len(found["name"]) > _NAME_MAX or not is_visible(found["name"]):
        raise BadReceipt("is no receipt: its name cannot be shown")
    # Only the canonical bytes count: no key twice, and no second spelling.
    if _canonical(found) + b"\n" != untrusted:
        raise BadReceipt("is no receipt: it is spelled in another way")
    return found


def _canonical(body: Mapping[str, str]) -> bytes:
    """As the audit chain has its records."""
    return json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "surrogatepass")
