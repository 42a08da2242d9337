# SPDX-License-Identifier: LGPL-2.1-or-later
"""A remote is a checked name, a checked address and exactly one good public key."""

from __future__ import annotations

import pytest

from cage_runtime.errors import UntrustedSource, UsageError
from cage_runtime.flatpak.remotes import _only_key, check_url

FINGERPRINT = "96D55664216243DD7DE54D2A958998A4BBBD79E8"
OTHER = "56819CF04399BCEFDFF80ECF5964DC0C73EA5C74"


def key(validity: str = "-", kind: str = "pub", fingerprint: str = FINGERPRINT) -> str:
    return (
        f"{kind}:{validity}:255:22:{fingerprint[-16:]}:1700000000:::-:::scSC:::::ed25519:::0:\n"
        f"fpr:::::::::{fingerprint}:\nuid:-::::1700000000::AA::Somebody::::::::::0:\n"
        f"sub:-:255:18:0123456789ABCDEF:1700000000::::::e:::::cv25519::\nfpr:::::::::{OTHER}:\n"
    )


@pytest.mark.parametrize(
    "url",
    ["https://dl.flathub.org/repo/", "http://127.0.0.1:8080/a%20b", "https://h", "file:///srv/repo", "file:///a/b.c"],
)
def test_good_addresses(url: str) -> None:
    assert check_url(url) == url


@pytest.mark.parametrize(
    "url",
    ["", "repo", "/srv/repo", "file://srv/repo", "file:///srv/../root", "file:///", "file:///a/.ssh",
     "file:///a b", "ftp://host/x", "https://user:pass@host/", "https://host/x?y", "https://host/\n", "-x",
     "https://host/" + "x" * 1024, "mirrorlist=https://host/x", "oci+https://host/x", "https://host/\x1b[2J"],
)
def test_bad_addresses(url: str) -> None:
    with pytest.raises(UsageError, match="cannot be the address of a repository"):
        check_url(url)


@pytest.mark.parametrize("validity", ["-", "u", "f", ""])
def test_the_fingerprint_is_the_primary_keys(validity: str) -> None:
    assert _only_key(key(validity), "sample") == FINGERPRINT


@pytest.mark.parametrize(
    ("listing", "why"),
    [
        ("", "holds 0 keys"),
        (key() + key(fingerprint=OTHER), "holds 2 keys"),
        (key(kind="sec"), "is a secret key"),
        (key("e"), "has expired or was revoked"),
        (key("r"), "has expired or was revoked"),
        (key("i"), "has expired or was revoked"),
        (key(fingerprint="0" * 32), "of an old kind"),
        ("pub\n", "has expired or was revoked"),
    ],
)
def test_other_keys_are_refused(listing: str, why: str) -> None:
    with pytest.raises(UntrustedSource, match=why):
        _only_key(listing, "sample")
