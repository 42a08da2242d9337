# SPDX-License-Identifier: LGPL-2.1-or-later
"""A receipt is one spelling of what one key has signed, or it is none."""

from __future__ import annotations

import base64
import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cage_runtime import receipt
from cage_runtime.cli import cagectl, incage
from cage_runtime.model import RECEIPT_BYTES_MAX, ReceiptOutcome
from cage_runtime.receipt import BadReceipt, Receipt

PRIVATE = bytes(range(32))
PUBLIC = receipt.public_key(PRIVATE)
RECEIPT = Receipt(
    host=receipt.host_of(PUBLIC), time="2026-11-27T09:30:00.000000Z", request="0123456789abcdef" * 2,
    service="files.Send", source="work", target="vault", name="figures.txt", size="18", files="1", sha256="a" * 64,
    outcome=ReceiptOutcome.HANDED_OVER, record="b" * 64)
VECTOR = (
    b'{"files":"1","host":"56475aa75463474c0285df5dbf2bcab73da651358839e9b77481b2eab107708c","name":"figures.txt",'
    b'"outcome":"handed-over","receipt":"1",'
    b'"record":"bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb",'
    b'"request":"0123456789abcdef0123456789abcdef","service":"files.Send",'
    b'"sha256":"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",'
    b'"signature":"txfVpCUBh5JbtBfMJAWLWYapstMnAF9bj8VIMiJcyoxxBuPOBQdKS0TvHHQCMEEzZWDgf/K1QvImq2nbjdp2BQ==",'
    b'"size":"18","source":"work","target":"vault","time":"2026-11-27T09:30:00.000000Z"}\n')
"""What cage-receipt(5) says, for the key of the bytes 0 to 31."""


def body(**changes: object) -> dict[str, object]:
    return json.loads(receipt.sign(RECEIPT, PRIVATE)) | changes


