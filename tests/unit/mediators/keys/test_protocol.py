# SPDX-License-Identifier: LGPL-2.1-or-later
"""What may be signed: what can be said in words, by the key that it names, and no other bytes."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cage_runtime.errors import UsageError
from mediators.keys import protocol
from mediators.sshwire import packed

BLOB = packed(b"ssh-ed25519") + packed(bytes(range(32)))
RSA = packed(b"ssh-rsa") + packed(b"\x01\x00\x01") + packed(b"\0" + b"\xc0" * 256)
HOST = packed(b"ssh-ed25519") + packed(b"h" * 32)
DIGEST = hashlib.sha512(b"document").digest()


def login(*, session: bytes = b"s" * 32, kind: int = 50, user: bytes = b"git", service: bytes = b"ssh-connection",
          method: bytes = b"publickey", has: int = 1, name: bytes = b"ssh-ed25519", blob: bytes = BLOB,
          end: bytes = b"") -> bytes:
    return (packed(session) + bytes([kind]) + packed(user) + packed(service) + packed(method) + bytes([has])
            + packed(name) + packed(blob) + end)


def sshsig(*, namespace: bytes = b"git", reserved: bytes = b"", name: bytes = b"sha512", digest: bytes = DIGEST,
           end: bytes = b"") -> bytes:
    return b"SSHSIG" + packed(namespace) + packed(reserved) + packed(name) + packed(digest) + end


def test_a_login_is_described() -> None:
    assert protocol.describe(login(), BLOB) == ("login by SSH as: git", "service: ssh-connection")


def test_a_login_that_names_its_server_is_described_with_it() -> None:
    data = login(method=protocol.HOSTBOUND, end=packed(HOST))
    assert protocol.describe(data, BLOB)[2] == f"server's key: {protocol.fingerprint(HOST)}"


@pytest.mark.parametrize("name", [b"rsa-sha2-256", b"rsa-sha2-512"])
def test_a_key_of_rsa_logs_in_by_its_new_names(name: bytes) -> None:
    assert protocol.describe(login(blob=RSA, name=name), RSA)


def test_a_signature_of_ssh_keygens_is_described() -> None:
    assert protocol.describe(sshsig(), BLOB) == ("signature for: git", f"digest: sha512 {DIGEST.hex()}")
    digest = hashlib.sha256(b"x").digest()
    assert protocol.describe(sshsig(name=b"sha256", digest=digest, namespace=b"file"), BLOB) == (
        "signature for: file", f"digest: sha256 {digest.hex()}")


@pytest.mark.parametrize("data", [
    b"", b"x", b"SSHSIG", b"anything that somebody would like to have signed", b"\0\0\0\0", b"\xff" * 64,
    login(session=b""), login(session=b"s" * 65), login(kind=51), login(user=b""), login(user=b"u" * 129),
    login(user=b"\xff"), login(user=b"a\nb"), login(user="a\u202eb".encode()), login(service=b""),
    login(method=b"password"), login(method=b"hostbased"), login(has=0), login(has=2), login(name=b"ssh-rsa"),
    login(blob=HOST), login(blob=b""), login(blob=b"x" * 3000), login(end=b"x"), login(end=packed(HOST)),
    login(method=protocol.HOSTBOUND), login(method=protocol.HOSTBOUND, end=packed(HOST) + b"x"),
    sshsig(namespace=b""), sshsig(namespace=b"a\nb"), sshsig(namespace=b"n" * 129), sshsig(reserved=b"x"),
    sshsig(name=b"sha1", digest=b"d" * 20), sshsig(name=b"sha256"), sshsig(digest=b""), sshsig(digest=DIGEST + b"x"),
    sshsig(end=b"x"), sshsig()[:-1], b"SSHSIG" + b"\xff\xff\xff\xff", b"x" * (protocol.DATA_MAX + 1),
])
def test_what_nobody_can_say_is_not_signed(data: bytes) -> None:
    """M75: there is no question without what it is about."""
    with pytest.raises(UsageError):
        protocol.describe(data, BLOB)


@pytest.mark.parametrize("name", [b"ssh-rsa", b"ssh-ed25519", b"rsa-sha2-1024"])
def test_a_key_of_rsa_logs_in_by_no_other_name(name: bytes) -> None:
    with pytest.raises(UsageError, match="another key"):
        protocol.describe(login(blob=RSA, name=name), RSA)


@given(st.binary(max_size=400))
def test_any_bytes_are_described_or_refused(data: bytes) -> None:
    for untrusted in (data, b"SSHSIG" + data):
        try:
            said = protocol.describe(untrusted, BLOB)
        except UsageError as error:
            said = (error.sentence,)
        assert all(line.isprintable() for line in said)


@given(st.data())
def test_no_byte_of_a_login_can_be_another_unseen(data: st.DataObject) -> None:
    """What is changed is refused, or changes what a person is told, or is of the session's id, which is random."""
    good = login()
    position = data.draw(st.integers(0, len(good) - 1))
    changed = good[:position] + bytes([data.draw(st.integers(0, 255))]) + good[position + 1 :]
    try:
        lines = protocol.describe(changed, BLOB)
    except UsageError:
        return
    assert changed == good or lines != protocol.describe(good, BLOB) or 4 <= position < 36


