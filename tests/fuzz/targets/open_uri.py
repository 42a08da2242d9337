# SPDX-License-Identifier: LGPL-2.1-or-later
"""The URI that a cage wants opened elsewhere."""

from __future__ import annotations

from cage_runtime.errors import UsageError
from mediators.open.uri import URI_BYTES_MAX, check_uri

MAY_RAISE = (UsageError,)


def run(untrusted: bytes) -> None:
    uri = check_uri(untrusted.decode("utf-8", "surrogateescape"))
    assert uri.text.isascii()
    assert uri.text.isprintable()
    assert not set(uri.text) & set(" \\\"'<>`^{|}")
    assert len(uri.text) <= URI_BYTES_MAX
    assert uri.text.startswith(f"{uri.scheme}:")
    assert check_uri(uri.text) == uri, "it is in its one form"