def spelled(found: object) -> bytes:
    return json.dumps(found, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"


def test_the_form_is_the_one_that_is_written_down() -> None:
    assert receipt.sign(RECEIPT, PRIVATE) == VECTOR
    assert receipt.write_public(PUBLIC) == "cage-receipt-key-1 A6EHv/POEL4dcN0Y50vAmWfk1jCbpQ1fHdyGZBJVMbg="


def test_what_is_signed_is_the_line_without_its_signature() -> None:
    """As anybody would look at it who has the page and another library."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    found = json.loads(VECTOR)
    signature = base64.b64decode(found.pop("signature"))
    signed = b"cage-receipt\n\x01" + spelled(found).removesuffix(b"\n")
    Ed25519PublicKey.from_public_bytes(PUBLIC).verify(signature, signed)


def test_a_receipt_says_what_was_signed() -> None:
    assert receipt.verified(VECTOR, PUBLIC) == RECEIPT


@given(st.text(st.characters(categories=("L", "N", "P", "S")), max_size=50), st.sampled_from(ReceiptOutcome),
       st.sampled_from(["", "vault"]))
def test_every_receipt_reads_back(name: str, outcome: ReceiptOutcome, target: str) -> None:
    made = dataclasses.replace(RECEIPT, name=name, outcome=outcome, target=target, size="", files="", sha256="")
    assert receipt.verified(receipt.sign(made, PRIVATE), PUBLIC) == made


def test_no_byte_can_be_changed() -> None:
    for at in range(len(VECTOR)):
        for other in {VECTOR[at] ^ 1, VECTOR[at] ^ 0x20, ord("0")} - {VECTOR[at]}:
            with pytest.raises(BadReceipt):
                receipt.verified(VECTOR[:at] + bytes([other]) + VECTOR[at + 1:], PUBLIC)


def test_nothing_can_be_cut_off_or_added() -> None:
    for at in range(len(VECTOR)):
        with pytest.raises(BadReceipt):
            receipt.verified(VECTOR[:at], PUBLIC)
    for more in (b"\n", b" ", b"\0", VECTOR):
        with pytest.raises(BadReceipt):
            receipt.verified(VECTOR + more, PUBLIC)


def test_another_key_has_not_signed_it() -> None:
    other = receipt.public_key(b"o" * 32)
    with pytest.raises(BadReceipt, match="was signed by another key"):
        receipt.verified(VECTOR, other)
    forged = receipt.sign(RECEIPT, b"o" * 32)  # which says that it is of ours
    with pytest.raises(BadReceipt, match="was changed, or is none of this key"):
        receipt.verified(forged, PUBLIC)


def test_a_signature_of_something_else_is_none_of_a_receipt() -> None:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    found = body()
    del found["signature"]
    for context in (b"", b"cage-receipt\n\x02"):
        signature = Ed25519PrivateKey.from_private_bytes(PRIVATE).sign(context + spelled(found).removesuffix(b"\n"))
        with pytest.raises(BadReceipt, match="was changed, or is none of this key"):
            receipt.verified(spelled(found | {"signature": base64.b64encode(signature).decode()}), PUBLIC)


BAD = {
    "a huge file": (VECTOR + b" " * RECEIPT_BYTES_MAX, "has at most 8192 bytes"),
    "nothing": (b"", "not JSON"),
    "no UTF-8": (VECTOR.replace(b"figures", b"figu\xffes"), "not JSON"),
    "UTF-16": (VECTOR.decode().encode("utf-16"), "not JSON"),
    "deep": (b"[" * 4000 + b"]" * 4000, "not JSON|not one object"),
    "deep within": (VECTOR.replace(b'"18"', b"[" * 3000 + b"]" * 3000), "not JSON|not one object"),
    "a number": (spelled(body(size=18)), "not one object of texts"),
    "a list": (spelled([body()]), "not one object of texts"),
    "a long number": (VECTOR.replace(b'"18"', b"9" * 5000), "not JSON|not one object"),
    "another version": (spelled(body(receipt="2")), "of a version that is not known here"),
    "a key that is not known": (spelled(body(extra="x")), "something is missing, or too much"),
    "a key that is missing": (spelled({key: value for key, value in body().items() if key != "target"}),
                              "something is missing, or too much"),
    "a key twice": (VECTOR.replace(b'"size":"18"', b'"size":"19","size":"18"'), "spelled in another way"),
    "white space": (VECTOR.replace(b'"size":', b'"size": '), "spelled in another way"),
    "an escape that need not be": (VECTOR.replace(b'"vault"', b'"v\\u0061ult"'), "spelled in another way"),
    "another order": (json.dumps(dict(reversed(list(body().items()))), separators=(",", ":")).encode() + b"\n",
                      "spelled in another way"),
    "no line feed": (VECTOR.removesuffix(b"\n"), "spelled in another way"),
    "a signature of another spelling": (VECTOR.replace(b'BQ=="', b'BR=="'), "spelled in another way"),
    "a terminal's escape": (spelled(body(name="a\x1b[2Jb")), "its name cannot be shown"),
    "a bidirectional name": (spelled(body(name="a\u202eb")), "its name cannot be shown"),
    "two lines": (spelled(body(name="a\nb")), "its name"),
    "half a character": (json.dumps(body(name="\ud800"), sort_keys=True, separators=(",", ":")).encode() + b"\n",
                         "its name cannot be shown"),
    "a cage that cannot be": (spelled(body(source="../x")), "its source has another form"),
    "a size that cannot be": (spelled(body(size="-1")), "its size has another form"),
    "a size in other digits": (spelled(body(size="\u0661")), "its size has another form"),
    "an outcome that is none": (spelled(body(outcome="perhaps")), "its outcome has another form"),
}


@pytest.mark.parametrize(("untrusted", "says"), BAD.values(), ids=BAD.keys())
def test_what_is_no_receipt_is_told_so(untrusted: bytes, says: str) -> None:
    with pytest.raises(BadReceipt, match=says):
        receipt.verified(untrusted, PUBLIC)


def test_the_longest_receipt_fits() -> None:
    name = "\\U0001f600" * 400 + "…"
    made = dataclasses.replace(RECEIPT, name=name, source="s" * 31, target="t" * 31, size="9" * 15, files="9" * 15)
    line = receipt.sign(made, PRIVATE)
    assert len(line) < RECEIPT_BYTES_MAX
    assert receipt.verified(line, PUBLIC) == made


def test_nothing_is_signed_that_nobody_could_read() -> None:
    with pytest.raises(BadReceipt, match="its sha256 has another form"):
        receipt.sign(dataclasses.replace(RECEIPT, sha256="x"), PRIVATE)


@pytest.mark.parametrize("untrusted", [
    b"", b"cage-receipt-key-1 ", b"cage-receipt-key-1 !!!!", b"cage-receipt-key-1 " + base64.b64encode(b"x" * 31),
    b"cage-private-key-1 " + base64.b64encode(PUBLIC), base64.b64encode(PUBLIC),
    receipt.write_public(PUBLIC).encode() + b"\n\n", b"\xff" * 200])
def test_what_is_no_key_is_none(untrusted: bytes) -> None:
    with pytest.raises(ValueError, match="not "):
        receipt.read_public(untrusted)


# --- the commands, with a key and without a core -------------------------------------------------------------------
def test_with_a_key_nobody_is_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "receipt").write_bytes(VECTOR)
    (tmp_path / "pub").write_text(receipt.write_public(PUBLIC) + "\n")
    line = [str(tmp_path / "receipt"), "--key", str(tmp_path / "pub")]
    assert cagectl.main(["audit", "verify-receipt", *line]) == 0
    shown = capsys.readouterr().out
    assert "Outcome: handed-over\n" in shown
    assert "the signature is good, and this host's record was not looked at" in shown
    assert incage.main(["verify-receipt", *line]) == 0
    assert capsys.readouterr().out == shown
    assert cagectl.main(["-j", "audit", "verify-receipt", *line]) == 0
    assert json.loads(capsys.readouterr().out) == {"receipt": "1", **dataclasses.asdict(RECEIPT)}


@pytest.mark.parametrize(("content", "key", "says"), [
    (VECTOR.replace(b"18", b"19"), receipt.write_public(PUBLIC), "was changed, or is none of this key"),
    (VECTOR, receipt.write_public(receipt.public_key(b"o" * 32)), "was signed by another key"),
    (VECTOR, "nonsense", "is not what cagectl audit key prints"),
    (b"x" * 10**7, receipt.write_public(PUBLIC), "one has at most 8192 bytes"),
])
def test_what_is_wrong_with_one_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes,
                                            key: str, says: str) -> None:
    (tmp_path / "receipt").write_bytes(content)
    (tmp_path / "pub").write_text(key)
    arguments = ["audit", "verify-receipt", str(tmp_path / "receipt"), "--key", str(tmp_path / "pub")]
    assert cagectl.main(arguments) == 1
    out, err = capsys.readouterr()
    assert (out, err.count("\n"), says in err) == ("", 1, True), err
