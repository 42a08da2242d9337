# SPDX-License-Identifier: LGPL-2.1-or-later
"""What ssh-keygen signs counts for one key, one purpose and one content, and nothing else counts."""

from __future__ import annotations

import asyncio
import base64
import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cage_runtime import encrypted
from cage_runtime.errors import PolicyRefused
from cage_runtime.filenames import CHUNK
from mediators import sshsig
from mediators.files.signed import check_file, signer_of
from mediators.sshsig import BadSignature, Checking, Signer, signer
from mediators.sshwire import Reader, packed
from mediators.stage import Stager

KINDS = {"ed25519": ("ed25519", ""), "ecdsa256": ("ecdsa", "256"), "ecdsa384": ("ecdsa", "384"),
         "ecdsa521": ("ecdsa", "521"), "rsa": ("rsa", "2048")}
CONTENT = b"the figures of the quarter\n" * 9000
"""More than one chunk."""
PRIVATE = """\
-----BEGIN OPENSSH PRIVATE KEY-----
"""
VECTOR_KEY = b"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEjHtlogOTdJTI19YGuk1Lj78abfPwFsGVSQPPLEaf7R vector\n"
VECTOR = b"""\
-----BEGIN SSH SIGNATURE-----
U1NIU0lHAAAAAQAAADMAAAALc3NoLWVkMjU1MTkAAAAgSMe2WiA5N0lMjX1ga6TUuPvxpt
8/AWwZVJA88sRp/tEAAAAKZmlsZXMuU2VuZAAAAAAAAAAGc2hhNTEyAAAAUwAAAAtzc2gt
ZWQyNTUxOQAAAEA1E/AwsU6nPJ5zLsEOD+3G8XQTQrIMzUu29GIamOHMOi09iUYKwrp9iw
c0lWPJhKHE/t+3ye4unqaGniOmSu4O
-----END SSH SIGNATURE-----
"""
"""Of the content b"vector\\n"."""


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a key of each kind, and another one."""
    top = tmp_path_factory.mktemp("keys")
    for name, (kind, bits) in {**KINDS, "other": ("ed25519", "")}.items():
        size = ("-b", bits) if bits else ()
        subprocess.run(["ssh-keygen", "-q", "-t", kind, *size, "-N", "", "-f", top / name, "-C", "a b c"], check=True)
    return top


def signature(keys: Path, name: str = "ed25519", content: bytes = CONTENT, namespace: str = "files.Send",
              *more: str) -> bytes:
    command = ["ssh-keygen", "-q", "-Y", "sign", "-f", str(keys / name), "-n", namespace, *more]
    return subprocess.run(command, input=content, capture_output=True, check=True).stdout


def key_of(keys: Path, name: str = "ed25519") -> Signer:
    return signer(name, (keys / f"{name}.pub").read_bytes())


def check(key: Signer, untrusted: bytes, content: bytes = CONTENT) -> None:
    checking = Checking(key, untrusted)
    checking.digest.update(content)
    checking.end()


@pytest.mark.parametrize("name", KINDS)
def test_what_ssh_keygen_signs_is_signed(keys: Path, name: str) -> None:
    check(key_of(keys, name), signature(keys, name))
    check(key_of(keys, name), signature(keys, name, CONTENT, "files.Send", "-O", "hashalg=sha256"))
    check(key_of(keys, name), signature(keys, name).replace(b"\n", b"\r\n"))


@pytest.mark.parametrize("name", KINDS)
def test_of_another_content_it_is_none(keys: Path, name: str) -> None:
    with pytest.raises(BadSignature, match="its signature is of another content"):
        check(key_of(keys, name), signature(keys, name), CONTENT + b"x")


def test_of_another_key_it_is_none(keys: Path) -> None:
    for name in (*KINDS, "other"):
        if name != "ed25519":
            with pytest.raises(BadSignature, match="signed by another key than ed25519"):
                check(key_of(keys), signature(keys, name))


def test_a_key_that_is_only_named_has_not_signed_it(keys: Path) -> None:
    """The public key in a signature is the sender's word."""
    key, forged = key_of(keys), signature(keys, "other")
    raw = base64.b64decode(b"".join(forged.split(b"\n")[1:-2]))
    raw = raw.replace(key_of(keys, "other").blob, key.blob)
    armoured = b"-----BEGIN SSH SIGNATURE-----\n" + base64.b64encode(raw) + b"\n-----END SSH SIGNATURE-----\n"
    with pytest.raises(BadSignature, match="its signature is of another content"):
        check(key, armoured)


@pytest.mark.parametrize("namespace", ["file", "git", "files.Move", "files.Send2", "Files.Send"])
def test_for_something_else_it_is_none(keys: Path, namespace: str) -> None:
    with pytest.raises(BadSignature, match=r"is for something else; it is made with ssh-keygen -Y sign -n files\.Send"):
        check(key_of(keys), signature(keys, namespace=namespace))


