# SPDX-License-Identifier: LGPL-2.1-or-later
"""The first line of a script that a service of `call` is."""

from __future__ import annotations

from mediators.call.deliver import LINE_MAX, NotExecutable, script_words

MAY_RAISE = (NotExecutable,)


def run(untrusted: bytes) -> None:
    words = script_words(b"#!" + untrusted[: LINE_MAX - 2], "a script")
    assert words[0].startswith("/")
    assert len(words) <= 2
    assert not any("\0" in word for word in words)
