# SPDX-License-Identifier: LGPL-2.1-or-later
"""The name of a file that a cage sends."""

from __future__ import annotations

from cage_runtime.errors import InvalidName
from cage_runtime.filenames import FILE_NAME_BYTES, candidate, check_file_name

MAY_RAISE = (InvalidName,)


def run(untrusted: bytes) -> None:
    name = check_file_name(untrusted.decode("utf-8", "surrogateescape"))
    assert check_file_name(name) == name
    assert 0 < len(name.encode()) <= FILE_NAME_BYTES
    assert not {"/", "\0", "\n", "\x1b"} & set(name)
    for ordinal in (2, 10, 1000):
        other = candidate(name, ordinal)
        assert check_file_name(other) == other
        assert other != name