def test_without_one_nothing_is_sent(keys: Path) -> None:
    with pytest.raises(BadSignature, match="wants it signed by ed25519, and no signature came with it"):
        Checking(key_of(keys), b"")


def test_the_vector() -> None:
    check(signer("vector", VECTOR_KEY), VECTOR, b"vector\n")


def test_no_bit_can_be_flipped() -> None:
    key, raw = signer("vector", VECTOR_KEY), base64.b64decode(b"".join(VECTOR.split(b"\n")[1:-2]))
    for at in range(len(raw)):
        for bit in range(8):
            changed = raw[:at] + bytes([raw[at] ^ 1 << bit]) + raw[at + 1:]
            with pytest.raises(BadSignature):
                check(key, armour(changed), b"vector\n")


def armour(raw: bytes) -> bytes:
    return b"-----BEGIN SSH SIGNATURE-----\n" + base64.b64encode(raw) + b"\n-----END SSH SIGNATURE-----\n"


def blob(*, version: int = 1, public: bytes = b"", namespace: bytes = b"files.Send", reserved: bytes = b"",
         algorithm: bytes = b"sha512", made: bytes = b"", end: bytes = b"") -> bytes:
    return (b"SSHSIG" + version.to_bytes(4, "big") + packed(public) + packed(namespace) + packed(reserved)
            + packed(algorithm) + packed(made) + end)


MALFORMED = {
    "text": b"hello", "a line": b"hello\n", "armour alone": b"-----BEGIN SSH SIGNATURE-----\n",
    "empty armour": armour(b""), "no base64": armour(b"").replace(b"\n\n", b"\n!!!\n"), "cut off": VECTOR[:-40],
    "more behind": VECTOR + b"x", "before": b"x" + VECTOR, "binary": os.urandom(1000), "nothing but lines": b"\n" * 100,
    "another magic": armour(b"SSHXIG" + blob()[6:]), "another version": armour(blob(version=2)),
    "reserved": armour(blob(reserved=b"x")), "md5": armour(blob(algorithm=b"md5")),
    "a hash that is no text": armour(blob(algorithm=b"\xff")), "more in it": armour(blob(end=b"x")),
    "a long key": armour(blob(public=b"k" * 3000)), "a length that lies": armour(b"SSHSIG\0\0\0\1\xff\xff\xff\xff"),
    "a private key": PRIVATE.encode(),
}


@pytest.mark.parametrize("untrusted", MALFORMED.values(), ids=MALFORMED.keys())
def test_what_is_no_signature_is_told_so(untrusted: bytes) -> None:
    with pytest.raises(BadSignature, match="is none of ssh-keygen -Y sign"):
        Checking(signer("vector", VECTOR_KEY), untrusted)


@pytest.mark.parametrize("made", [
    b"", b"x", packed(b"ssh-ed25519"), packed(b"ssh-ed25519") + packed(b"s" * 63),
    packed(b"ssh-rsa") + packed(b"s" * 64), packed(b"ssh-ed25519") + packed(b"s" * 64),
    packed(b"ssh-ed25519") + packed(b"s" * 64) + b"x"])
def test_what_is_within_and_no_signature_of_the_key_is_none(made: bytes) -> None:
    key = signer("vector", VECTOR_KEY)
    with pytest.raises(BadSignature, match="of another content"):
        check(key, armour(blob(public=key.blob, made=made)))


@pytest.mark.parametrize("name", ["rsa", "ecdsa256"])
@pytest.mark.parametrize("algorithm", [
    b"ssh-rsa", b"rsa-sha2-256-cert-v01@openssh.com", b"ecdsa-sha2-nistp384", b"256"])
def test_a_weaker_or_another_algorithm_is_none(keys: Path, name: str, algorithm: bytes) -> None:
    key, raw = key_of(keys, name), base64.b64decode(b"".join(signature(keys, name).split(b"\n")[1:-2]))
    reader = Reader(raw[10:])
    parts = [reader.string(5000) for _ in range(5)]
    inner = Reader(parts[4])
    inner.string(100)
    made = packed(algorithm) + packed(inner.string(5000))
    with pytest.raises(BadSignature, match="of another content"):
        check(key, armour(blob(public=key.blob, made=made)))


@given(st.binary(max_size=300))
def test_whatever_it_is_one_thing_is_raised(untrusted: bytes) -> None:
    for given_ in (untrusted, armour(untrusted), armour(b"SSHSIG" + untrusted)):
        with pytest.raises(BadSignature):
            check(signer("vector", VECTOR_KEY), given_)


# --- the key ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("content", [
    b"", b"\n", b"ssh-ed25519", b"ssh-ed25519 !!!!", b"ssh-ed25519 AAAA", VECTOR_KEY * 2, b"ssh-rsa " + VECTOR_KEY[12:],
    b"\xff" * 100, encrypted.write_public(bytes(range(32))).encode(), PRIVATE.encode(),
    b"cert-authority " + VECTOR_KEY, b"ssh-dss " + VECTOR_KEY[12:]])
