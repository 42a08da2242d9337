# SPDX-License-Identifier: LGPL-2.1-or-later
"""Keys of the key cage: whose file is none, and signatures that OpenSSH takes."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from mediators.keys import protocol, secret
from mediators.keys.protocol import Unsigned

KINDS = {"ed25519": ("ed25519", ""), "ecdsa256": ("ecdsa", "256"), "ecdsa384": ("ecdsa", "384"),
         "ecdsa521": ("ecdsa", "521"), "rsa": ("rsa", "2048")}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One with a key of each kind."""
    top = tmp_path_factory.mktemp("home")
    folder = top / secret.FOLDER
    folder.mkdir(parents=True)
    for name, (kind, bits) in KINDS.items():
        size = ("-b", bits) if bits else ()
        subprocess.run(["ssh-keygen", "-q", "-t", kind, *size, "-N", "", "-f", folder / name, "-C", ""], check=True)
    return top


def public(home: Path, name: str) -> str:
    return (home / secret.FOLDER / f"{name}.pub").read_text()


@pytest.mark.parametrize("name", KINDS)
def test_it_is_the_key_that_openssh_made(home: Path, name: str) -> None:
    key = secret.load(str(home), name)
    shown = subprocess.run(["ssh-keygen", "-l", "-f", home / secret.FOLDER / f"{name}.pub"], check=True,
                           capture_output=True, text=True).stdout
    assert protocol.fingerprint(key.blob) in shown
    assert public(home, name).split()[0] == protocol.kind_of(key.blob)


@pytest.mark.parametrize("name", KINDS)
def test_openssh_takes_its_signatures(home: Path, name: str, tmp_path: Path) -> None:
    """By the form that ssh-keygen -Y verify reads (PROTOCOL.sshsig)."""
    import base64
    import hashlib

    key = secret.load(str(home), name)
    digest = hashlib.sha512(b"document").digest()
    packed = protocol.packed
    signed = b"SSHSIG" + packed(b"file") + packed(b"") + packed(b"sha512") + packed(digest)
    assert protocol.describe(signed, key.blob)
    signature = key.sign(signed, protocol.RSA_SHA2_512 if name == "rsa" else 0)
    envelope = (b"SSHSIG" + (1).to_bytes(4, "big") + packed(key.blob) + packed(b"file") + packed(b"")
                + packed(b"sha512") + packed(signature))
    text = base64.encodebytes(envelope).decode()
    (tmp_path / "signature").write_text(f"-----BEGIN SSH SIGNATURE-----\n{text}-----END SSH SIGNATURE-----\n")
    (tmp_path / "signers").write_text(f"me {public(home, name)}")
    verified = subprocess.run(
        ["ssh-keygen", "-Y", "verify", "-f", tmp_path / "signers", "-I", "me", "-n", "file", "-s",
         tmp_path / "signature"], input=b"document", capture_output=True, check=False)
    assert (verified.returncode, verified.stderr) == (0, b""), verified.stdout


def test_all_that_there_are_are_listed(home: Path) -> None:
    assert [name for name, _ in secret.each(str(home))] == sorted(KINDS)


def test_where_there_is_no_folder_there_are_none(tmp_path: Path) -> None:
    assert list(secret.each(str(tmp_path))) == []


def faulty(home: Path, folder: Path) -> dict[str, str]:
    """Files that are no keys, by name, and what is said of them where only the key cage hears it."""
    folder.mkdir(parents=True)
    good = (home / secret.FOLDER / "ed25519").read_bytes()

    def write(name: str, content: bytes = good, mode: int = 0o600) -> None:
        (folder / name).write_bytes(content)
        (folder / name).chmod(mode)

    write("open", mode=0o640)
    write("world", mode=0o604)
    (folder / "link").symlink_to(home / secret.FOLDER / "ed25519")
    write("hard")
    os.link(folder / "hard", folder.parent / "hard")
    os.mkfifo(folder / "fifo", 0o600)
    (folder / "directory").mkdir(mode=0o700)
    write("empty", b"")
    write("text", b"ssh-ed25519 AAAA")
    write("cut", good[:200])
    write("large", good + b"\n" * secret.FILE_MAX)
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "secret", "-f", folder / "locked"], check=True)
    return {
        "open": "can be read by others", "world": "can be read by others", "link": "levels of symbolic links",
        "hard": "linked from elsewhere", "fifo": "not a regular file", "directory": "not a regular file",
        "empty": "not a private key", "text": "not a private key", "cut": "not a private key", "large": "too large",
        "locked": "without a passphrase", "missing": "No such file",
    }


def test_what_is_no_key_does_not_sign(home: Path, tmp_path: Path) -> None:
    for name, fault in faulty(home, tmp_path / secret.FOLDER).items():
        with pytest.raises(Unsigned, match=fault):
            secret.load(str(tmp_path), name)
    assert list(secret.each(str(tmp_path))) == []


def test_somebody_elses_file_is_no_key(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    with pytest.raises(Unsigned, match="not its user's own"):
        secret.load(str(home), "ed25519")


def test_no_more_are_listed_than_may_be(home: Path, tmp_path: Path) -> None:
    folder = tmp_path / secret.FOLDER
    folder.mkdir(parents=True)
    for number in range(protocol.KEYS_MAX + 2):
        (folder / f"k{number:02}").write_bytes((home / secret.FOLDER / "ed25519").read_bytes())
        (folder / f"k{number:02}").chmod(0o600)
    assert len(protocol.listing((name, key.blob) for name, key in secret.each(str(tmp_path)))) <= protocol.LISTING_MAX
    assert len(list(secret.each(str(tmp_path)))) == protocol.KEYS_MAX
