# SPDX-License-Identifier: LGPL-2.1-or-later
"""What was encrypted comes out as it went in, or not at all."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cage_runtime import encrypted
from cage_runtime.cli import incage
from cage_runtime.encrypted import CHUNK, HEADER_BYTES, TAG_BYTES, Decryption, Encryption, Undecryptable
from cage_runtime.errors import PolicyRefused
from mediators.files.transform import recipient
from mediators.stage import Stager

TOP = Path(__file__).parents[3]
PRIVATE = bytes(range(32))
SEALED = CHUNK + TAG_BYTES
PLAIN = bytes(range(256)) * 700
"""Three chunks."""


def encrypt(plain: bytes) -> bytes:
    encryption = Encryption(encrypted.public_key(PRIVATE), file_key=b"k" * 32, ephemeral=b"e" * 32)
    offsets = range(0, max(1, len(plain)), CHUNK)
    return encryption.header + b"".join(
        encryption.chunk(plain[at: at + CHUNK], last=at == offsets[-1]) for at in offsets)


def decrypt(sealed: bytes, private: bytes = PRIVATE) -> bytes:
    decryption, body = Decryption(private, sealed[:HEADER_BYTES]), sealed[HEADER_BYTES:]
    offsets = range(0, max(1, len(body)), SEALED)
    return b"".join(decryption.chunk(body[at: at + SEALED], last=at == offsets[-1]) for at in offsets)


@given(st.binary(max_size=300), st.sampled_from([0, CHUNK - 300, CHUNK - 1, CHUNK, 2 * CHUNK - 7]))
def test_it_comes_back(some: bytes, more: int) -> None:
    plain = some + bytes(more)
    sealed = encrypt(plain)
    assert decrypt(sealed) == plain
    assert len(sealed) == encrypted.length(len(plain))


def test_the_format_is_what_it_was_and_what_the_page_has() -> None:
    """A fixed vector: whoever writes another reader of these files can hold it against that."""
    page = (TOP / "cage_runtime/resources/man/cage-encrypted.5").read_text()
    (block,) = re.findall(r"^\.Bd -literal\n(.*?)\n\.Ed$", page, re.M | re.S)
    sealed = bytes.fromhex(block)
    assert encrypt(b"the figures\n") == sealed
    assert decrypt(sealed) == b"the figures\n"
    assert hashlib.sha256(sealed).hexdigest() == "fed5dbd32e2d5f62fd98a39a5c6bba31b3da78bc9bd2b20ba45dc68b4bdb8bb7"
    assert f"\n{HEADER_BYTES} bytes:\n" in page
    assert f"{len(sealed)} bytes in all" in page
    assert f".Li {encrypted.write_public(encrypted.public_key(PRIVATE)).strip()} .\n" in page


WHOLE = encrypt(PLAIN)
BODY = WHOLE[HEADER_BYTES:]


@pytest.mark.parametrize("changed", [
    WHOLE[:-1], WHOLE + b"x", WHOLE[:HEADER_BYTES], WHOLE[: HEADER_BYTES + SEALED], WHOLE[: HEADER_BYTES + 2 * SEALED],
    WHOLE[:HEADER_BYTES] + BODY[SEALED: 2 * SEALED] + BODY[:SEALED] + BODY[2 * SEALED:],
    WHOLE[:HEADER_BYTES] + BODY[:SEALED] + BODY, WHOLE[:HEADER_BYTES] + BODY[SEALED:], WHOLE + BODY, b"", WHOLE[:50],
], ids=range(11))
def test_cut_reordered_repeated_or_extended_it_does_not(changed: bytes) -> None:
    with pytest.raises(Undecryptable):
        decrypt(changed)


@given(st.integers(0, len(WHOLE) - 1), st.integers(0, 7))
def test_no_bit_can_be_flipped(at: int, bit: int) -> None:
    with pytest.raises(Undecryptable):
        decrypt(WHOLE[:at] + bytes([WHOLE[at] ^ 1 << bit]) + WHOLE[at + 1:])


def test_another_key_reads_nothing() -> None:
    with pytest.raises(Undecryptable, match="another key"):
        decrypt(WHOLE, bytes(32))


def key_file(top: Path, content: str = encrypted.write_public(encrypted.public_key(PRIVATE))) -> Path:
    (top / "keys").mkdir(mode=0o755)
    (top / "keys/press.pub").write_text(content)
    (top / "keys/press.pub").chmod(0o644)
    return top / "keys/press.pub"


def test_a_key_is_read(tmp_path: Path) -> None:
    key_file(tmp_path)
    assert recipient("encrypt:press", tmp_path, os.getuid()) == encrypted.public_key(PRIVATE)


@pytest.mark.parametrize("content", ["", "AAAA\n", "not base64!\n", encrypted.write_public(bytes(32)), "A" * 500],
                         ids=["empty", "short", "text", "zero", "long"])
def test_what_is_no_key_is_refused(tmp_path: Path, content: str) -> None:
    key_file(tmp_path, content)
    with pytest.raises(PolicyRefused, match="encrypted for press, whose key"):
        recipient("encrypt:press", tmp_path, os.getuid())


def test_a_key_that_others_could_have_put_there_is_refused(tmp_path: Path) -> None:
    file = key_file(tmp_path)
    file.chmod(0o666)
    with pytest.raises(PolicyRefused):
        recipient("encrypt:press", tmp_path, os.getuid())
    file.rename(tmp_path / "elsewhere")
    file.symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").chmod(0o644)
    with pytest.raises(PolicyRefused):
        recipient("encrypt:press", tmp_path, os.getuid())


@pytest.mark.parametrize("transform", ["encrypt", "encrypt:", "encrypt:gone", "encrypt:../press", "compress:press"])
def test_another_transform_is_refused(tmp_path: Path, transform: str) -> None:
    key_file(tmp_path)
    with pytest.raises(PolicyRefused):
        recipient(transform, tmp_path, os.getuid())


def test_the_staged_copy_never_has_the_plaintext(tmp_path: Path) -> None:
    file = tmp_path / "plain"
    file.write_bytes(PLAIN)

    async def run() -> tuple[bytes, str, str, int]:
        staged = await Stager(tmp_path / "staging").stage(
            os.open(file, os.O_RDONLY), "1" * 32, recipient=encrypted.public_key(PRIVATE))
        return os.pread(staged.descriptor, staged.size, 0), staged.sha256, staged.plain_sha256, staged.content

    sealed, sha256, plain_sha256, content = asyncio.run(run())
    assert decrypt(sealed) == PLAIN
    assert bytes(range(32)) not in sealed
    assert sha256 == hashlib.sha256(sealed).hexdigest()
    assert (plain_sha256, content) == (hashlib.sha256(PLAIN).hexdigest(), len(PLAIN))


def test_incage_makes_a_key_and_reads_with_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key, file = tmp_path / "key", tmp_path / "figures.cage"
    assert incage.main(["keygen", str(key)]) == 0
    public = encrypted.read_public(capsys.readouterr().out.encode())
    encryption = Encryption(public)
    file.write_bytes(encryption.header + encryption.chunk(b"figures", last=True))
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    assert incage.main(["decrypt", str(file), "--key", str(key)]) == 1
    assert "was changed or cut off" in capsys.readouterr().err
    assert not (tmp_path / "figures").exists()
    file.write_bytes(whole)
    assert incage.main(["decrypt", str(file), "--key", str(key)]) == 0
    assert (tmp_path / "figures").read_bytes() == b"figures"
    capsys.readouterr()
    (tmp_path / "figures").write_text("mine")
    assert incage.main(["decrypt", str(file), "--key", str(key)]) == 1
    assert capsys.readouterr().err == f'incage: "{tmp_path}/figures" is there already; say --output\n'
    assert (tmp_path / "figures").read_text() == "mine"
    assert sorted(os.listdir(tmp_path)) == ["figures", "figures.cage", "key"]
    assert incage.main(["decrypt", str(file), "--key", str(key), "--output", str(tmp_path / "no/x")]) == 1
    assert capsys.readouterr().err == f'incage: "{tmp_path}/no": No such file or directory\n'
    assert incage.main(["decrypt", str(tmp_path / "x.cage"), "--key", str(key)]) == 1
    assert capsys.readouterr().err == f'incage: "{tmp_path}/x.cage": No such file or directory\n'
    assert incage.main(["keygen", str(key)]) == 1