@given(st.text(max_size=20))
def test_a_keys_name_is_no_path(text: str) -> None:
    try:
        name = protocol.check_key_name(text)
    except UsageError:
        return
    assert "/" not in name
    assert name[0] not in ".-"
    assert name.isascii()


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "-oProxyCommand=id", ".ssh", "a b", "a\0", "a\n", "a+b",
                                  "k" * 65, "ä"])
def test_these_are_none(name: str) -> None:
    with pytest.raises(UsageError):
        protocol.check_key_name(name)


@pytest.mark.parametrize("blob", [b"", b"x", packed(b"ssh-dss"), packed(b"ssh-ed25519-cert-v01@openssh.com"),
                                  packed(b"ssh-ed25519")[:-1], packed(b"\xff"), packed(b"ssh-rsa") + b"x" * 2048])
def test_what_is_no_public_key_is_none(blob: bytes) -> None:
    with pytest.raises(UsageError):
        protocol.kind_of(blob)


@pytest.mark.parametrize(("blob", "flags", "name"), [
    (BLOB, 0, "ssh-ed25519"), (BLOB, 2, "ssh-ed25519"), (RSA, 2, "rsa-sha2-256"), (RSA, 4, "rsa-sha2-512")])
def test_a_signature_has_such_a_name(blob: bytes, flags: int, name: str) -> None:
    assert protocol.algorithm(blob, flags) == name


@pytest.mark.parametrize(("blob", "flags"), [(BLOB, 1), (BLOB, 8), (BLOB, 2**32 - 1), (RSA, 0), (RSA, 6), (RSA, 1)])
def test_there_are_no_other_flags(blob: bytes, flags: int) -> None:
    with pytest.raises(UsageError):
        protocol.algorithm(blob, flags)


def test_halves_understand_each_other() -> None:
    assert protocol.parse_request(protocol.request(BLOB, b"data", 4)) == (BLOB, b"data", 4)
    keys = [("a", BLOB), ("b.2", RSA)]
    assert protocol.parse_listing(protocol.listing(keys)) == keys
    assert protocol.parse_listing(b"") == []
    signature = packed(b"ssh-ed25519") + packed(b"s" * 64)
    assert protocol.parse_signature(signature, "ssh-ed25519") == signature


@pytest.mark.parametrize("listing", [
    protocol.listing([("a", BLOB), ("a", RSA)]), protocol.listing([("../a", BLOB)]), protocol.listing([("a", b"x")]),
    protocol.listing([("a", BLOB)])[:-1], protocol.listing([(f"k{n}", BLOB) for n in range(protocol.KEYS_MAX + 1)]),
    b"x", b"\xff" * 8, packed(b"\xff") + packed(BLOB),
])
def test_a_key_cage_that_lists_something_odd_is_not_believed(listing: bytes) -> None:
    with pytest.raises(UsageError):
        protocol.parse_listing(listing)


@pytest.mark.parametrize("signature", [
    b"", b"x", packed(b"ssh-ed25519"), packed(b"ssh-rsa") + packed(b"s"), packed(b"ssh-ed25519") + packed(b"s") + b"x",
    packed(b"ssh-ed25519") + packed(b"s" * 5000),
])
def test_a_key_cage_that_signs_something_odd_neither(signature: bytes) -> None:
    with pytest.raises(UsageError):
        protocol.parse_signature(signature, "ssh-ed25519")


@given(st.binary(max_size=300))
def test_any_bytes_from_either_side_are_read_or_refused(data: bytes) -> None:
    parsers = (protocol.parse_request, protocol.parse_listing, protocol.kind_of,
               lambda raw: protocol.parse_signature(raw, "ssh-ed25519"))
    for parse in parsers:
        said = ""
        try:
            parse(data)
        except UsageError as error:
            said = error.sentence
        assert said.isprintable() or not said


def test_what_a_person_is_told_has_the_key_and_what_it_does() -> None:
    lines = protocol.about("work", BLOB, login())
    assert lines[0] == f"key: work, ssh-ed25519 {protocol.fingerprint(BLOB)}"
    assert protocol.announcement(lines).endswith("service: ssh-connection\nready\n")