def test_what_is_no_key_signs_nothing(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"^."):
        signer("x", content)


def test_a_key_of_rsa_is_long_enough(tmp_path: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "rsa", "-b", "1024", "-N", "", "-f", tmp_path / "short"], check=True)
    with pytest.raises(ValueError, match="of a kind that does not sign here"):
        signer("short", (tmp_path / "short.pub").read_bytes())


def test_a_key_may_have_a_comment_and_lines_of_them() -> None:
    assert signer("x", b"# the editor's\n\n" + VECTOR_KEY).blob == signer("x", VECTOR_KEY.rsplit(b" ", 1)[0]).blob


def administrator(top: Path, content: bytes = VECTOR_KEY) -> Path:
    (top / "keys").mkdir(mode=0o755)
    (top / "keys/editor.pub").write_bytes(content)
    (top / "keys/editor.pub").chmod(0o644)
    return top


def test_the_key_is_the_administrators(tmp_path: Path) -> None:
    found = signer_of("signed:editor", administrator(tmp_path), os.getuid())
    assert found is not None
    assert (found.name, found.blob) == ("editor", signer("x", VECTOR_KEY).blob)
    assert signer_of("", tmp_path, os.getuid()) is None


@pytest.mark.parametrize("require", [
    "signed", "signed:", "signed:gone", "signed:../editor", "virus-scan", "sign:editor"])
def test_another_requirement_is_refused(tmp_path: Path, require: str) -> None:
    with pytest.raises(PolicyRefused, match=r"^cannot be sent: "):
        signer_of(require, administrator(tmp_path), os.getuid())


@pytest.mark.parametrize("content", [b"", b"x" * 5000, encrypted.write_public(bytes(range(32))).encode()])
def test_a_file_that_is_no_key_of_openssh_is_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(PolicyRefused, match="signed by editor, whose public key the core does not have or cannot use"):
        signer_of("signed:editor", administrator(tmp_path, content), os.getuid())


def test_a_key_that_others_could_have_put_there_is_refused(tmp_path: Path) -> None:
    (administrator(tmp_path) / "keys/editor.pub").chmod(0o666)
    with pytest.raises(PolicyRefused):
        signer_of("signed:editor", tmp_path, os.getuid())
    (tmp_path / "keys/editor.pub").chmod(0o644)
    with pytest.raises(PolicyRefused):
        signer_of("signed:editor", tmp_path, os.getuid() + 1)
    (tmp_path / "keys").chmod(0o777)
    with pytest.raises(PolicyRefused):
        signer_of("signed:editor", tmp_path, os.getuid())


def test_of_a_tree_there_is_no_signature() -> None:
    check_file("papers", "", tree=True)
    check_file("papers", "signed:editor", tree=False)
    with pytest.raises(PolicyRefused, match="is a directory, and the policy wants what is sent there signed"):
        check_file("papers", "signed:editor", tree=True)


# --- the copy --------------------------------------------------------------------------------------------------------
def staged(top: Path, key: Signer, untrusted: bytes, content: bytes = CONTENT, recipient: bytes = b"") -> bytes:
    file = top / "plain"
    file.write_bytes(content)
    (top / "staging").mkdir(mode=0o700, exist_ok=True)

    async def run() -> bytes:
        copy = await Stager(top / "staging").stage(
            os.open(file, os.O_RDONLY), "1" * 32, recipient=recipient, signer=key, untrusted_signature=untrusted)
        return os.pread(copy.descriptor, copy.size, 0)

    return asyncio.run(run())


@pytest.mark.parametrize("name", KINDS)
def test_there_is_a_copy_of_what_is_signed(keys: Path, tmp_path: Path, name: str) -> None:
    assert len(CONTENT) > CHUNK // 8
    assert staged(tmp_path, key_of(keys, name), signature(keys, name)) == CONTENT


@pytest.mark.parametrize("recipient", [b"", encrypted.public_key(bytes(range(32)))], ids=["plain", "encrypted"])
def test_of_what_is_not_there_is_none(keys: Path, tmp_path: Path, recipient: bytes) -> None:
    good, key = signature(keys), key_of(keys)
    assert staged(tmp_path, key, good, recipient=recipient)
    for untrusted, says in (
            (b"", "no signature came"), (b"x", "is none of ssh-keygen"), (signature(keys, "other"), "by another key"),
            (signature(keys, content=b"other"), "of another content"), (signature(keys, namespace="git"), "for some")):
        with pytest.raises(PolicyRefused, match=says):
            staged(tmp_path, key, untrusted, recipient=recipient)
    assert list((tmp_path / "staging").iterdir()) == []


def test_the_fingerprint_is_that_of_ssh_keygen(keys: Path) -> None:
    shown = subprocess.run(["ssh-keygen", "-l", "-f", keys / "rsa.pub"], check=True, capture_output=True)
    assert key_of(keys, "rsa").fingerprint in shown.stdout.decode()
    assert sshsig.NAMESPACE == b"files.Send"
